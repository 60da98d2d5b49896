// How device code finds the rows of a step: which sequence a row belongs to, and where the 16-bit rows and the packed
// blocks of a sequence's tokens are. Lengths and tables are read where they are used, on the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "core/error.h"
#include "core/tensor_view.h"
#include "format/kv_view.h"

namespace kivi::cuda {

enum class Side : uint8_t { kKeys, kValues };

// Rows [N, heads, D] of 16 bits; strides in bytes.
struct RowsView {
  std::byte* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;

  __device__ std::byte* at(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

inline RowsView rows_view(const AnyView& rows) {
  const auto element = static_cast<int64_t>(size_bytes(rows.dtype));
  return {static_cast<std::byte*>(rows.data), rows.stride[0] * element, rows.stride[1] * element};
}

// Kernels move 16 bytes at a time. Throws Error{kInternal} where pages do not begin at multiples of that.
inline void require_aligned_pages(const format::KvBatchView& cache) {
  for (const int64_t at : {reinterpret_cast<int64_t>(cache.packed_pages), reinterpret_cast<int64_t>(cache.window_pages),
                           cache.packed_stride, cache.window_stride}) {
    if (at % 16 != 0) fail(ErrorCode::kInternal, "pages of the KV cache must begin at multiples of 16 bytes");
  }
}

// A sequence's part of the step.
struct SequenceRows {
  int b;
  int first_row;
  int n_new;
  int n_past;
};

__device__ inline SequenceRows sequence_rows(const format::KvBatchView& cache, const int32_t* seq_begin, int b) {
  const int first = seq_begin[b];
  return {b, first, seq_begin[b + 1] - first, cache.n_past.data[b * cache.n_past.stride[0]]};
}

// The last b < n with key(b) <= x, or 0; key does not fall. One warp searches, all its lanes, in two looks up to
// n = 1024.
template <typename Key>
__device__ int last_at_most(int n, int x, Key key) {
  int low = 0;
  int high = n;
  while (high - low > 1) {
    const int step = (high - low + 31) / 32;
    const int probe = low + static_cast<int>(threadIdx.x % 32) * step;
    const unsigned at_most = __ballot_sync(~0U, probe < high && key(probe) <= x);
    low += (at_most == 0 ? 0 : __popc(at_most) - 1) * step;
    high = min(low + step, high);
  }
  return low;
}

// Where a row of the window is, once its page is read. As KvBatchView's key_row and value_row, with numbers of tokens
// in 32 bits, and without branches: so several pages are read at once.
struct WindowPlace {
  const int32_t* page;
  int offset;  // bytes from the start of the page

  __device__ WindowPlace(const format::KvBatchView& cache, Side side, int b, int token, int head) {
    const auto& table = side == Side::kKeys ? cache.key_window_table : cache.value_window_table;
    const format::WindowPolicy& policy = side == Side::kKeys ? cache.key_policy : cache.value_policy;
    constexpr unsigned kPlaces = format::kWindowPageTokens;
    const bool sink = token < policy.sinks;
    const auto at = static_cast<unsigned>(sink ? token : token - policy.sinks);
    const auto first = static_cast<unsigned>(policy.sink_slots());
    const unsigned in_ring = first + at / kPlaces % (static_cast<unsigned>(table.shape[1]) - first);
    const unsigned slot = sink ? at / kPlaces : in_ring;
    page = table.data + b * table.stride[0] + slot * table.stride[1];
    offset = (head * static_cast<int>(kPlaces) + static_cast<int>(at % kPlaces)) * 2 * cache.layout.head_dim;
  }
  __device__ std::byte* row(const format::KvBatchView& cache, int page_number) const {
    return cache.window_pages + page_number * cache.window_stride + offset;
  }
};

// One side of one sequence and KV head.
class Timeline {
 public:
  __device__ Timeline(Side side, const format::KvBatchView& cache, const RowsView& new_rows,
                      const SequenceRows& sequence, int head)
      : cache_(cache),
        side_(side),
        b_(sequence.b),
        head_(head),
        n_past_(sequence.n_past),
        new_rows_(new_rows.at(sequence.first_row, head)),
        new_stride_(new_rows.row_stride) {}

  // The 16-bit row of a sink or of a token of the window, stored or to be stored.
  __device__ std::byte* window_row(int token) const {
    const WindowPlace place(cache_, side_, b_, token, head_);
    return place.row(cache_, *place.page);
  }
  __device__ int64_t new_stride() const { return new_stride_; }  // bytes
  __device__ const std::byte* new_row(int token) const { return new_rows_ + (token - n_past_) * new_stride_; }
  // Where the 16-bit numbers of a token are before this step is stored.
  __device__ const std::byte* row(int token) const { return token < n_past_ ? window_row(token) : new_row(token); }
  // The packed block of token u, counted from the end of the sinks.
  __device__ std::byte* block(int u) const { return cache_.packed_block(b_, u / format::kPageTokens, head_); }

 private:
  const format::KvBatchView& cache_;
  Side side_;
  int b_;
  int head_;
  int n_past_;
  const std::byte* new_rows_;
  int64_t new_stride_;
};

}  // namespace kivi::cuda
