// Where the tokens of one sequence, KV head and side (keys or values) are, oldest first: sinks, packed pages, window,
// and the new tokens of the step.
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

  // Calls on_packed(PackedRows, offset) and on_half(HalfRows, offset) for the runs of tokens begin .. end - 1, in
  // order; offset is the run's first token minus begin. begin and end do not cut a packed page except at its end.
  template <typename OnPacked, typename OnHalf>
  void for_each_run(int64_t begin, int64_t end, OnPacked on_packed, OnHalf on_half) const {
    for (int64_t t = begin; t < end;) {
      int64_t n = 0;
      if (t >= policy_.sinks && t < packed_end_) {
        const int64_t u = t - policy_.sinks;
        const auto first = static_cast<int>(u % format::kPageTokens);
        n = std::min({int64_t{format::kPageTokens} - first, packed_end_ - t, end - t});
        on_packed(PackedRows{&cache_.layout, cache_.packed_block(b_, u / format::kPageTokens, head_), first,
                             static_cast<int>(n)},
                  static_cast<int>(t - begin));
      } else {
        const HalfRows rows = half_rows(t, end);
        n = rows.n;
        on_half(rows, static_cast<int>(t - begin));
      }
      t += n;
    }
  }

  // Asks for the memory of this side of the packed page or the 16-bit pages of a tile that is needed soon. Blocks of
  // one head lie a whole page of all layers apart, where no processor looks ahead by itself.
  void prefetch(int64_t begin, int64_t end) const {
    for_each_run(
        begin, end,
        [&](const PackedRows& run, int) {
          const format::PageLayout& layout = cache_.layout;
          const bool keys = side_ == Side::kKeys;
          prefetch_bytes(run.block + (keys ? layout.key_codes() : layout.value_codes()),
                         keys ? layout.value_codes() : layout.payload_bytes() - layout.value_codes());
        },
        [&](const HalfRows& run, int) {
          if (run.stride == run.head_dim) prefetch_bytes(run.data, run.n * run.stride * int64_t{sizeof(Half)});
        });
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
  static void prefetch_bytes(const void* from, int64_t n) {
    for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(static_cast<const std::byte*>(from) + i);
  }

  HalfRows half_rows(int64_t token, int64_t end) const {
    const int head_dim = cache_.layout.head_dim;
    const Half* data = half_row(token);
    if (token >= n_past_) return {data, new_stride_, static_cast<int>(end - token), head_dim};
    const int64_t region_end = token < policy_.sinks ? policy_.sinks : n_past_;
    const int64_t n = std::min(
        {int64_t{format::kWindowPageTokens} - policy_.place(token), region_end - token, n_past_ - token, end - token});
    return {data, head_dim, static_cast<int>(n), head_dim};
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
