#include "model/arch/arch.h"

namespace kivi {

// Phi-3, Phi-3.5, Phi-4: matrices that are stacked in the file; RoPE may turn a part of each head.
constinit const Architecture kPhi3Architecture{.name = "phi3", .names = {.ffn_gate = {}}};

}  // namespace kivi
