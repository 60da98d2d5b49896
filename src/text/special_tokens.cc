#include "text/special_tokens.h"

namespace kivi {

void SpecialTokens::add(std::string_view text, TokenId id) {
  uint32_t node = 0;
  for (const char byte : text) {
    const auto [it, is_new] = edges_.try_emplace(edge(node, byte), static_cast<uint32_t>(id_of_node_.size()));
    if (is_new) id_of_node_.push_back(-1);
    node = it->second;
  }
  if (id_of_node_[node] < 0) id_of_node_[node] = id;
  first_bytes_.set(static_cast<uint8_t>(text.front()));
}

SpecialTokens::Match SpecialTokens::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_bytes_.test(static_cast<uint8_t>(text[begin]))) continue;
    const Match match = match_at(text, begin);
    if (match.size > 0) return match;
  }
  return {text.size(), 0, -1};
}

SpecialTokens::Match SpecialTokens::match_at(std::string_view text, size_t begin) const {
  Match longest{begin, 0, -1};
  uint32_t node = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    const auto it = edges_.find(edge(node, text[i]));
    if (it == edges_.end()) break;
    node = it->second;
    if (id_of_node_[node] >= 0) longest = {begin, i + 1 - begin, id_of_node_[node]};
  }
  return longest;
}

}  // namespace kivi
