// The tokenizer's part of a model file.
#pragma once

#include "io/model_file.h"
#include "text/tokenizer.h"

namespace kivi {

// Reads tokenizer.ggml.*. Throws Error{kCorrupt} for a key that is missing, a list that is not as long as the
// vocabulary, or an id or type that does not exist. Which models and pre-tokenisers there are is make_tokenizer's
// business.
TokenizerSpec read_tokenizer_spec(const ModelFile& file);

}  // namespace kivi
