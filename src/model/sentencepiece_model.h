// SentencePiece's tokenizer.model, a protobuf message.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "text/tokenizer_spec.h"

namespace kivi {

// BPE and unigram models whose normaliser has no map of characters (Llama, Mistral, Gemma, Phi-3). `source` names the
// file. Throws Error{kUnsupported} for another model or normaliser, Error{kCorrupt} for a broken file. Every length is
// checked before it is used.
TokenizerSpec parse_sentencepiece_model(std::span<const std::byte> bytes, const std::string& source);

}  // namespace kivi
