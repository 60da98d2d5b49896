// Exact bytes of a cache: what a sequence of some length takes, by what it is spent on.
#pragma once

#include <cstdint>

#include "cache/kv_config.h"
#include "cache/layer_group.h"

namespace kivi {

struct KvMemory {
  int64_t codes_bytes = 0;
  int64_t params_bytes = 0;  // scales and zeros
  int64_t window_bytes = 0;  // tokens in 16 bits: windows and sinks
  int64_t slack_bytes = 0;   // of its pages, empty: page ends and padding
  int64_t elements = 0;      // numbers that are stored: keys and values of all tokens that have not left
  // What layers that slide have dropped: tokens (each counted once, not in every layer), and pages of them.
  int64_t dropped_tokens = 0;
  int64_t dropped_bytes = 0;

  int64_t packed_bytes() const { return codes_bytes + params_bytes; }
  int64_t used_bytes() const { return packed_bytes() + window_bytes; }
  int64_t allocated_bytes() const { return used_bytes() + slack_bytes; }
  // Windows included, slack not. 0 without tokens.
  double effective_bits_per_element() const;

  KvMemory& operator+=(const KvMemory& other) { return add(other, 1); }
  KvMemory& operator-=(const KvMemory& other) { return add(other, -1); }

 private:
  KvMemory& add(const KvMemory& other, int64_t times);
};

// Of all groups of layers.
KvPages pages_of(const KvShape& shape, const KvConfig& config, int64_t n_tokens);
KvPages most_pages_of(const KvShape& shape, const KvConfig& config, int64_t n_tokens);

// Sequences that can all get as long as n_tokens in slabs of memory_bytes together.
int64_t sequences_that_fit(const KvShape& shape, const KvConfig& config, int64_t n_tokens, int64_t memory_bytes);

// What a sequence of n_tokens takes between steps: the pages it holds, and how full they are.
KvMemory memory_of(const KvShape& shape, const KvConfig& config, int64_t n_tokens);

// What full pages hold.
KvMemory memory_of_full(const KvShape& shape, const KvConfig& config, const KvPages& pages);

// Bytes of one page for n_layers, or for all.
int64_t packed_page_bytes(const KvShape& shape, const KvConfig& config, int64_t n_layers);
int64_t window_page_bytes(const KvShape& shape, int64_t n_layers);
inline int64_t window_page_bytes(const KvShape& shape) {
  return window_page_bytes(shape, shape.n_layers);
}
// How they share memory.
SlabLayout slab_layout(const KvShape& shape, const KvConfig& config);

}  // namespace kivi
