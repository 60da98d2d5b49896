// SentencePiece's unigram model: of all ways to spell a text with tokens, the one whose scores add up to most.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "text/trie.h"
#include "text/vocabulary.h"

namespace kivi {

class Unigram {
 public:
  // `scores` by id. Throws Error{kCorrupt} on as many scores as not tokens.
  Unigram(const Vocabulary& vocabulary, std::vector<float> scores);  // the vocabulary is kept

  // Appends the best tokens of `text`; a character that no token covers becomes what Vocabulary::append_fallback says.
  // O(n) in the text.
  void append_best(std::string_view text, std::vector<TokenId>& out) const;

 private:
  const Vocabulary* vocabulary_;
  std::vector<float> scores_;
  float unknown_score_;
  Trie trie_;
};

}  // namespace kivi
