#include "cache/kv_memory.h"

#include <algorithm>

#include "cache/window_span.h"

namespace kivi {
namespace {

using format::kPageTokens;
using format::kWindowPageTokens;
using format::WindowPolicy;

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int64_t window_tokens(const WindowPolicy& policy, int64_t n_tokens) {
  return n_tokens - policy.n_packed(n_tokens);
}

}  // namespace

double KvMemory::effective_bits_per_element() const {
  return elements == 0 ? 0.0 : 8.0 * static_cast<double>(used_bytes()) / static_cast<double>(elements);
}

KvMemory& KvMemory::operator+=(const KvMemory& other) {
  codes_bytes += other.codes_bytes;
  params_bytes += other.params_bytes;
  window_bytes += other.window_bytes;
  slack_bytes += other.slack_bytes;
  elements += other.elements;
  return *this;
}

KvPages pages_of(const KvConfig& config, int64_t n_tokens) {
  const WindowPolicy key = config.key_policy();
  const WindowPolicy value = config.value_policy();
  return {.packed = divide_up(std::max(key.n_packed(n_tokens), value.n_packed(n_tokens)), kPageTokens),
          .window = n_used_slots(key, n_tokens) + n_used_slots(value, n_tokens)};
}

KvPages most_pages_of(const KvConfig& config, int64_t n_tokens) {
  return {.packed = pages_of(config, n_tokens).packed,
          .window = config.key_policy().most_pages(n_tokens) + config.value_policy().most_pages(n_tokens)};
}

int64_t sequences_that_fit(const SlabLayout& layout, const KvConfig& config, int64_t n_tokens, int64_t memory_bytes) {
  const KvPages each = most_pages_of(config, n_tokens);
  const int64_t n_slabs = memory_bytes / layout.slab_bytes;
  auto n = static_cast<int64_t>(static_cast<double>(n_slabs) / layout.share_of_slabs(each)) + 1;
  while (layout.n_slabs({n * each.packed, n * each.window}) > n_slabs) --n;  // slabs of both kinds are not full
  return n;
}

int64_t packed_page_bytes(const KvShape& shape, const KvConfig& config) {
  return config.is_packed() ? shape.n_layers * config.layout(shape).page_bytes() : 0;
}

int64_t window_page_bytes(const KvShape& shape) {
  return int64_t{2} * kWindowPageTokens * shape.n_layers * shape.n_kv_heads * shape.head_dim;
}

SlabLayout slab_layout(const KvShape& shape, const KvConfig& config) {
  return SlabLayout::make(packed_page_bytes(shape, config), window_page_bytes(shape));
}

KvMemory memory_of(const KvShape& shape, const KvConfig& config, int64_t n_tokens) {
  const WindowPolicy key = config.key_policy();
  const WindowPolicy value = config.value_policy();
  const int64_t side = int64_t{shape.n_layers} * shape.n_kv_heads * shape.head_dim;  // numbers of one token's keys
  const int64_t packed_keys = key.n_packed(n_tokens) * side;
  const int64_t packed_values = value.n_packed(n_tokens) * side;

  KvMemory memory;
  memory.elements = n_tokens * shape.elements_per_token();
  if (config.is_packed()) {
    const format::PageLayout layout = config.layout(shape);
    memory.codes_bytes = (packed_keys * layout.key_bits + packed_values * layout.value_bits) / 8;
    memory.params_bytes = packed_keys * 4 / layout.key_group + packed_values * 4 / layout.value_group;
  }
  memory.window_bytes = 2 * side * (window_tokens(key, n_tokens) + window_tokens(value, n_tokens));
  const KvPages pages = pages_of(config, n_tokens);
  const int64_t allocated = pages.packed * packed_page_bytes(shape, config) + pages.window * window_page_bytes(shape);
  memory.slack_bytes = allocated - memory.used_bytes();
  return memory;
}

}  // namespace kivi
