#include "cache/layer_group.h"

#include <algorithm>

namespace kivi {
namespace {

using format::kPageTokens;
using format::WindowPolicy;

int64_t n_packed(const LayerGroup& group, int64_t n_tokens) {
  return std::max(group.keys.n_packed(n_tokens), group.values.n_packed(n_tokens));
}

int64_t pages_for(int64_t n_tokens) {
  return (n_tokens + kPageTokens - 1) / kPageTokens;
}

}  // namespace

std::vector<LayerGroup> layer_groups(const KvShape& shape, const KvConfig& config) {
  std::vector<LayerGroup> groups;
  for (int layer = 0; layer < shape.n_layers; ++layer) {
    const int64_t sliding_window = shape.sliding_window_of(layer);
    auto group = std::ranges::find_if(
        groups, [&](const LayerGroup& known) { return known.keys.sliding_window == sliding_window; });
    if (group == groups.end()) {
      group = groups.insert(groups.end(), {.id = static_cast<int>(groups.size()),
                                           .layers = {},
                                           .keys = config.key_policy(sliding_window),
                                           .values = config.value_policy(sliding_window)});
    }
    group->layers.push_back(layer);
  }
  return groups;
}

GroupSpans group_spans(const LayerGroup& group, int64_t n_tokens) {
  // Packed tokens leave in whole pages, those of the keys and those of the values alike.
  const WindowPolicy& packed = group.keys.keeps_all() ? group.values : group.keys;
  const int64_t end = pages_for(n_packed(group, n_tokens));
  const int64_t n_left = std::max<int64_t>(0, packed.first_stored(n_tokens) - packed.sinks);
  return {.packed = {std::min(n_left / kPageTokens, end), end},
          .keys = window_span(group.keys, n_tokens),
          .values = window_span(group.values, n_tokens)};
}

int64_t n_final_packed(const LayerGroup& group, int64_t n_tokens) {
  int64_t n = n_packed(group, n_tokens);
  for (const WindowPolicy& side : {group.keys, group.values}) {
    if (!side.keeps_all()) n = std::min(n, side.n_packed(n_tokens));
  }
  return n / kPageTokens;
}

KvPages pages_of(const LayerGroup& group, int64_t n_tokens) {
  KvPages pages;
  pages[group.packed_pages()] = group_spans(group, n_tokens).packed.size();
  pages[group.window_pages()] = n_used_slots(group.keys, n_tokens) + n_used_slots(group.values, n_tokens);
  return pages;
}

KvPages most_pages_of(const LayerGroup& group, int64_t n_tokens) {
  KvPages pages;
  int64_t packed = pages_for(n_packed(group, n_tokens));
  if (group.keys.sliding_window != 0) {
    // From the page of the oldest token that is seen, up to the newest one that is packed.
    const int64_t kept = std::min(group.keys.keep, group.values.keep);
    packed = std::min(packed, std::max<int64_t>(0, pages_for(group.keys.sliding_window - 1 + kPageTokens - 1 - kept)));
  }
  pages[group.packed_pages()] = packed;
  pages[group.window_pages()] = group.keys.most_pages(n_tokens) + group.values.most_pages(n_tokens);
  return pages;
}

}  // namespace kivi
