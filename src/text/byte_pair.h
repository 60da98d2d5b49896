// Byte-pair merges: the pair of neighbours whose rule ranks best becomes one token, until no rule applies.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "text/vocabulary.h"

namespace kivi {

// The merge rules of a vocabulary: (left, right) -> (rank, merged). An open-addressing hash table.
class MergeRules {
 public:
  struct Rule {
    TokenId left = -1, right = -1;  // left -1: an empty slot
    int32_t rank = 0;               // 0 is applied first
    TokenId merged = 0;
  };

  // `merges` as "left right", best first. Throws Error{kCorrupt} on a rule that names a token that is not there.
  MergeRules(const Vocabulary& vocabulary, std::span<const std::string> merges);

  const Rule* find(TokenId left, TokenId right) const;  // nullptr: no rule

 private:
  size_t slot_of(TokenId left, TokenId right) const;

  std::vector<Rule> slots_;  // a power of two of them, at most half full
};

// Applies merge rules; holds the scratch memory, so one per thread. O(n log n) in the symbols of a piece.
class BytePairMerger {
 public:
  explicit BytePairMerger(const MergeRules& rules) : rules_(&rules) {}

  // Merges `symbols`, at most 2^31-1, and appends the result to `out`.
  void append_merged(std::span<const TokenId> symbols, std::vector<TokenId>& out);

 private:
  // The tokens of a piece, as a list: a merge keeps the left node and unlinks the right one.
  struct Node {
    TokenId id;              // -1: unlinked
    int32_t previous, next;  // -1: none
  };
  // A rule that applies to a node and its next, or did when it was pushed.
  struct Candidate {
    const MergeRules::Rule* rule;
    int32_t node;
  };

  static bool is_worse(const Candidate& a, const Candidate& b);
  void push_candidate(int32_t node);
  void apply(const Candidate& candidate);

  const MergeRules* rules_;
  std::vector<Node> nodes_;
  std::vector<Candidate> candidates_;  // a heap, the best in front
};

}  // namespace kivi
