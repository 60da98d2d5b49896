#include "model/arch/arch.h"

namespace kivi {

// Qwen3, but its mixtures of experts.
constinit const Architecture kQwen3Architecture{.name = "qwen3", .has_head_norm = true};

}  // namespace kivi
