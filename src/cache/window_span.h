// The 16-bit pages that one side (keys or values) of a sequence holds between steps, and what a step changes in them:
// work that grows with the pages that come and go, not with those that stay. Pages of the window are counted from the
// end of the sinks; its last one may share the slot of its first (format/window_policy.h), and memory with it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "format/window_policy.h"

namespace kivi {

struct WindowSpan {
  int64_t n_sink_pages = 0;
  int64_t begin = 0;  // pages of the window
  int64_t end = 0;
};

// Between steps, after n_tokens.
inline WindowSpan window_span(const format::WindowPolicy& policy, int64_t n_tokens) {
  constexpr int64_t kTokens = format::kWindowPageTokens;
  const int64_t n_sinks = std::min<int64_t>(n_tokens, policy.sinks);
  const int64_t end = n_tokens - n_sinks;
  const int64_t begin = std::min(policy.n_packed(n_tokens), end);
  const int64_t first_page = begin / kTokens;
  return {(n_sinks + kTokens - 1) / kTokens, first_page, begin < end ? (end + kTokens - 1) / kTokens : first_page};
}

// Slots, each with a page of memory, that a sequence of n_tokens uses.
inline int64_t n_used_slots(const format::WindowPolicy& policy, int64_t n_tokens) {
  const WindowSpan span = window_span(policy, n_tokens);
  return span.n_sink_pages +
         std::min<int64_t>(span.end - span.begin, policy.most_pages(n_tokens) - policy.sink_slots());
}

// Calls visit(slot) once for each slot of pages of `after` that `before` has not. It may hold a page of `before`.
template <typename Visit>
void for_each_entering_slot(const format::WindowPolicy& policy, int32_t n_slots, const WindowSpan& before,
                            const WindowSpan& after, Visit visit) {
  for (int64_t page = before.n_sink_pages; page < after.n_sink_pages; ++page) visit(static_cast<int32_t>(page));
  const int32_t ring = n_slots - policy.sink_slots();
  const int64_t begin = std::max(before.end, after.begin);
  for (int64_t page = begin; page < std::min(after.end, begin + ring); ++page) {
    visit(policy.sink_slots() + static_cast<int32_t>(page % ring));
  }
}

// Calls visit(slot) for the pages of `before` that `after` has not, but for those whose slot `after` uses.
template <typename Visit>
void for_each_leaving_slot(const format::WindowPolicy& policy, int32_t n_slots, const WindowSpan& before,
                           const WindowSpan& after, Visit visit) {
  const int32_t ring = n_slots - policy.sink_slots();
  const int64_t end = after.begin < after.end ? std::min(before.end, after.begin) : before.end;
  for (int64_t page = before.begin; page < end; ++page) {
    const int64_t next_in_slot = page + std::max<int64_t>(0, (after.begin - page + ring - 1) / ring) * ring;
    if (next_in_slot < after.end) continue;
    visit(policy.sink_slots() + static_cast<int32_t>(page % ring));
  }
}

}  // namespace kivi
