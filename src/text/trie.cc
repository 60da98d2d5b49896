#include "text/trie.h"

namespace kivi {

void Trie::add(std::string_view text, TokenId id) {
  if (text.empty()) return;
  uint32_t node = 0;
  for (const char byte : text) {
    const auto [it, is_new] = edges_.try_emplace(edge(node, byte), static_cast<uint32_t>(id_of_node_.size()));
    if (is_new) id_of_node_.push_back(-1);
    node = it->second;
  }
  if (id_of_node_[node] < 0) id_of_node_[node] = id;
}

}  // namespace kivi
