#include "engine/prefix_index.h"

#include <algorithm>

namespace kivi {
namespace {

uint64_t mix(uint64_t key, uint64_t value) {
  key = (key ^ value) * 0x9e3779b97f4a7c15U;
  return key ^ (key >> 32);
}

// By chunk: of all tokens up to its end, and of the ends so far.
std::vector<uint64_t> keys_of(std::span<const TokenId> tokens, std::span<const int64_t> chunk_ends) {
  std::vector<uint64_t> keys;
  uint64_t key = 1;
  int64_t begin = 0;
  for (const int64_t end : chunk_ends) {
    for (; begin < end; ++begin) key = mix(key, static_cast<uint64_t>(tokens[static_cast<size_t>(begin)]));
    keys.push_back(key = mix(key, ~static_cast<uint64_t>(end)));
  }
  return keys;
}

}  // namespace

// A key says where to look; the tokens say whether it is the same.
PrefixIndex::Entries::iterator PrefixIndex::find_entry(uint64_t key, std::span<const TokenId> tokens,
                                                       std::span<const int64_t> chunk_ends) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return entries_.end();
  const Entry& entry = *found->second;
  const bool is_same = std::ranges::equal(entry.chunk_ends, chunk_ends) &&
                       std::ranges::equal(entry.tokens, tokens.first(static_cast<size_t>(chunk_ends.back())));
  return is_same ? found->second : entries_.end();
}

std::optional<PrefixIndex::Hit> PrefixIndex::find(std::span<const TokenId> tokens,
                                                  std::span<const int64_t> chunk_ends) {
  if (entries_.empty()) return std::nullopt;
  const std::vector<uint64_t> keys = keys_of(tokens, chunk_ends);
  for (size_t n = keys.size(); n > 0; --n) {
    const auto entry = find_entry(keys[n - 1], tokens, chunk_ends.first(n));
    if (entry == entries_.end()) continue;
    entries_.splice(entries_.end(), entries_, entry);
    return Hit{entry->id, std::ssize(entry->tokens)};
  }
  return std::nullopt;
}

void PrefixIndex::add(SequenceId sequence, std::span<const TokenId> tokens, std::span<const int64_t> chunk_ends) {
  const uint64_t key = keys_of(tokens, chunk_ends).back();
  if (by_key_.contains(key)) return;
  std::optional<PrefixId> id = cache_->store_prefix(sequence);
  while (!id && drop_oldest({})) id = cache_->store_prefix(sequence);
  if (!id) return;
  const auto end = tokens.begin() + chunk_ends.back();
  entries_.push_back({key, *id, {tokens.begin(), end}, {chunk_ends.begin(), chunk_ends.end()}});
  by_key_.emplace(key, std::prev(entries_.end()));
}

bool PrefixIndex::drop_oldest(const std::optional<Hit>& spared) {
  const auto entry =
      std::ranges::find_if(entries_, [&](const Entry& oldest) { return !spared || oldest.id != spared->id; });
  if (entry == entries_.end()) return false;
  drop(entry);
  return true;
}

void PrefixIndex::drop(const Hit& hit) {
  drop(std::ranges::find(entries_, hit.id, &Entry::id));
}

void PrefixIndex::drop(Entries::iterator entry) {
  cache_->drop_prefix(entry->id);
  by_key_.erase(entry->key);
  entries_.erase(entry);
}

}  // namespace kivi
