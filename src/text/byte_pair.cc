#include "text/byte_pair.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <string>

#include "core/error.h"
#include "core/quoted.h"
#include "text/unicode.h"

namespace kivi {
namespace {

TokenId find_token(const Vocabulary& vocabulary, std::string_view token, const TokenizerSpec::Merge& merge,
                   size_t rank) {
  const std::optional<TokenId> id = vocabulary.find(token);
  if (!id) {
    fail(ErrorCode::kCorrupt, "merge {} {} {}: token {} is not in the vocabulary; the model file is broken", rank,
         kivi::quoted(merge.first), kivi::quoted(merge.second), kivi::quoted(token));
  }
  return *id;
}

// The place of each token among all scores, the best first; equal scores share one.
std::vector<int32_t> ranks_of(std::span<const float> scores) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  std::vector<int32_t> ranks(scores.size());
  for (size_t i = 1; i < order.size(); ++i) {
    ranks[order[i]] = ranks[order[i - 1]] + (scores[order[i]] < scores[order[i - 1]] ? 1 : 0);
  }
  return ranks;
}

}  // namespace

MergeRules::MergeRules(const Vocabulary& vocabulary, std::span<const TokenizerSpec::Merge> merges) {
  std::vector<Rule> rules;
  rules.reserve(merges.size());
  std::string merged;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    merged.assign(left).append(right);
    const Rule rule = {find_token(vocabulary, left, merges[rank], rank),
                       find_token(vocabulary, right, merges[rank], rank), static_cast<int32_t>(rank),
                       find_token(vocabulary, merged, merges[rank], rank)};
    if (!vocabulary.is_control(rule.merged)) rules.push_back(rule);
  }
  insert(rules);
}

MergeRules::MergeRules(const Vocabulary& vocabulary, std::span<const float> scores) {
  if (std::cmp_not_equal(scores.size(), vocabulary.size())) {
    fail(ErrorCode::kCorrupt, "vocabulary of {} tokens and {} scores: must be as many; the model file is broken",
         vocabulary.size(), scores.size());
  }
  const std::vector<int32_t> ranks = ranks_of(scores);
  std::vector<Rule> rules;
  for (TokenId merged = 0; merged < vocabulary.size(); ++merged) {
    if (!vocabulary.is_text(merged)) continue;
    const std::string_view token = vocabulary.token(merged);
    for (size_t at = utf8_head(token).size; at < token.size(); at += utf8_head(token.substr(at)).size) {
      const std::optional<TokenId> left = vocabulary.find(token.substr(0, at));
      if (!left || !vocabulary.is_text(*left)) continue;
      const std::optional<TokenId> right = vocabulary.find(token.substr(at));
      if (!right || !vocabulary.is_text(*right)) continue;
      rules.push_back({*left, *right, ranks[static_cast<size_t>(merged)], merged});
    }
  }
  insert(rules);
}

void MergeRules::insert(std::span<const Rule> rules) {
  slots_.assign(std::bit_ceil(2 * rules.size() + 1), Rule{});
  for (const Rule& rule : rules) {
    Rule& slot = slots_[slot_of(rule.left, rule.right)];
    if (slot.left < 0) slot = rule;  // of two rules for one pair the better one holds
  }
}

const MergeRules::Rule* MergeRules::find(TokenId left, TokenId right) const {
  const Rule& slot = slots_[slot_of(left, right)];
  return slot.left < 0 ? nullptr : &slot;
}

// The slot that holds the pair, or the empty one where it would be.
size_t MergeRules::slot_of(TokenId left, TokenId right) const {
  const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  const uint64_t hash = key * 0x9E3779B97F4A7C15u;
  const size_t mask = slots_.size() - 1;
  size_t slot = static_cast<size_t>(hash ^ hash >> 32) & mask;
  while (slots_[slot].left >= 0 && (slots_[slot].left != left || slots_[slot].right != right)) slot = (slot + 1) & mask;
  return slot;
}

std::optional<TokenizerSpec::Merge> parse_merge(std::string_view line) {
  const size_t space = line.find(' ', 1);
  if (space == std::string_view::npos || space + 1 == line.size()) return std::nullopt;
  return TokenizerSpec::Merge(line.substr(0, space), line.substr(space + 1));
}

void BytePairMerger::append_merged(std::span<const TokenId> symbols, std::vector<TokenId>& out) {
  const auto n = static_cast<int32_t>(symbols.size());
  nodes_.clear();
  candidates_.clear();
  for (int32_t i = 0; i < n; ++i) nodes_.push_back({symbols[static_cast<size_t>(i)], i - 1, i + 1 < n ? i + 1 : -1});
  for (int32_t i = 0; i + 1 < n; ++i) push_candidate(i);
  while (!candidates_.empty()) {
    const Candidate best = candidates_.front();
    std::pop_heap(candidates_.begin(), candidates_.end(), is_worse);
    candidates_.pop_back();
    apply(best);
  }
  for (int32_t i = n > 0 ? 0 : -1; i >= 0; i = nodes_[static_cast<size_t>(i)].next) {
    out.push_back(nodes_[static_cast<size_t>(i)].id);
  }
}

// The lower rank goes first; of equal ones, the one further left.
bool BytePairMerger::is_worse(const Candidate& a, const Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.node > b.node;
}

void BytePairMerger::push_candidate(int32_t node) {
  const Node& left = nodes_[static_cast<size_t>(node)];
  const MergeRules::Rule* rule = rules_->find(left.id, nodes_[static_cast<size_t>(left.next)].id);
  if (rule == nullptr) return;
  candidates_.push_back({rule->rank, node, rule});
  std::push_heap(candidates_.begin(), candidates_.end(), is_worse);
}

void BytePairMerger::apply(const Candidate& candidate) {
  Node& left = nodes_[static_cast<size_t>(candidate.node)];
  if (left.id != candidate.rule->left || left.next < 0) return;  // an earlier merge took this node
  Node& right = nodes_[static_cast<size_t>(left.next)];
  if (right.id != candidate.rule->right) return;
  left.id = candidate.rule->merged;
  left.next = right.next;
  right.id = -1;
  if (left.next >= 0) {
    nodes_[static_cast<size_t>(left.next)].previous = candidate.node;
    push_candidate(candidate.node);
  }
  if (left.previous >= 0) push_candidate(left.previous);
}

}  // namespace kivi
