#include "model/arch/arch.h"

namespace kivi {

// Llama 1 to 3, Mistral, SmolLM. Conversion to GGUF permutes the rows of attn_q and attn_k so that pairs are
// neighbours.
constinit const Architecture kLlamaArchitecture{.name = "llama", .rope_pairing = RopePairing::kInterleaved};

}  // namespace kivi
