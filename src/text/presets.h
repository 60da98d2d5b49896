// What model files name, or mean without saying so.
#pragma once

#include <string_view>

#include "text/tokenizer_spec.h"

namespace kivi {

// Normaliser and cuts of what GGUF's tokenizer.ggml.pre names: "smollm", "qwen2", "llama-bpe", "falcon" or "gpt-2"; any
// other name is taken as "gpt-2".
void set_pretokeniser(TokenizerSpec& spec, std::string_view name);

// SentencePiece BPE (algorithm kScores): spaces become U+2581; with adds_space one goes before the text. The unknown
// token is that of its type if the spec has none.
void set_sentencepiece(TokenizerSpec& spec, bool adds_space);

// In a vocabulary with all tokens of Phi-3's turns, lets them take the white space behind them: GGUF cannot say so.
void set_phi3_tokens(TokenizerSpec& spec);

// Patterns (text/regex.h) that tokenizer.json has as types of their own.
namespace patterns {
inline constexpr char kGpt2[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr char kDigit[] = R"(\p{N})";
inline constexpr char kDigits[] = R"(\p{N}+)";
inline constexpr char kPunctuation[] = R"([\p{P}$+<=>^`|~])";
// Of bytes: those whose byte-level symbols are digits. B2, B3, B9, BC, BD and BE are superscripts and fractions.
inline constexpr char kDigitSymbol[] = R"([0-9\xB2\xB3\xB9\xBC-\xBE])";
inline constexpr char kDigitSymbols[] = R"([0-9\xB2\xB3\xB9\xBC-\xBE]+)";
}  // namespace patterns

}  // namespace kivi
