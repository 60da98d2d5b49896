#include "text/vocabulary.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/error.h"
#include "text/byte_alphabet.h"

namespace kivi {

Vocabulary::Vocabulary(std::vector<std::string> tokens, std::vector<TokenType> types)
    : tokens_(std::move(tokens)), types_(std::move(types)) {
  if (tokens_.empty())
    fail(ErrorCode::kCorrupt, "vocabulary of 0 tokens: must have at least 1; the model file is broken");
  if (tokens_.size() > static_cast<size_t>(std::numeric_limits<TokenId>::max())) {
    fail(ErrorCode::kCorrupt, "vocabulary of {} tokens: must be below 2^31; the model file is broken", tokens_.size());
  }
  if (!types_.empty() && types_.size() != tokens_.size()) {
    fail(ErrorCode::kCorrupt, "vocabulary of {} tokens and {} token types: must be as many; the model file is broken",
         tokens_.size(), types_.size());
  }
  ids_.reserve(tokens_.size());
  for (TokenId id = 0; id < size(); ++id) {
    if (token(id).empty()) fail(ErrorCode::kCorrupt, "token {}: is empty; the model file is broken", id);
    ids_.emplace(token(id), id);
  }
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    const std::optional<TokenId> id = find(byte_symbol(static_cast<uint8_t>(byte)));
    byte_ids_[byte] = id && !is_control(*id) ? *id : -1;
  }
  if (std::all_of(byte_ids_.begin(), byte_ids_.end(), [](TokenId id) { return id < 0; })) {
    fail(ErrorCode::kCorrupt, "vocabulary of {} tokens: has no token of a single byte; the model file is broken",
         size());
  }
}

std::optional<TokenId> Vocabulary::find(std::string_view token) const {
  const auto it = ids_.find(token);
  return it == ids_.end() ? std::nullopt : std::optional(it->second);
}

std::string Vocabulary::bytes(TokenId id) const {
  const bool is_plain_text = is_control(id) || type(id) == TokenType::kUserDefined;
  return is_plain_text ? std::string(token(id)) : symbols_to_bytes(token(id));
}

}  // namespace kivi
