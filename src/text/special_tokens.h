// Tokens that are found in the text as they are spelled, before anything else cuts it.
#pragma once

#include <bitset>
#include <string_view>
#include <unordered_map>

#include "text/tokenizer_spec.h"
#include "text/trie.h"

namespace kivi {

class SpecialTokens {
 public:
  struct Match {
    size_t begin, size;  // bytes; size 0: nothing found, begin is the end of the text
    TokenId id;
  };

  // `options.id` is the token's.
  void add(std::string_view text, const AddedToken& options);

  // The first special token of `text` at or after `from`, the longest of those that begin there, with the white space
  // that it takes.
  Match find(std::string_view text, size_t from) const;

  bool empty() const { return trie_.empty(); }

 private:
  Match with_space(std::string_view text, size_t from, Match match) const;

  Trie trie_;
  std::bitset<256> first_bytes_;
  std::unordered_map<TokenId, AddedToken> takers_;  // tokens that take white space
};

}  // namespace kivi
