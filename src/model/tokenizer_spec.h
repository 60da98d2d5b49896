// The tokenizer's part of a model file.
#pragma once

#include "io/model_file.h"
#include "text/tokenizer.h"

namespace kivi {

// Reads tokenizer.ggml.*. Throws Error{kCorrupt} for a key that is missing, a list that is not as long as the
// vocabulary, or an id or type that does not exist, Error{kUnsupported} for a tokenizer model that kivi does not have.
TokenizerSpec read_tokenizer_spec(const ModelFile& file);

}  // namespace kivi
