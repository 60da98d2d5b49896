// Hugging Face's tokenizer.json.
#pragma once

#include <string>
#include <string_view>

#include "io/json_field.h"
#include "text/tokenizer_spec.h"

namespace kivi {

// The file as a spec: byte-level BPE, and BPE with U+2581 for spaces and bytes to fall back on, with the normalisers
// and pre-tokenisers that models of these kinds use. Throws Error{kUnsupported} naming a part of the pipeline that kivi
// does not have, Error{kCorrupt} for one that is broken.
TokenizerSpec parse_tokenizer_json(const JsonField& file);

// Parts of it.
void read_normaliser(const JsonField& normaliser, TokenizerSpec& spec);
void read_pretokeniser(const JsonField& pretokeniser, TokenizerSpec& spec);  // also sets the spelling

// Puts a token into the vocabulary as control (`special`) or user-defined token; it may be there already.
void add_token(const JsonField& token, TokenId id, TokenizerSpec& spec);

}  // namespace kivi
