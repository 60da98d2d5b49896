// Models without a file: the shape of a known model and random weights. For measurements of speed and memory; what they
// say means nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "backend/backend.h"
#include "model/config.h"
#include "model/model.h"

namespace kivi {

// "llama-2-7b", "llama-2-13b", "llama-3-8b", "mistral-7b".
std::span<const ModelConfig> known_shapes();

// Bytes of the weights that random_weights makes: 16 bits each, norms and biases 32.
int64_t random_weight_bytes(const ModelConfig& config);

// A model without a tokenizer; load_weights makes its weights. Throws Error{kInvalidArgument} if the sizes contradict
// each other.
std::unique_ptr<Model> open_random_model(const ModelConfig& config);

// Throws Error{kUnsupported} if the backend makes no random weights.
ModelWeights random_weights(Backend& backend, const ModelConfig& config, const ProgressCallback& progress = {});

}  // namespace kivi
