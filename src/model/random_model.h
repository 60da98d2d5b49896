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

// Bytes of the weights that make_random_model makes: 16 bits each, norms and biases 32.
int64_t random_weight_bytes(const ModelConfig& config);

// All but the weights of a model that make_random_model makes.
std::unique_ptr<Model> open_random_model(const ModelConfig& config);

// A model without a tokenizer. Throws Error{kInvalidArgument} if the sizes contradict each other, Error{kUnsupported}
// if the backend makes no random weights.
std::unique_ptr<Model> make_random_model(Backend& backend, const ModelConfig& config);

}  // namespace kivi
