#include "model/arch/arch.h"

namespace kivi {

// Falcon: attention and MLP side by side. The 7B model has one norm for both, which GGUF calls attn_norm; where there
// are two (40B, 180B) attention's is attn_norm_2, and attn_norm is the MLP's.
constinit const Architecture kFalconArchitecture{.name = "falcon",
                                                 .norm = NormKind::kLayer,
                                                 .has_norm_bias = true,
                                                 .is_parallel = true,
                                                 .has_gate = false,
                                                 .activation = Activation::kGelu,
                                                 .names = {.attn_norm = "attn_norm_2", .ffn_norm = "attn_norm"}};

}  // namespace kivi
