#include "text/presets.h"

#include <algorithm>
#include <string>

namespace kivi {
namespace {

// Llama 3's pattern; `number` is what one piece of digits is.
std::string llama3_pattern(std::string_view number) {
  return std::string(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)")
      .append(number)
      .append(R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
}

// The tokens of Phi-3 that take the white space behind them.
constexpr std::string_view kPhi3Tokens[] = {"<|user|>", "<|assistant|>", "<|system|>", "<|end|>"};

}  // namespace

void set_pretokeniser(TokenizerSpec& spec, std::string_view name) {
  if (name == "smollm") {
    spec.cuts = {{patterns::kDigit}, {patterns::kGpt2}};
  } else if (name == "qwen2") {
    spec.normaliser = {{TextChange::Kind::kNfc}};
    spec.cuts = {{llama3_pattern(R"(\p{N})")}};
  } else if (name == "llama-bpe") {
    spec.cuts = {{llama3_pattern(R"(\p{N}{1,3})")}};
    spec.keeps_known_pieces = true;
  } else if (name == "falcon") {
    spec.cuts = {{patterns::kPunctuation, TextCut::Matches::kContiguous},
                 {patterns::kGpt2},
                 {patterns::kDigitSymbols, TextCut::Matches::kIsolated, false, true},
                 {"[0-9][0-9][0-9]", TextCut::Matches::kIsolated, false, true}};
  } else {
    spec.cuts = {{patterns::kGpt2}};
  }
}

void set_sentencepiece(TokenizerSpec& spec, bool adds_space) {
  using Kind = TextChange::Kind;
  const std::string metaspace(kMetaspace);
  spec.algorithm = TokenizerSpec::Algorithm::kScores;
  spec.spelling = TokenizerSpec::Spelling::kText;
  if (adds_space) spec.normaliser.push_back({Kind::kPrepend, {}, metaspace});
  spec.normaliser.push_back({Kind::kReplace, " ", metaspace});
  if (!spec.unknown) {
    const auto it = std::find(spec.types.begin(), spec.types.end(), TokenizerSpec::TokenType::kUnknown);
    if (it != spec.types.end()) spec.unknown = static_cast<TokenId>(it - spec.types.begin());
  }
}

void set_phi3_tokens(TokenizerSpec& spec) {
  std::vector<AddedToken> found;
  for (const std::string_view token : kPhi3Tokens) {
    const auto it = std::find(spec.tokens.begin(), spec.tokens.end(), token);
    if (it == spec.tokens.end()) return;
    found.push_back({static_cast<TokenId>(it - spec.tokens.begin()), false, true, false});
  }
  spec.added.insert(spec.added.end(), found.begin(), found.end());
}

}  // namespace kivi
