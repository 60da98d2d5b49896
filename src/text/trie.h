// Texts by their beginnings.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/tokenizer_spec.h"

namespace kivi {

class Trie {
 public:
  // Of two ids for one text the first holds. An empty text is not kept.
  void add(std::string_view text, TokenId id);

  // Calls on_match(size, id) for every text that `bytes` begins with, the shortest first.
  template <typename OnMatch>
  void match(std::string_view bytes, OnMatch on_match) const {
    uint32_t node = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      const auto it = edges_.find(edge(node, bytes[i]));
      if (it == edges_.end()) return;
      node = it->second;
      if (id_of_node_[node] >= 0) on_match(i + 1, id_of_node_[node]);
    }
  }

  bool empty() const { return edges_.empty(); }

 private:
  static uint64_t edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<uint8_t>(byte); }

  std::vector<TokenId> id_of_node_{-1};  // -1: no text ends here; node 0 is the root
  std::unordered_map<uint64_t, uint32_t> edges_;
};

}  // namespace kivi
