// Where the tokens of one sequence, KV head and side (keys or values) are, oldest first: sinks, packed pages, window,
// and the new tokens of the step. Of a layer that slides the oldest are gone: policy().first_stored(n_past()) says
// where what is left begins.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/attend_kernels.h"
#include "core/tensor_view.h"
#include "format/kv_view.h"

namespace kivi::cpu {

enum class Side : uint8_t { kKeys, kValues };

class Timeline {
 public:
  // new_rows: [N, K, D]; the sequence's new tokens are rows first_row and on.
  Timeline(Side side, const format::KvBatchView& cache, int64_t b, int head, const TensorView<const Half, 3>& new_rows,
           int64_t first_row)
      : side_(side),
        cache_(cache),
        policy_(side == Side::kKeys ? cache.key_policy : cache.value_policy),
        b_(b),
        head_(head),
        n_past_(cache.n_past(b)),
        packed_end_(policy_.window_begin(n_past_)),
        new_rows_(&new_rows(first_row, head, 0)),
        new_stride_(new_rows.stride[0]) {}

  int64_t n_past() const { return n_past_; }
  const format::WindowPolicy& policy() const { return policy_; }
  const format::KvBatchView& cache() const { return cache_; }

  // Where reading has to begin to get at a key: packed ones come in whole groups.
  int64_t group_begin(int64_t token) const {
    if (token < policy_.sinks || token >= packed_end_) return token;
    return token - (token - policy_.sinks) % cache_.layout.key_group;
  }

  // Calls on_packed(PackedRows, offset) and on_half(HalfRows, offset) for the runs of tokens begin .. end - 1, in
  // order; offset is the run's first token minus begin. All are sinks or all are in one page; begin cuts no group of
  // packed keys.
  template <typename OnPacked, typename OnHalf>
  void for_each_run(int64_t begin, int64_t end, OnPacked on_packed, OnHalf on_half) const {
    for (int64_t t = begin; t < end;) {
      int64_t n = 0;
      if (t >= policy_.sinks && t < packed_end_) {
        const int64_t u = t - policy_.sinks;
        const auto first = static_cast<int>(u % format::kPageTokens);
        n = std::min({int64_t{format::kPageTokens} - first, packed_end_ - t, end - t});
        const int64_t page = u / format::kPageTokens;
        on_packed(PackedRows{&cache_.layout, packed_block(page), first, static_cast<int>(n), side_of_page(page + 1)},
                  static_cast<int>(t - begin));
      } else {
        const HalfRows rows = half_rows(t, end);
        n = rows.n;
        on_half(rows, static_cast<int>(t - begin));
      }
      t += n;
    }
  }

  // One token's 16-bit row: a sink, a token of the window, or a new one.
  const Half* half_row(int64_t token) const {
    if (token >= n_past_) return new_rows_ + (token - n_past_) * new_stride_;
    return reinterpret_cast<const Half*>(window_row(token));
  }
  std::byte* window_row(int64_t token) const {
    return side_ == Side::kKeys ? cache_.key_row(b_, token, head_) : cache_.value_row(b_, token, head_);
  }
  std::byte* packed_block(int64_t page) const { return cache_.packed_block(b_, page, head_); }

 private:
  // Codes, scales and zeros of this side; empty if nothing is packed in that page.
  ByteRange side_of_page(int64_t page) const {
    if (policy_.sinks + page * format::kPageTokens >= packed_end_) return {};
    const format::PageLayout& layout = cache_.layout;
    const std::byte* block = packed_block(page);
    if (side_ == Side::kKeys) return {block, layout.value_codes()};
    return {block + layout.value_codes(), layout.payload_bytes() - layout.value_codes()};
  }

  HalfRows half_rows(int64_t token, int64_t end) const {
    const int head_dim = cache_.layout.head_dim;
    const Half* data = half_row(token);
    if (token >= n_past_) return {data, new_stride_, static_cast<int>(end - token), head_dim, {}};
    const int64_t region_end = token < policy_.sinks ? policy_.sinks : n_past_;
    const int64_t n = std::min(
        {int64_t{format::kWindowPageTokens} - policy_.place(token), region_end - token, n_past_ - token, end - token});
    ByteRange next;
    if (token >= policy_.sinks && token + kTile + n <= n_past_) {
      next = {window_row(token + kTile), n * head_dim * int64_t{sizeof(Half)}};
    }
    return {data, head_dim, static_cast<int>(n), head_dim, next};
  }

  Side side_;
  const format::KvBatchView& cache_;
  const format::WindowPolicy& policy_;
  int64_t b_;
  int head_;
  int64_t n_past_;
  int64_t packed_end_;
  const Half* new_rows_;
  int64_t new_stride_;
};

}  // namespace kivi::cpu
