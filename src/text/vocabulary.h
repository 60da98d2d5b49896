// The tokens of a model and what each stands for, checked.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_spec.h"

namespace kivi {

class Vocabulary {
 public:
  using TokenType = TokenizerSpec::TokenType;

  // Takes tokens, types and what belongs to them from the spec. Throws Error{kCorrupt} on an empty vocabulary, an empty
  // token, as many types as not tokens, an unknown token that is not there, or no byte at all in a byte-level one.
  explicit Vocabulary(TokenizerSpec& spec);
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  bool contains(TokenId id) const { return id >= 0 && id < size(); }
  std::string_view token(TokenId id) const { return tokens_[static_cast<size_t>(id)]; }
  TokenType type(TokenId id) const { return types_.empty() ? TokenType::kNormal : types_[static_cast<size_t>(id)]; }
  // Control tokens and the unknown token steer the model: plain text never becomes one, and none is shown.
  bool is_control(TokenId id) const { return type(id) == TokenType::kControl || type(id) == TokenType::kUnknown; }
  // Normal and user-defined tokens are what their spelling says.
  bool is_text(TokenId id) const { return type(id) == TokenType::kNormal || type(id) == TokenType::kUserDefined; }

  // The first id whose text this is.
  std::optional<TokenId> find(std::string_view token) const;
  // The id of a single byte, -1 if the vocabulary has none (SmolLM2 lacks 21 bytes that are rare or never in UTF-8).
  TokenId byte_id(uint8_t byte) const { return byte_ids_[byte]; }
  // Appends the smallest tokens of a piece. Spelled as bytes: those of its bytes. Spelled as text: those of its
  // characters; the bytes of one that is no token; the unknown token where there are none. What has no token at all is
  // left out.
  void append_symbols(std::string_view piece, std::vector<TokenId>& out) const;
  // The same for a character that is no token by itself. `n_before` tokens of `out` are not of this piece.
  void append_fallback(std::string_view character, size_t n_before, std::vector<TokenId>& out) const;
  // The bytes that a token stands for.
  std::string bytes(TokenId id) const;

 private:
  struct Slot {
    uint32_t hash = 0;
    TokenId id = -1;  // -1: empty
  };

  void index_tokens();
  void index_bytes();
  size_t slot_of(std::string_view token, uint32_t hash) const;

  std::vector<std::string> tokens_;
  std::vector<TokenType> types_;
  TokenizerSpec::Spelling spelling_;
  std::optional<TokenId> unknown_;
  bool fuses_unknown_;
  std::vector<Slot> slots_;  // ids by text: a hash table, a power of two of them, at most half full
  std::array<TokenId, 256> byte_ids_;
};

}  // namespace kivi
