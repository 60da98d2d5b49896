// Tokens that are found in the text as they are spelled, before anything else cuts it.
#pragma once

#include <bitset>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/tokenizer.h"

namespace kivi {

// A trie of token texts.
class SpecialTokens {
 public:
  struct Match {
    size_t begin, size;  // bytes; size 0: nothing found, begin is the end of the text
    TokenId id;
  };

  void add(std::string_view text, TokenId id);

  // The first special token of `text` at or after `from`, the longest of those that begin there.
  Match find(std::string_view text, size_t from) const;

 private:
  static uint64_t edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<uint8_t>(byte); }
  Match match_at(std::string_view text, size_t begin) const;

  std::vector<TokenId> id_of_node_{-1};  // -1: no token ends here; node 0 is the root
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::bitset<256> first_bytes_;
};

}  // namespace kivi
