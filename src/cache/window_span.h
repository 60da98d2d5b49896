// The 16-bit pages that one side (keys or values) of a sequence holds between steps, and what a step changes in them:
// work that grows with the pages that come and go, not with those that stay. Pages of the window are counted from the
// end of the sinks; its last one may share the slot of its first (format/window_policy.h), and memory with it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "format/window_policy.h"

namespace kivi {

// Pages begin .. end - 1 of a row of pages.
struct PageRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
};

struct WindowSpan {
  PageRange sinks;
  PageRange window;
};

// Between steps, after n_tokens.
inline WindowSpan window_span(const format::WindowPolicy& policy, int64_t n_tokens) {
  constexpr int64_t kTokens = format::kWindowPageTokens;
  const int64_t n_sinks = std::min<int64_t>(n_tokens, policy.sinks);
  const int64_t first_stored = policy.first_stored(n_tokens);
  const int64_t sinks_end = (n_sinks + kTokens - 1) / kTokens;
  const int64_t end = n_tokens - n_sinks;
  const int64_t begin = std::min(std::max(policy.n_packed(n_tokens), first_stored - policy.sinks), end);
  const int64_t first_page = begin / kTokens;
  return {.sinks = {first_stored < n_sinks ? first_stored / kTokens : sinks_end, sinks_end},
          .window = {first_page, begin < end ? (end + kTokens - 1) / kTokens : first_page}};
}

// Whether the page of a slot stays as it is from n_tokens on: it is full, and what is in it never leaves.
inline bool is_final_slot(const format::WindowPolicy& policy, int64_t n_tokens, int32_t slot) {
  constexpr int64_t kTokens = format::kWindowPageTokens;
  if (policy.sliding_window != 0) return false;
  if (slot < policy.sink_slots()) return (slot + 1) * kTokens <= std::min<int64_t>(n_tokens, policy.sinks);
  return policy.keeps_all() && (slot + 1 - policy.sink_slots()) * kTokens <= n_tokens - policy.sinks;
}

// Slots, each with a page of memory, that a sequence of n_tokens uses.
inline int64_t n_used_slots(const format::WindowPolicy& policy, int64_t n_tokens) {
  const WindowSpan span = window_span(policy, n_tokens);
  return span.sinks.size() + std::min<int64_t>(span.window.size(), policy.most_pages(n_tokens) - policy.sink_slots());
}

// Calls visit(slot) once for each slot of pages of `after` that `before` has not. It may hold a page of `before`.
template <typename Visit>
void for_each_entering_slot(const format::WindowPolicy& policy, int32_t n_slots, const WindowSpan& before,
                            const WindowSpan& after, Visit visit) {
  for (int64_t page = std::max(before.sinks.end, after.sinks.begin); page < after.sinks.end; ++page) {
    visit(static_cast<int32_t>(page));
  }
  const int32_t ring = n_slots - policy.sink_slots();
  const int64_t begin = std::max(before.window.end, after.window.begin);
  for (int64_t page = begin; page < std::min(after.window.end, begin + ring); ++page) {
    visit(policy.sink_slots() + static_cast<int32_t>(page % ring));
  }
}

// Calls visit(slot) for the pages of `before` that `after` has not, but for those whose slot `after` uses.
template <typename Visit>
void for_each_leaving_slot(const format::WindowPolicy& policy, int32_t n_slots, const WindowSpan& before,
                           const WindowSpan& after, Visit visit) {
  for (int64_t page = before.sinks.begin; page < std::min(before.sinks.end, after.sinks.begin); ++page) {
    visit(static_cast<int32_t>(page));
  }
  const int32_t ring = n_slots - policy.sink_slots();
  const int64_t end = after.window.size() > 0 ? std::min(before.window.end, after.window.begin) : before.window.end;
  for (int64_t page = before.window.begin; page < end; ++page) {
    const int64_t next_in_slot = page + std::max<int64_t>(0, (after.window.begin - page + ring - 1) / ring) * ring;
    if (next_in_slot < after.window.end) continue;
    visit(policy.sink_slots() + static_cast<int32_t>(page % ring));
  }
}

}  // namespace kivi
