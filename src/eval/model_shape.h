// The shape of a model for measurements with random weights, from the command line.
#pragma once

#include <string>

#include "model/config.h"

namespace kivi {

// The name of a known shape, or a JSON file:
//   {"n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "ffn_size", "vocab_size"} and, if wanted,
//   {"name", "context_length", "rms_eps", "rope_base", "tied_output", "qkv_bias"}.
// Throws Error{kInvalidArgument} naming the shapes or the fields there are, Error{kNotFound} for a missing file.
ModelConfig read_model_shape(const std::string& name_or_path);

}  // namespace kivi
