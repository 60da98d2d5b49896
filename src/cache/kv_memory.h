// Exact bytes of a cache: what a sequence of some length takes, by what it is spent on.
#pragma once

#include <cstdint>

#include "cache/kv_config.h"
#include "cache/slab_layout.h"

namespace kivi {

struct KvMemory {
  int64_t codes_bytes = 0;
  int64_t params_bytes = 0;  // scales and zeros
  int64_t window_bytes = 0;  // tokens in 16 bits: windows and sinks
  int64_t slack_bytes = 0;   // of its pages, empty: page ends and padding
  int64_t elements = 0;      // cached numbers: keys and values of all tokens

  int64_t packed_bytes() const { return codes_bytes + params_bytes; }
  int64_t used_bytes() const { return packed_bytes() + window_bytes; }
  int64_t allocated_bytes() const { return used_bytes() + slack_bytes; }
  // Windows included, slack not. 0 without tokens.
  double effective_bits_per_element() const;

  KvMemory& operator+=(const KvMemory& other);
};

// Pages that a sequence of n_tokens holds between steps.
KvPages pages_of(const KvConfig& config, int64_t n_tokens);

// Most pages that a sequence holds at any moment until it has n_tokens, the middle of a step included.
KvPages most_pages_of(const KvConfig& config, int64_t n_tokens);

// Sequences that can all get as long as n_tokens in slabs of memory_bytes together.
int64_t sequences_that_fit(const SlabLayout& layout, const KvConfig& config, int64_t n_tokens, int64_t memory_bytes);

// What a sequence of n_tokens takes between steps: the pages it holds, and how full they are.
KvMemory memory_of(const KvShape& shape, const KvConfig& config, int64_t n_tokens);

// Bytes of one page for all layers.
int64_t packed_page_bytes(const KvShape& shape, const KvConfig& config);
int64_t window_page_bytes(const KvShape& shape);
// How they share memory.
SlabLayout slab_layout(const KvShape& shape, const KvConfig& config);

}  // namespace kivi
