#include "text/byte_pair.h"

#include <algorithm>
#include <bit>

#include "core/error.h"

namespace kivi {
namespace {

TokenId find_token(const Vocabulary& vocabulary, std::string_view token, std::string_view merge, size_t rank) {
  const std::optional<TokenId> id = vocabulary.find(token);
  if (!id) {
    fail(ErrorCode::kCorrupt, "merge {} '{}': token '{}' is not in the vocabulary; the model file is broken", rank,
         merge, token);
  }
  return *id;
}

}  // namespace

MergeRules::MergeRules(const Vocabulary& vocabulary, std::span<const std::string> merges)
    : slots_(std::bit_ceil(2 * merges.size() + 1)) {
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string& merge = merges[rank];
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos || space + 1 == merge.size()) {
      fail(ErrorCode::kCorrupt, "merge {} '{}': must be two tokens with a space between; the model file is broken",
           rank, merge);
    }
    const std::string_view left = std::string_view(merge).substr(0, space);
    const std::string_view right = std::string_view(merge).substr(space + 1);
    Rule rule;
    rule.left = find_token(vocabulary, left, merge, rank);
    rule.right = find_token(vocabulary, right, merge, rank);
    rule.rank = static_cast<int32_t>(rank);
    rule.merged = find_token(vocabulary, std::string(left).append(right), merge, rank);
    if (vocabulary.is_control(rule.merged)) continue;  // plain text must not become a control token
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
  return a.rule->rank != b.rule->rank ? a.rule->rank > b.rule->rank : a.node > b.node;
}

void BytePairMerger::push_candidate(int32_t node) {
  const Node& left = nodes_[static_cast<size_t>(node)];
  const MergeRules::Rule* rule = rules_->find(left.id, nodes_[static_cast<size_t>(left.next)].id);
  if (rule == nullptr) return;
  candidates_.push_back({rule, node});
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
