#include "text/vocabulary.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <utility>

#include "core/error.h"
#include "text/byte_alphabet.h"
#include "text/unicode.h"

namespace kivi {
namespace {

uint32_t hash_of(std::string_view token) {
  const auto hash = uint64_t{std::hash<std::string_view>()(token)};
  return static_cast<uint32_t>(hash ^ hash >> 32);
}

std::string spaces_for_metaspaces(std::string_view token) {
  std::string bytes;
  for (;;) {
    const size_t at = token.find(kMetaspace);
    bytes += token.substr(0, at);
    if (at == std::string_view::npos) return bytes;
    bytes += ' ';
    token.remove_prefix(at + kMetaspace.size());
  }
}

}  // namespace

Vocabulary::Vocabulary(TokenizerSpec& spec)
    : tokens_(std::move(spec.tokens)),
      types_(std::move(spec.types)),
      spelling_(spec.spelling),
      unknown_(spec.unknown),
      fuses_unknown_(spec.fuses_unknown) {
  if (tokens_.empty())
    fail(ErrorCode::kCorrupt, "vocabulary of 0 tokens: must have at least 1; the model file is broken");
  if (tokens_.size() > static_cast<size_t>(std::numeric_limits<TokenId>::max())) {
    fail(ErrorCode::kCorrupt, "vocabulary of {} tokens: must be below 2^31; the model file is broken", tokens_.size());
  }
  if (!types_.empty() && types_.size() != tokens_.size()) {
    fail(ErrorCode::kCorrupt, "vocabulary of {} tokens and {} token types: must be as many; the model file is broken",
         tokens_.size(), types_.size());
  }
  if (unknown_ && !contains(*unknown_)) {
    fail(ErrorCode::kCorrupt, "unknown token id {}: must be below the vocabulary's size {}; the model file is broken",
         *unknown_, size());
  }
  index_tokens();
  index_bytes();
}

void Vocabulary::index_tokens() {
  slots_.resize(std::bit_ceil(2 * tokens_.size() + 1));
  for (TokenId id = 0; id < size(); ++id) {
    if (!token(id).empty()) {
      const uint32_t hash = hash_of(token(id));
      Slot& slot = slots_[slot_of(token(id), hash)];
      if (slot.id < 0) slot = {hash, id};
    } else if (type(id) != TokenType::kUnused) {
      fail(ErrorCode::kCorrupt, "token {}: is empty; the model file is broken", id);
    }
  }
}

// The slot that holds the token, or the empty one where it would be.
size_t Vocabulary::slot_of(std::string_view token, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  while (slots_[slot].id >= 0 && (slots_[slot].hash != hash || this->token(slots_[slot].id) != token)) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

void Vocabulary::index_bytes() {
  byte_ids_.fill(-1);
  if (spelling_ == TokenizerSpec::Spelling::kText) {
    for (TokenId id = 0; id < size(); ++id) {
      if (type(id) != TokenType::kByte) continue;
      const std::optional<uint8_t> byte = byte_of_token(token(id));
      if (!byte) fail(ErrorCode::kCorrupt, "token {}: is of type byte, must be spelled as <0x0A> is", id);
      byte_ids_[*byte] = id;
    }
    return;
  }
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    const std::optional<TokenId> id = find(byte_symbol(static_cast<uint8_t>(byte)));
    if (id && !is_control(*id)) byte_ids_[byte] = *id;
  }
  if (std::all_of(byte_ids_.begin(), byte_ids_.end(), [](TokenId id) { return id < 0; })) {
    fail(ErrorCode::kCorrupt, "vocabulary of {} tokens: has no token of a single byte; the model file is broken",
         size());
  }
}

std::optional<TokenId> Vocabulary::find(std::string_view token) const {
  const TokenId id = slots_[slot_of(token, hash_of(token))].id;
  return id < 0 ? std::nullopt : std::optional(id);
}

void Vocabulary::append_symbols(std::string_view piece, std::vector<TokenId>& out) const {
  if (spelling_ == TokenizerSpec::Spelling::kByteSymbols) {
    for (const char byte : piece) {
      const TokenId id = byte_id(static_cast<uint8_t>(byte));
      if (id >= 0) out.push_back(id);
    }
    return;
  }
  const size_t n_before = out.size();
  while (!piece.empty()) {
    const std::string_view character = piece.substr(0, utf8_head(piece).size);
    const std::optional<TokenId> id = find(character);
    id&& is_text(*id) ? out.push_back(*id) : append_fallback(character, n_before, out);
    piece.remove_prefix(character.size());
  }
}

void Vocabulary::append_fallback(std::string_view character, size_t n_before, std::vector<TokenId>& out) const {
  const auto id_of = [&](char byte) { return byte_id(static_cast<uint8_t>(byte)); };
  if (std::all_of(character.begin(), character.end(), [&](char byte) { return id_of(byte) >= 0; })) {
    for (const char byte : character) out.push_back(id_of(byte));
  } else if (unknown_) {
    const bool is_fused = fuses_unknown_ && out.size() > n_before && out.back() == *unknown_;
    if (!is_fused) out.push_back(*unknown_);
  }
}

std::string Vocabulary::bytes(TokenId id) const {
  if (spelling_ == TokenizerSpec::Spelling::kText) {
    if (type(id) == TokenType::kByte) return {static_cast<char>(*byte_of_token(token(id)))};
    return spaces_for_metaspaces(token(id));
  }
  const bool is_plain_text = is_control(id) || type(id) == TokenType::kUserDefined;
  return is_plain_text ? std::string(token(id)) : symbols_to_bytes(token(id));
}

}  // namespace kivi
