// What the kernels of store.cu are given, and which tokens a step packs and which it keeps.
#pragma once

#include "backend/cuda/kernels/kv_rows.cuh"

namespace kivi::cuda {

using format::ParamFormat;

inline constexpr int kStoreThreads = 128;
inline constexpr int kStoreWarps = kStoreThreads / 32;
inline constexpr int kPackRows = format::kPageTokens;  // at once
static_assert(kPackRows <= kStoreThreads);

// What a kernel is compiled for.
template <typename NumberType, ParamFormat kParamFormat>
struct StoreConfig {
  using Number = NumberType;
  static constexpr ParamFormat kParams = kParamFormat;
};

// One side (keys or values) of the cache.
struct StoreSide {
  RowsView new_rows;
  format::WindowPolicy policy;
  int bits;
  int group;
  int unit;   // tokens
  int codes;  // bytes from the start of a block
  int high_plane;
  int scales;
  int zeros;
  int zero_units;
  int spans_shift;  // log2 of a group's width in spans of 32 numbers

  // The index of the params of a group of values among those of its side.
  __device__ int value_param(const format::PageLayout& layout, int token, int channel) const {
    const int groups = layout.head_dim / format::kTileSpan >> spans_shift;
    const int row = token / format::kTileSpan * groups + (channel / format::kTileSpan >> spans_shift);
    return row * format::kTileSpan + token % format::kTileSpan;
  }
};

struct StoreProblem {
  format::KvBatchView cache;
  StoreSide keys;
  StoreSide values;
  const int32_t* seq_begin;
  int n_sequences;
  int block_bytes;
  bool steps;            // sequences of one new token have a kernel of their own
  int tile_rows = 0;     // that shared memory has room for
  int first_blocks = 0;  // of the first kind that the kernel has: flush blocks, or edge blocks
  int edge_heads = 0;    // KV heads of an edge block

  // Where the number of the page that has a sequence's token u is, u counted from the end of the sinks; a block in it.
  __device__ const int32_t* packed_page(int b, int u) const {
    const auto& table = cache.packed_table;
    return table.data + b * table.stride[0] + u / format::kPageTokens * table.stride[1];
  }
  __device__ std::byte* block(int page, int head) const {
    return cache.packed_pages + page * cache.packed_stride + head * block_bytes;
  }
};

// What a block works on: one side of a sequence and n_heads KV heads from `head` on.
struct StorePart {
  const StoreProblem& problem;
  Side side_kind;
  int head;
  int n_heads;
  SequenceRows sequence;

  __device__ const format::PageLayout& layout() const { return problem.cache.layout; }
  __device__ const StoreSide& side() const { return side_kind == Side::kKeys ? problem.keys : problem.values; }
  __device__ Timeline timeline(int h) const { return {side_kind, problem.cache, side().new_rows, sequence, h}; }
};

struct TokenRange {
  int begin = 0;
  int end = 0;
  __device__ int size() const { return max(end - begin, 0); }
};

// Tokens that a step packs, counted from the end of the sinks: those that leave the window and are still in sight.
__device__ inline TokenRange packed_range(const format::WindowPolicy& policy, int n_past, int n_after) {
  return {static_cast<int>(max(policy.n_packed(n_past), policy.first_stored(n_after) - policy.sinks)),
          static_cast<int>(policy.n_packed(n_after))};
}
// Whether all that is in the window leaves it with the token after n_past, where none is kept.
__device__ inline bool flushes_at(const format::WindowPolicy& policy, int n_past) {
  const int n = n_past + 1 - policy.sinks;
  return (n > 0) & (static_cast<unsigned>(n) % static_cast<unsigned>(policy.flush) == 0);
}
// New tokens that stay in 16 bits: sinks, and those of the window.
struct KeptTokens {
  TokenRange sinks;
  TokenRange window;

  KeptTokens() = default;
  __device__ KeptTokens(const format::WindowPolicy& policy, int n_past, int n_after) {
    const int first = max(n_past, static_cast<int>(policy.first_stored(n_after)));
    sinks = {first, min(n_after, policy.sinks)};
    window = {max(first, policy.sinks + static_cast<int>(policy.n_packed(n_after))), n_after};
  }
  __device__ void clip(int begin, int end) {
    sinks = {max(sinks.begin, begin), min(sinks.end, end)};
    window = {max(window.begin, begin), min(window.end, end)};
  }
  __device__ int size() const { return sinks.size() + window.size(); }
  __device__ int token(int i) const { return i < sinks.size() ? sinks.begin + i : window.begin + i - sinks.size(); }
};

__host__ __device__ constexpr int round_up(int x, int unit) {
  return (x + unit - 1) / unit * unit;
}

}  // namespace kivi::cuda
