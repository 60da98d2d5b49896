#include "model/arch/arch.h"

namespace kivi {

// Gemma 2: every second layer attends to all, capped scores and logits, norms before and after. The 27B model, of 46
// layers, has its own scale of scores.
constinit const Architecture kGemma2Architecture{.name = "gemma2",
                                                 .has_post_norms = true,
                                                 .activation = Activation::kGeluTanh,
                                                 .scales_embedding = true,
                                                 .sliding_window = 4096,
                                                 .full_attention_every = 2,
                                                 .score_cap = 50.0,
                                                 .logit_cap = 30.0,
                                                 .wide_score_layers = 46};

}  // namespace kivi
