// Arbitrary bytes through encode and decode, and arbitrary vocabularies through make_tokenizer.
#include <array>
#include <cstdio>
#include <cstdlib>

#include "core/error.h"
#include "text/byte_alphabet.h"
#include "text/byte_pair.h"
#include "text/detokenizer.h"
#include "text/presets.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

using kivi::TokenId;
using kivi::Tokenizer;
using kivi::TokenizerSpec;

constexpr std::array<const char*, 4> kPreTokenisers = {"smollm", "qwen2", "llama-bpe", "gpt-2"};

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

TokenizerSpec small_spec(const char* pre) {
  using TokenType = TokenizerSpec::TokenType;
  TokenizerSpec spec;
  kivi::set_pretokeniser(spec, pre);
  for (int byte = 0; byte < 256; ++byte) spec.tokens.push_back(kivi::byte_symbol(static_cast<uint8_t>(byte)));
  for (const char* merge : {"a b", "ab ab", "b c", "\xC4\xA0 \xC4\xA0", "\xC4\xA0 a", "\xC3\x83 \xC2\xA9", "1 2"}) {
    spec.merges.push_back(kivi::parse_merge(merge));
    std::string token = merge;
    spec.tokens.push_back(token.erase(token.find(' '), 1));
  }
  spec.types.resize(spec.tokens.size(), TokenType::kNormal);
  for (const char* token : {"<|a|>", "<|a|><|b|>", "<|b|>"}) spec.tokens.emplace_back(token);
  spec.types.resize(spec.tokens.size(), TokenType::kControl);
  spec.tokens.emplace_back("<a>");
  spec.types.push_back(TokenType::kUserDefined);
  return spec;
}

void check_stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  kivi::StreamDetokenizer detokenizer(tokenizer);
  for (const TokenId id : ids) {
    const std::string text = detokenizer.add(id);
    require(kivi::valid_utf8_prefix(text) == text.size(), "streamed text is UTF-8");
  }
}

void check_text(size_t pre, bool parse_special, std::string_view text) {
  static const std::array<std::unique_ptr<Tokenizer>, kPreTokenisers.size()> tokenizers = [] {
    std::array<std::unique_ptr<Tokenizer>, kPreTokenisers.size()> made;
    for (size_t i = 0; i < made.size(); ++i) made[i] = kivi::make_tokenizer(small_spec(kPreTokenisers[i]));
    return made;
  }();
  const Tokenizer& tokenizer = *tokenizers[pre];
  const std::vector<TokenId> ids = tokenizer.encode(text, true, parse_special);
  const std::string decoded = tokenizer.decode(ids, true);
  if (kPreTokenisers[pre] == std::string_view("qwen2")) {  // NFC changes text once
    require(tokenizer.decode(tokenizer.encode(decoded, true, parse_special), true) == decoded, "normalised text stays");
  } else {
    require(decoded == text, "decode gives the bytes back");
  }
  if (!parse_special) require(tokenizer.decode(ids) == decoded, "no control token in plain text");
  check_stream(tokenizer, ids);
}

// The input's lines are tokens up to the first empty one, then merges.
void check_vocabulary(size_t pre, std::string_view input) {
  TokenizerSpec spec;
  kivi::set_pretokeniser(spec, kPreTokenisers[pre]);
  std::vector<std::string> merges;
  std::vector<std::string>* list = &spec.tokens;
  while (!input.empty()) {
    const size_t end = std::min(input.find('\n'), input.size());
    if (end == 0) list = &merges;
    if (end > 0) list->emplace_back(input.substr(0, end));
    input.remove_prefix(std::min(end + 1, input.size()));
  }
  for (const std::string& token : spec.tokens) {  // the type by the first byte
    spec.types.push_back(static_cast<TokenizerSpec::TokenType>(static_cast<uint8_t>(token[0]) % 8));
  }
  try {
    for (const std::string& line : merges) spec.merges.push_back(kivi::parse_merge(line));
    const auto tokenizer = kivi::make_tokenizer(std::move(spec));
    for (TokenId id = 0; id < tokenizer->vocab_size(); ++id) {
      for (const bool parse_special : {false, true}) {
        for (const TokenId piece : tokenizer->encode(tokenizer->token_bytes(id, true), true, parse_special)) {
          require(piece >= 0 && piece < tokenizer->vocab_size(), "ids are in the vocabulary");
        }
      }
    }
  } catch (const kivi::Error& error) {
    require(error.code() == kivi::ErrorCode::kCorrupt, "a broken vocabulary is reported as such");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t choice = data[0];
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t pre = choice % kPreTokenisers.size();
  if (choice & 0x80) {
    check_vocabulary(pre, input);
  } else {
    check_text(pre, (choice & 4) != 0, input);
  }
  return 0;
}
