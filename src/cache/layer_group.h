// Layers that keep the same tokens: all those of a model that slide, or all those that do not. The layers of a group
// share pages, a page number naming one of each, and so block tables.
#pragma once

#include <vector>

#include "cache/kv_config.h"
#include "cache/slab_layout.h"
#include "cache/window_span.h"

namespace kivi {

struct LayerGroup {
  int id = 0;
  std::vector<int> layers;  // ascending
  format::WindowPolicy keys;
  format::WindowPolicy values;

  int64_t n_layers() const { return static_cast<int64_t>(layers.size()); }
  PageKind packed_pages() const { return kivi::packed_pages(id); }
  PageKind window_pages() const { return kivi::window_pages(id); }
};

// One or two, in the order of their first layers.
std::vector<LayerGroup> layer_groups(const KvShape& shape, const KvConfig& config);

// The pages of a group that a sequence holds between steps, after n_tokens.
struct GroupSpans {
  PageRange packed;
  WindowSpan keys;
  WindowSpan values;
};
GroupSpans group_spans(const LayerGroup& group, int64_t n_tokens);

// The packed pages that a step adds, and those that it leaves behind. Attention reads these before what is packed in
// the step is stored: so memory that nobody shares goes from one to the other, and a step never needs more than it
// finds or leaves.
struct PackedChange {
  PageRange entering;
  PageRange leaving;

  PackedChange(const PageRange& before, const PageRange& after)
      : entering{std::max(before.end, after.begin), after.end},
        leaving{before.begin, std::min(before.end, after.begin)} {
    entering.end = std::max(entering.begin, entering.end);
    leaving.end = std::max(leaving.begin, leaving.end);
  }
};

// Packed pages, from the first one on, whose keys and values are all stored after n_tokens: nothing writes them again.
int64_t n_final_packed(const LayerGroup& group, int64_t n_tokens);

// Pages that a sequence of n_tokens holds between steps.
KvPages pages_of(const LayerGroup& group, int64_t n_tokens);
// Most pages that it holds at any moment until it has n_tokens, the middle of a step included.
KvPages most_pages_of(const LayerGroup& group, int64_t n_tokens);

}  // namespace kivi
