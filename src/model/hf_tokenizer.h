// The tokenizer of a Hugging Face folder.
#pragma once

#include <string>

#include "text/tokenizer_spec.h"

namespace kivi {

// Reads tokenizer.json, or tokenizer.model where there is none; then, where they are there, tokenizer_config.json,
// special_tokens_map.json, chat_template.jinja, and the ends of generation_config.json. Throws Error{kNotFound} for a
// folder with neither of the first two; Error{kCorrupt} or Error{kUnsupported} naming the file and the place in it.
TokenizerSpec read_hf_tokenizer(const std::string& folder);

}  // namespace kivi
