// Byte-pair merges: the pair of neighbours whose rule ranks best becomes one token, until no rule applies.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "text/vocabulary.h"

namespace kivi {

// The merge rules of a vocabulary: (left, right) -> (rank, merged). An open-addressing hash table. Plain text must not
// become a control token: rules that would make one are left out.
class MergeRules {
 public:
  struct Rule {
    TokenId left = -1, right = -1;  // left -1: an empty slot
    int32_t rank = 0;               // 0 is applied first; rules may share one
    TokenId merged = 0;
  };

  // `merges` best first. Throws Error{kCorrupt} on a rule that names a token that is not there.
  MergeRules(const Vocabulary& vocabulary, std::span<const TokenizerSpec::Merge> merges);
  // Any two tokens that spell a third; the better its score (by id), the earlier. Throws Error{kCorrupt} on as many
  // scores as not tokens.
  MergeRules(const Vocabulary& vocabulary, std::span<const float> scores);

  const Rule* find(TokenId left, TokenId right) const;  // nullptr: no rule

 private:
  void insert(std::span<const Rule> rules);
  size_t slot_of(TokenId left, TokenId right) const;

  std::vector<Rule> slots_;  // a power of two of them, at most half full
};

// A merge as files write it, "left right"; nullopt where that is not two tokens.
std::optional<TokenizerSpec::Merge> parse_merge(std::string_view line);

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
    int32_t rank, node;
    const MergeRules::Rule* rule;
  };

  static bool is_worse(const Candidate& a, const Candidate& b);
  void push_candidate(int32_t node);
  void apply(const Candidate& candidate);

  const MergeRules* rules_;
  std::vector<Node> nodes_;
  std::vector<Candidate> candidates_;  // a heap, the best in front
};

}  // namespace kivi
