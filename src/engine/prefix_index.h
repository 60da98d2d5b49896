// The prefixes of prompts that stay in the cache for later requests. What is stored of tokens depends on where their
// prompt was cut into chunks (each attends to what the cache has made of those before), so a prefix is known by both:
// by its tokens and by the ends of its chunks. A later prompt with the same ones goes on from there, and has the same
// output as if it had begun anew.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/kv_cache.h"
#include "text/tokenizer.h"

namespace kivi {

class PrefixIndex {
 public:
  explicit PrefixIndex(KvCache& cache) : cache_(&cache) {}

  struct Hit {
    PrefixId id = -1;
    int64_t n_tokens = 0;
  };
  // The longest prefix of the tokens that ends with one of their chunks. It has been used now.
  std::optional<Hit> find(std::span<const TokenId> tokens, std::span<const int64_t> chunk_ends);
  // Stores what the sequence holds: the tokens up to the last of the ends. Others give way, those used longest ago
  // first; without room for it after all, it is not stored.
  void add(SequenceId sequence, std::span<const TokenId> tokens, std::span<const int64_t> chunk_ends);
  // Gives back the pages of the prefix that was used longest ago, but for `spared`; false if there is none.
  bool drop_oldest(const std::optional<Hit>& spared);
  void drop(const Hit& hit);

  int64_t size() const { return std::ssize(entries_); }

 private:
  struct Entry {
    uint64_t key = 0;
    PrefixId id = -1;
    std::vector<TokenId> tokens{};
    std::vector<int64_t> chunk_ends{};
  };
  using Entries = std::list<Entry>;

  Entries::iterator find_entry(uint64_t key, std::span<const TokenId> tokens, std::span<const int64_t> chunk_ends);
  void drop(Entries::iterator entry);

  KvCache* cache_;
  Entries entries_;  // the one that was used last is at the end
  std::unordered_map<uint64_t, Entries::iterator> by_key_;
};

}  // namespace kivi
