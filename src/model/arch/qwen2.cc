#include "model/arch/arch.h"

namespace kivi {

// Qwen2 and Qwen2.5: q, k and v have biases.
constinit const Architecture kQwen2Architecture{.name = "qwen2"};

}  // namespace kivi
