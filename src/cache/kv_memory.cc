#include "cache/kv_memory.h"

#include <algorithm>

namespace kivi {
namespace {

using format::kWindowPageTokens;
using format::WindowPolicy;

// Tokens of one side that are stored.
struct StoredTokens {
  int64_t packed = 0;
  int64_t window = 0;  // sinks among them
};

StoredTokens stored_tokens(const WindowPolicy& policy, int64_t n_tokens) {
  const int64_t first = policy.first_stored(n_tokens);
  const int64_t packed = policy.sinks + policy.n_packed(n_tokens) - std::max<int64_t>(first, policy.sinks);
  return {.packed = std::max<int64_t>(0, packed), .window = n_tokens - first - std::max<int64_t>(0, packed)};
}

int64_t page_bytes(const KvShape& shape, const KvConfig& config, const LayerGroup& group, const KvPages& pages) {
  return pages[group.packed_pages()] * packed_page_bytes(shape, config, group.n_layers()) +
         pages[group.window_pages()] * window_page_bytes(shape, group.n_layers());
}

// Codes, scales and zeros of so many keys and values, of `side` numbers each.
KvMemory packed_memory(const KvShape& shape, const KvConfig& config, int64_t side, int64_t n_keys, int64_t n_values) {
  KvMemory memory;
  memory.elements = side * (n_keys + n_values);
  if (!config.is_packed()) return memory;
  const format::PageLayout layout = config.layout(shape);
  memory.codes_bytes = side * (n_keys * layout.key_bits + n_values * layout.value_bits) / 8;
  const bool half = layout.params == format::ParamFormat::kHalf;
  const int64_t key_groups = side * n_keys / layout.key_group;  // of one channel each
  memory.params_bytes = key_groups * 2 * layout.param_bytes();
  if (!half) memory.params_bytes += 2 * key_groups / layout.head_dim;  // units of zeros
  memory.params_bytes += side * n_values / layout.value_group * (half ? 4 : 1);
  return memory;
}

KvMemory group_memory(const KvShape& shape, const KvConfig& config, const LayerGroup& group, int64_t n_tokens) {
  const int64_t side = group.n_layers() * shape.n_kv_heads * shape.head_dim;  // numbers of one token's keys
  const StoredTokens keys = stored_tokens(group.keys, n_tokens);
  const StoredTokens values = stored_tokens(group.values, n_tokens);
  KvMemory memory = packed_memory(shape, config, side, keys.packed, values.packed);
  memory.elements += side * (keys.window + values.window);
  memory.window_bytes = 2 * side * (keys.window + values.window);
  const int64_t allocated = page_bytes(shape, config, group, pages_of(group, n_tokens));
  memory.slack_bytes = allocated - memory.used_bytes();

  LayerGroup unbounded = group;
  unbounded.keys.sliding_window = unbounded.values.sliding_window = 0;
  memory.dropped_tokens = std::min(group.keys.first_stored(n_tokens), group.values.first_stored(n_tokens));
  memory.dropped_bytes = page_bytes(shape, config, unbounded, pages_of(unbounded, n_tokens)) - allocated;
  return memory;
}

}  // namespace

double KvMemory::effective_bits_per_element() const {
  return elements == 0 ? 0.0 : 8.0 * static_cast<double>(used_bytes()) / static_cast<double>(elements);
}

KvMemory& KvMemory::add(const KvMemory& other, int64_t times) {
  codes_bytes += times * other.codes_bytes;
  params_bytes += times * other.params_bytes;
  window_bytes += times * other.window_bytes;
  slack_bytes += times * other.slack_bytes;
  elements += times * other.elements;
  dropped_tokens += times * other.dropped_tokens;
  dropped_bytes += times * other.dropped_bytes;
  return *this;
}

KvPages pages_of(const KvShape& shape, const KvConfig& config, int64_t n_tokens) {
  KvPages pages;
  for (const LayerGroup& group : layer_groups(shape, config)) pages += pages_of(group, n_tokens);
  return pages;
}

KvPages most_pages_of(const KvShape& shape, const KvConfig& config, int64_t n_tokens) {
  KvPages pages;
  for (const LayerGroup& group : layer_groups(shape, config)) pages += most_pages_of(group, n_tokens);
  return pages;
}

int64_t sequences_that_fit(const KvShape& shape, const KvConfig& config, int64_t n_tokens, int64_t memory_bytes) {
  const SlabLayout layout = slab_layout(shape, config);
  const KvPages each = most_pages_of(shape, config, n_tokens);
  const int64_t n_slabs = memory_bytes / layout.slab_bytes;
  auto n = static_cast<int64_t>(static_cast<double>(n_slabs) / layout.share_of_slabs(each)) + 1;
  while (layout.n_slabs(n * each) > n_slabs) --n;  // not all slabs of a kind are full
  return n;
}

int64_t packed_page_bytes(const KvShape& shape, const KvConfig& config, int64_t n_layers) {
  return config.is_packed() ? n_layers * config.layout(shape).page_bytes() : 0;
}

int64_t window_page_bytes(const KvShape& shape, int64_t n_layers) {
  return 2 * kWindowPageTokens * n_layers * shape.n_kv_heads * shape.head_dim;
}

SlabLayout slab_layout(const KvShape& shape, const KvConfig& config) {
  KvPages bytes;
  for (const LayerGroup& group : layer_groups(shape, config)) {
    bytes[group.packed_pages()] = packed_page_bytes(shape, config, group.n_layers());
    bytes[group.window_pages()] = window_page_bytes(shape, group.n_layers());
  }
  return SlabLayout::make(bytes);
}

KvMemory memory_of(const KvShape& shape, const KvConfig& config, int64_t n_tokens) {
  KvMemory memory;
  for (const LayerGroup& group : layer_groups(shape, config)) memory += group_memory(shape, config, group, n_tokens);
  return memory;
}

KvMemory memory_of_full(const KvShape& shape, const KvConfig& config, const KvPages& pages) {
  KvMemory memory;
  for (const LayerGroup& group : layer_groups(shape, config)) {
    const int64_t side = group.n_layers() * shape.n_kv_heads * shape.head_dim;  // numbers of one token's keys
    KvPages of_group;
    of_group[group.packed_pages()] = pages[group.packed_pages()];
    of_group[group.window_pages()] = pages[group.window_pages()];
    const int64_t n_packed = of_group[group.packed_pages()] * format::kPageTokens;
    const int64_t n_window = of_group[group.window_pages()] * kWindowPageTokens;
    KvMemory full = packed_memory(shape, config, side, group.keys.keeps_all() ? 0 : n_packed,
                                  group.values.keeps_all() ? 0 : n_packed);
    full.elements += side * n_window;
    full.window_bytes = 2 * side * n_window;
    full.slack_bytes = page_bytes(shape, config, group, of_group) - full.used_bytes();
    memory += full;
  }
  return memory;
}

}  // namespace kivi
