#include "model/arch/arch.h"

namespace kivi {

// Qwen2 and Qwen2.5: q, k and v have biases.
constinit const Architecture kQwen2{.name = "qwen2"};

}  // namespace kivi
