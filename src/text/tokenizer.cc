#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "text/byte_pair.h"
#include "text/pretokenizer.h"
#include "text/special_tokens.h"
#include "text/vocabulary.h"

namespace kivi {
namespace {

// The tokens that end a turn or a document in the vocabularies of the chat formats.
constexpr std::array<std::string_view, 6> kEndTokens = {"<|im_end|>",      "<|eot_id|>",    "<|eom_id|>",
                                                        "<|end_of_text|>", "<|endoftext|>", "</s>"};

// The others that lay out a turn.
constexpr std::array<std::string_view, 4> kTurnTokens = {"<|im_start|>", "<|start_header_id|>", "<|end_header_id|>",
                                                         "<|begin_of_text|>"};

// The merger counts symbols in 32 bits, and NFC makes text up to three times as long.
constexpr size_t kMaxTextBytes = size_t{1} << 29;

// Byte-level byte-pair encoding. Immutable, so every thread may use it.
class BytePairTokenizer final : public Tokenizer {
 public:
  explicit BytePairTokenizer(TokenizerSpec spec);

  std::vector<TokenId> encode(std::string_view text, bool add_bos, bool parse_special) const override;
  std::string token_bytes(TokenId id, bool show_special) const override;
  int32_t vocab_size() const override { return vocabulary_.size(); }
  std::optional<TokenId> find(std::string_view token) const override { return vocabulary_.find(token); }
  std::optional<TokenId> bos() const override { return bos_; }
  std::optional<TokenId> eos() const override { return eos_; }
  const std::vector<TokenId>& end_ids() const override { return end_ids_; }

 private:
  void add_special_tokens();
  void collect_end_ids();
  void encode_plain(std::string_view text, BytePairMerger& merger, std::vector<TokenId>& ids) const;

  Vocabulary vocabulary_;
  MergeRules rules_;
  Pretokenizer pretokenizer_;
  SpecialTokens user_tokens_;                              // user-defined tokens: always found
  SpecialTokens special_tokens_;                           // user-defined and control tokens: found with parse_special
  std::unordered_map<std::string, TokenId> known_pieces_;  // by bytes; empty unless the pre-tokeniser keeps them
  std::optional<TokenId> bos_, eos_;
  bool add_bos_;
  std::vector<TokenId> end_ids_;
};

// Some model files call the tokens of the chat format user-defined: then text would be able to forge a turn.
void make_turn_tokens_control(const std::vector<std::string>& tokens, std::vector<TokenizerSpec::TokenType>& types) {
  using TokenType = TokenizerSpec::TokenType;
  const auto is_one_of = [](const auto& list, std::string_view token) {
    return std::find(list.begin(), list.end(), token) != list.end();
  };
  for (size_t id = 0; id < std::min(tokens.size(), types.size()); ++id) {
    if (types[id] != TokenType::kUserDefined) continue;
    if (is_one_of(kEndTokens, tokens[id]) || is_one_of(kTurnTokens, tokens[id])) types[id] = TokenType::kControl;
  }
}

void check_id(const char* name, std::optional<TokenId> id, const Vocabulary& vocabulary) {
  if (id && !vocabulary.contains(*id)) {
    fail(ErrorCode::kCorrupt, "{} token id {}: must be below the vocabulary's size {}; the model file is broken", name,
         *id, vocabulary.size());
  }
}

BytePairTokenizer::BytePairTokenizer(TokenizerSpec spec)
    : vocabulary_(std::move(spec.tokens), std::move(spec.types)),
      rules_(vocabulary_, spec.merges),
      pretokenizer_(spec.pre),
      bos_(spec.bos),
      eos_(spec.eos),
      add_bos_(spec.add_bos) {
  check_id("bos", bos_, vocabulary_);
  check_id("eos", eos_, vocabulary_);
  check_id("pad", spec.pad, vocabulary_);
  add_special_tokens();
  collect_end_ids();
}

void BytePairTokenizer::add_special_tokens() {
  using TokenType = TokenizerSpec::TokenType;
  for (TokenId id = 0; id < vocabulary_.size(); ++id) {
    const bool is_user_defined = vocabulary_.type(id) == TokenType::kUserDefined;
    if (is_user_defined) user_tokens_.add(vocabulary_.token(id), id);
    if (is_user_defined || vocabulary_.is_control(id)) {
      special_tokens_.add(vocabulary_.token(id), id);
    } else if (pretokenizer_.keeps_known_pieces() && vocabulary_.type(id) != TokenType::kUnused) {
      known_pieces_.emplace(vocabulary_.bytes(id), id);
    }
  }
}

void BytePairTokenizer::collect_end_ids() {
  if (eos_) end_ids_.push_back(*eos_);
  for (const std::string_view token : kEndTokens) {
    const std::optional<TokenId> id = vocabulary_.find(token);
    // A vocabulary may have learned "</s>" from web pages: that one is text.
    if (id && id != eos_ && vocabulary_.is_control(*id)) end_ids_.push_back(*id);
  }
}

std::vector<TokenId> BytePairTokenizer::encode(std::string_view text, bool add_bos, bool parse_special) const {
  if (text.size() > kMaxTextBytes) {
    fail(ErrorCode::kInvalidArgument, "text of {} bytes: must be at most {}; split it", text.size(), kMaxTextBytes);
  }
  std::vector<TokenId> ids;
  if (add_bos && add_bos_ && bos_) ids.push_back(*bos_);
  const SpecialTokens& special_tokens = parse_special ? special_tokens_ : user_tokens_;
  BytePairMerger merger(rules_);
  for (size_t begin = 0; begin < text.size();) {
    const SpecialTokens::Match special = special_tokens.find(text, begin);
    encode_plain(text.substr(begin, special.begin - begin), merger, ids);
    if (special.size > 0) ids.push_back(special.id);
    begin = special.begin + special.size;
  }
  return ids;
}

void BytePairTokenizer::encode_plain(std::string_view text, BytePairMerger& merger, std::vector<TokenId>& ids) const {
  std::vector<TokenId> symbols;
  pretokenizer_.split(text, [&](std::string_view piece) {
    if (!known_pieces_.empty()) {
      const auto known = known_pieces_.find(std::string(piece));
      if (known != known_pieces_.end()) {
        ids.push_back(known->second);
        return;
      }
    }
    symbols.clear();
    for (const char byte : piece) {
      const TokenId id = vocabulary_.byte_id(static_cast<uint8_t>(byte));
      if (id >= 0) symbols.push_back(id);
    }
    merger.append_merged(symbols, ids);
  });
}

std::string BytePairTokenizer::token_bytes(TokenId id, bool show_special) const {
  if (!vocabulary_.contains(id)) {
    fail(ErrorCode::kInvalidArgument, "token id {}: must be 0 to {}", id, vocabulary_.size() - 1);
  }
  const bool is_hidden = vocabulary_.is_control(id) || vocabulary_.type(id) == TokenizerSpec::TokenType::kUnused;
  return is_hidden && !show_special ? std::string() : vocabulary_.bytes(id);
}

}  // namespace

std::string Tokenizer::decode(std::span<const TokenId> ids, bool show_special) const {
  std::string text;
  for (const TokenId id : ids) text += token_bytes(id, show_special);
  return text;
}

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerSpec spec) {
  if (spec.model != "gpt2") {
    fail(ErrorCode::kUnsupported, "tokenizer model '{}': must be gpt2 (byte-level BPE); use a model file that has it",
         spec.model);
  }
  make_turn_tokens_control(spec.tokens, spec.types);
  return std::make_unique<BytePairTokenizer>(std::move(spec));
}

}  // namespace kivi
