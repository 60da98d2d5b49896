#include "model/arch/arch.h"

namespace kivi {

// Gemma 3 (text): as Gemma 2, but every sixth layer attends to all and has a RoPE of its own, and norms of q and k
// stand in for the caps. The 27B model has 62 layers.
constinit const Architecture kGemma3Architecture{.name = "gemma3",
                                                 .has_head_norm = true,
                                                 .has_post_norms = true,
                                                 .activation = Activation::kGeluTanh,
                                                 .scales_embedding = true,
                                                 .rope_base = 1e6,
                                                 .sliding_rope_base = 1e4,
                                                 .full_attention_every = 6,
                                                 .wide_score_layers = 62};

}  // namespace kivi
