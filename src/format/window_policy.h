// Which tokens are packed, which are in 16 bits and which are gone: a pure function of the number of tokens, so that
// history (one token at a time, a long prompt, several turns) does not matter, and the host and the device agree
// without talking.
//
// Of n tokens counted from the end of the sinks, the newest stay in 16 bits: never fewer than `keep` of them, and
// packed `flush` at a time. The paper's keys: keep 0, flush R. The paper's values: keep R, flush 1.
//   0 .. sinks          16 bits, for ever
//   .. + n_packed       packed, in pages
//   .. n_tokens         16 bits: the window
//
// In a layer that slides, a token attends to the newest `sliding_window` tokens, itself among them. What no later token
// sees leaves the cache, whether sink, packed or in 16 bits: where a side is packed in whole packed pages, so that
// groups stay whole; where it never is, token by token. first_stored() says where what is left begins.
#pragma once

#include <cstdint>
#include <limits>

#include "core/host_device.h"
#include "format/page_layout.h"

namespace kivi::format {

// Tokens in a 16-bit page: one layer, one side (keys or values), [KV head][kWindowPageTokens][head_dim].
inline constexpr int kWindowPageTokens = 16;

struct WindowPolicy {
  static constexpr int32_t kKeepAll = std::numeric_limits<int32_t>::max() / 4;

  int32_t sinks = 0;
  int32_t keep = kKeepAll;
  int32_t flush = 1;
  int32_t sliding_window = 0;  // 0: all tokens are seen, and stay

  friend constexpr bool operator==(const WindowPolicy&, const WindowPolicy&) = default;

  KIVI_HD constexpr bool keeps_all() const { return keep == kKeepAll; }

  // The first token that the token at `position` attends to.
  KIVI_HD constexpr int64_t first_seen(int64_t position) const {
    return sliding_window == 0 || position < sliding_window ? 0 : position - sliding_window + 1;
  }
  // The first token that is stored once `n_tokens` are: with it, all that a later token sees.
  KIVI_HD constexpr int64_t first_stored(int64_t n_tokens) const {
    const int64_t seen = first_seen(n_tokens);
    return keeps_all() || seen <= sinks ? seen : seen - (seen - sinks) % kPageTokens;
  }

  // Packed tokens after `n_tokens` tokens (sinks included) have been stored, those that have left among them.
  KIVI_HD constexpr int64_t n_packed(int64_t n_tokens) const {
    const int64_t n = n_tokens - sinks;
    if (n < int64_t{keep} + flush) return 0;
    // Divided in 32 bits, here and below: a GPU does that several times as fast, and sequences are not that long.
    return static_cast<uint32_t>(n - keep) / static_cast<uint32_t>(flush) * int64_t{flush};
  }
  // The first token of the window; in a layer that slides it may have left.
  KIVI_HD constexpr int64_t window_begin(int64_t n_tokens) const {
    const int64_t begin = sinks + n_packed(n_tokens);
    return begin < n_tokens ? begin : n_tokens;
  }

  // 16-bit pages are reached through a row of slots: first those of the sinks, then a ring of `ring` slots.
  KIVI_HD constexpr int32_t sink_slots() const { return (sinks + kWindowPageTokens - 1) / kWindowPageTokens; }
  // Pages of the sinks and, at most, of the window between steps, of a sequence of up to max_tokens. Two pages of
  // tokens may share a slot: they have tokens in different places of it, for there are never more tokens than places.
  KIVI_HD constexpr int32_t most_pages(int64_t max_tokens) const {
    const int64_t all = (max_tokens - sinks + kWindowPageTokens - 1) / kWindowPageTokens;
    int64_t most_tokens = int64_t{keep} + flush - 1;
    const int64_t most_unseen = keeps_all() ? 0 : kPageTokens - 1;
    if (sliding_window != 0 && most_tokens > sliding_window - 1 + most_unseen)
      most_tokens = sliding_window - 1 + most_unseen;
    const int64_t window = (most_tokens + kWindowPageTokens - 1) / kWindowPageTokens;
    const int64_t pages = window < all ? window : all;
    return sink_slots() + static_cast<int32_t>(pages > 0 ? pages : 0);
  }
  // Width of a row that serves sequences of up to max_tokens.
  KIVI_HD constexpr int32_t n_slots(int64_t max_tokens) const {
    const int32_t pages = most_pages(max_tokens);
    return pages > sink_slots() ? pages : sink_slots() + 1;
  }

  // Slot of a token that is in 16 bits, in a row of n_slots slots, and its place in that slot's page.
  KIVI_HD constexpr int32_t slot(int64_t token, int32_t slots) const {
    if (token < sinks) return static_cast<int32_t>(token / kWindowPageTokens);
    const auto page = static_cast<uint32_t>((token - sinks) / kWindowPageTokens);
    return sink_slots() + static_cast<int32_t>(page % static_cast<uint32_t>(slots - sink_slots()));
  }
  KIVI_HD constexpr int32_t place(int64_t token) const {
    return static_cast<int32_t>((token < sinks ? token : token - sinks) % kWindowPageTokens);
  }
};

}  // namespace kivi::format
