// Arbitrary bytes through encode and decode, and arbitrary vocabularies through make_tokenizer.
#include <array>
#include <cstdio>
#include <cstdlib>

#include "core/error.h"
#include "text/byte_alphabet.h"
#include "text/byte_pair.h"
#include "text/detokenizer.h"
#include "text/normaliser.h"
#include "text/presets.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

using kivi::TokenId;
using kivi::Tokenizer;
using kivi::TokenizerSpec;
using TokenType = TokenizerSpec::TokenType;

// Pre-tokenisers of byte-level BPE, then SentencePiece's two models.
constexpr std::array<std::string_view, 7> kKinds = {"smollm", "qwen2", "llama-bpe", "gpt-2",
                                                    "falcon", "bpe",   "unigram"};

bool is_sentencepiece(size_t kind) {
  return kind >= 5;
}

constexpr char kMetaspaceA[] = {'\xE2', '\x96', '\x81', 'a', '\0'};

// Everything but the vocabulary.
TokenizerSpec pipeline_of(size_t kind) {
  TokenizerSpec spec;
  if (is_sentencepiece(kind)) {
    kivi::set_sentencepiece(spec, true);
    if (kKinds[kind] == "unigram") spec.algorithm = TokenizerSpec::Algorithm::kUnigram;
  } else {
    kivi::set_pretokeniser(spec, kKinds[kind]);
  }
  return spec;
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

void add_byte_level_tokens(TokenizerSpec& spec) {
  for (int byte = 0; byte < 256; ++byte) spec.tokens.push_back(kivi::byte_symbol(static_cast<uint8_t>(byte)));
  for (const char* merge : {"a b", "ab ab", "b c", "\xC4\xA0 \xC4\xA0", "\xC4\xA0 a", "\xC3\x83 \xC2\xA9", "1 2"}) {
    spec.merges.push_back(*kivi::parse_merge(merge));
    std::string token = merge;
    spec.tokens.push_back(token.erase(token.find(' '), 1));
  }
  spec.types.resize(spec.tokens.size(), TokenType::kNormal);
}

void add_sentencepiece_tokens(TokenizerSpec& spec) {
  for (int byte = 0; byte < 256; ++byte) spec.tokens.push_back(fmt::format("<0x{:02X}>", byte));
  spec.types.resize(spec.tokens.size(), TokenType::kByte);
  for (const char* token :
       {"a", "b", "c", "ab", "bc", "abab", "\xE2\x96\x81", "\xE2\x96\x81\xE2\x96\x81", kMetaspaceA, "\xC3\xA9"}) {
    spec.tokens.emplace_back(token);
  }
  spec.types.resize(spec.tokens.size(), TokenType::kNormal);
  spec.scores.resize(spec.tokens.size() + 4);
  for (size_t id = 256; id < spec.tokens.size(); ++id) spec.scores[id] = -static_cast<float>(id % 5);
}

TokenizerSpec small_spec(size_t kind) {
  TokenizerSpec spec = pipeline_of(kind);
  is_sentencepiece(kind) ? add_sentencepiece_tokens(spec) : add_byte_level_tokens(spec);
  for (const char* token : {"<|a|>", "<|a|><|b|>", "<|b|>"}) spec.tokens.emplace_back(token);
  spec.types.resize(spec.tokens.size(), TokenType::kControl);
  spec.tokens.emplace_back("<a>");
  spec.types.push_back(TokenType::kUserDefined);
  return spec;
}

std::string with_spaces(std::string_view text) {
  std::string storage;
  const kivi::Normaliser normaliser({{kivi::TextChange::Kind::kReplace, std::string(kivi::kMetaspace), " "}});
  return std::string(normaliser.apply(text, true, storage));
}

void check_stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  kivi::StreamDetokenizer detokenizer(tokenizer);
  for (const TokenId id : ids) {
    const std::string text = detokenizer.add(id);
    require(kivi::valid_utf8_prefix(text) == text.size(), "streamed text is UTF-8");
  }
}

void check_text(size_t kind, bool parse_special, std::string_view text) {
  static const std::array<std::unique_ptr<Tokenizer>, kKinds.size()> tokenizers = [] {
    std::array<std::unique_ptr<Tokenizer>, kKinds.size()> made;
    for (size_t i = 0; i < made.size(); ++i) made[i] = kivi::make_tokenizer(small_spec(i));
    return made;
  }();
  const Tokenizer& tokenizer = *tokenizers[kind];
  const std::vector<TokenId> ids = tokenizer.encode(text, true, parse_special);
  const std::string decoded = tokenizer.decode(ids, true);
  if (kKinds[kind] == "qwen2") {  // NFC changes text once
    require(tokenizer.decode(tokenizer.encode(decoded, true, parse_special), true) == decoded, "normalised text stays");
  } else if (!is_sentencepiece(kind)) {
    require(decoded == text, "decode gives the bytes back");
  } else if (!parse_special) {  // else there are spaces behind control tokens
    require(decoded == with_spaces(text), "decode gives the bytes back, with spaces for U+2581");
  }
  if (!parse_special) require(tokenizer.decode(ids) == decoded, "no control token in plain text");
  check_stream(tokenizer, ids);
}

// The input's lines are tokens up to the first empty one, then merges.
void check_vocabulary(size_t kind, std::string_view input) {
  TokenizerSpec spec = pipeline_of(kind);
  std::vector<std::string> merges;
  std::vector<std::string>* list = &spec.tokens;
  while (!input.empty()) {
    const size_t end = std::min(input.find('\n'), input.size());
    if (end == 0) list = &merges;
    if (end > 0) list->emplace_back(input.substr(0, end));
    input.remove_prefix(std::min(end + 1, input.size()));
  }
  for (const std::string& token : spec.tokens) {  // type and score by the first byte
    const auto byte = static_cast<uint8_t>(token[0]);
    spec.types.push_back(static_cast<TokenType>(byte % 8));
    spec.scores.push_back(-static_cast<float>(byte / 8 % 8));
  }
  try {
    for (const std::string& line : merges) {
      if (const auto merge = kivi::parse_merge(line)) spec.merges.push_back(*merge);
    }
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
  const size_t kind = choice % 16 % kKinds.size();
  if (choice & 0x80) {
    check_vocabulary(kind, input);
  } else {
    check_text(kind, (choice & 0x10) != 0, input);
  }
  return 0;
}
