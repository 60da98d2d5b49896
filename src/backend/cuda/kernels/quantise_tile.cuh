// Quantising rows of keys or values that are packed together (pack_tile.cuh): their groups' params go into the page,
// their codes into shared memory.
#pragma once

#include <type_traits>

#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/device/warp.cuh"
#include "backend/cuda/kernels/fragment_words.h"
#include "backend/cuda/kernels/kv_rows.cuh"
#include "format/quantise.h"

namespace kivi::cuda {

using format::ParamFormat;

inline constexpr int kStoreThreads = 128;
inline constexpr int kStoreWarps = kStoreThreads / 32;
inline constexpr int kPackRows = format::kPageTokens;  // at once
static_assert(kPackRows <= kStoreThreads);

// What a kernel is compiled for. kHighPlane: codes of a side may have 3 bits.
template <typename NumberType, ParamFormat kParamFormat, bool kHigh>
struct StoreConfig {
  using Number = NumberType;
  static constexpr ParamFormat kParams = kParamFormat;
  static constexpr bool kHighPlane = kHigh;
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
};

struct StoreProblem {
  format::KvBatchView cache;
  StoreSide keys;
  StoreSide values;
  const int32_t* seq_begin;
  int n_sequences;
  int block_bytes;
  int edge_heads;  // KV heads of an edge block
  // Blocks of each kind, in the order of the grid; bulk blocks come last.
  int flush_blocks = 0;
  int token_blocks = 0;  // 0: edge and bulk blocks store sequences of one new token, too
  int edge_blocks = 0;   // of values, then as many of keys
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
  int begin;
  int end;
  __device__ int size() const { return max(end - begin, 0); }
};

// Tokens that a step packs, counted from the end of the sinks: those that leave the window and are still in sight.
__device__ inline TokenRange packed_range(const format::WindowPolicy& policy, int n_past, int n_after) {
  return {static_cast<int>(max(policy.n_packed(n_past), policy.first_stored(n_after) - policy.sinks)),
          static_cast<int>(policy.n_packed(n_after))};
}
// New tokens that stay in 16 bits: sinks, and those of the window.
struct KeptTokens {
  TokenRange sinks;
  TokenRange window;

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

// Rows that are packed together: tokens first .. end - 1 of a page, of n_heads heads; row = head, then token.
struct PackTile {
  const std::byte** rows;  // where their 16-bit numbers are
  uint8_t* codes;          // [row][pitch]
  int pitch;               // four more than head_dim, so that words of several rows come from several banks
  std::byte* block;        // of the first head
  int block_bytes;
  int first;
  int end;
  int n_heads;

  __device__ int n_tokens() const { return end - first; }
  __device__ int n_rows() const { return n_heads * n_tokens(); }
};

constexpr int code_pitch(int head_dim) {
  return head_dim + 4;
}
// Between two passes over keys whose zeros have a common unit.
struct KeyScratch {
  format::KeyGroupParams* params;  // [group of the tile][head_dim]
  float* largest_zeros;            // [group of the tile][head_dim / 32]

  __device__ KeyScratch(const PackTile& tile, int n_groups, int head_dim)
      : params(reinterpret_cast<format::KeyGroupParams*>(tile.codes + kPackRows * tile.pitch)),
        largest_zeros(reinterpret_cast<float*>(params + n_groups * head_dim)) {}
  static constexpr size_t bytes(int n_groups, int head_dim) {
    return n_groups * (head_dim * sizeof(format::KeyGroupParams) + head_dim / 32 * sizeof(float));
  }
};

constexpr size_t pack_bytes(const format::PageLayout& layout) {
  const bool two_passes = layout.params == ParamFormat::kByte && layout.key_bits != 0;
  return kPackRows * (sizeof(void*) + code_pitch(layout.head_dim)) +
         (two_passes ? KeyScratch::bytes(kPackRows / layout.key_group, layout.head_dim) : 0);
}

// ---- Quantising ----

// Number i of two.
template <typename T>
__device__ float number_of(uint32_t pair, int i) {
  return to_float(T{static_cast<uint16_t>(pair >> (16 * i))});
}

// n consecutive 16-bit numbers, n 2 or 4, as floats.
template <typename T, int n>
__device__ void load_numbers(const std::byte* from, float (&x)[n]) {
  using Raw = std::conditional_t<n == 2, uint32_t, uint2>;
  const Raw raw = *reinterpret_cast<const Raw*>(from);
  const auto* words = reinterpret_cast<const uint32_t*>(&raw);
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] = number_of<T>(words[i / 2], i % 2);
}

__device__ inline void add(format::GroupRange& range, float x) {
  range.min = fminf(range.min, x);
  range.max = fmaxf(range.max, x);
}
__device__ inline format::GroupRange join(const format::GroupRange& a, const format::GroupRange& b) {
  return {fminf(a.min, b.min), fmaxf(a.max, b.max)};
}
// This lane's range, and that of the lane `distance` away.
__device__ inline format::GroupRange merge(const format::GroupRange& range, int distance) {
  return join(range, {__shfl_xor_sync(~0U, range.min, distance), __shfl_xor_sync(~0U, range.max, distance)});
}

// ---- Values ----

// What the params of a group of values follow from: its range, or its sum of squares. Parts of a group are joined pair
// by pair.
struct SquareSum {
  float sum = 0.0F;
};
template <ParamFormat kParams>
using ValueStatistic = std::conditional_t<kParams == ParamFormat::kHalf, format::GroupRange, SquareSum>;

__device__ inline void set_statistic(format::GroupRange& range, const float (&x)[4]) {
  range = {};
#pragma unroll
  for (const float number : x) add(range, number);
}
__device__ inline void set_statistic(SquareSum& squares, const float (&x)[4]) {
  squares.sum =
      (format::square_of(x[0]) + format::square_of(x[1])) + (format::square_of(x[2]) + format::square_of(x[3]));
}
__device__ inline SquareSum join(SquareSum a, SquareSum b) {
  return {a.sum + b.sum};
}
__device__ inline SquareSum merge(SquareSum squares, int distance) {
  return join(squares, {__shfl_xor_sync(~0U, squares.sum, distance)});
}

__device__ inline format::GroupParams value_params(const format::GroupRange& range, const StoreSide& side) {
  return format::group_params(range, side.bits);
}
__device__ inline uint8_t value_params(SquareSum squares, const StoreSide& side) {
  return format::value_scale(squares.sum, side.group, side.bits);
}
__device__ inline format::GroupLine line_of(format::GroupParams params) {
  return {to_float(params.scale), to_float(params.zero)};
}
__device__ inline format::GroupLine line_of_value(format::GroupParams params, int) {
  return line_of(params);
}
__device__ inline format::GroupLine line_of_value(uint8_t scale, int bits) {
  return format::value_line(scale, bits);
}
__device__ inline void store_params(const StoreSide& side, std::byte* block, int64_t index,
                                    format::GroupParams params) {
  reinterpret_cast<Half*>(block + side.scales)[index] = params.scale;
  reinterpret_cast<Half*>(block + side.zeros)[index] = params.zero;
}
__device__ inline void store_params(const StoreSide& side, std::byte* block, int64_t index, uint8_t scale) {
  block[side.scales + index] = std::byte{scale};
}

template <typename C>
__device__ void quantise_values(const StorePart& part, const PackTile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int bits = part.side().bits;
  const int head_dim = part.layout().head_dim;
  const int lanes_per_group = part.side().group / 4;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / 32; row < tile.n_rows(); row += kStoreWarps) {
    const int token = tile.first + row % tile.n_tokens();
    std::byte* block = tile.block + row / tile.n_tokens() * tile.block_bytes;
#pragma unroll 1
    for (int channel = 4 * lane; channel - 4 * lane < head_dim; channel += 128) {
      const bool inside = channel < head_dim;
      float x[4] = {};
      ValueStatistic<C::kParams> statistic;
      if (inside) {
        load_numbers<typename C::Number>(tile.rows[row] + channel * 2, x);
        set_statistic(statistic, x);
      }
#pragma unroll 1
      for (int distance = 1; distance < lanes_per_group; distance *= 2) statistic = merge(statistic, distance);
      if (!inside) continue;
      const auto params = value_params(statistic, part.side());
      if (lane % lanes_per_group == 0) {
        store_params(part.side(), block, part.layout().value_param(token, channel), params);
      }
      const format::GroupLine line = line_of_value(params, bits);
      uint32_t codes = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) codes |= format::quantise(x[i], line.scale, line.zero, bits) << (8 * i);
      *reinterpret_cast<uint32_t*>(tile.codes + row * tile.pitch + channel) = codes;
    }
  }
}

// ---- Keys ----

// What a warp does at a time: 32 channels of a group, two of a lane, and of these every token of a half.
struct KeyJob {
  int index;  // of the tile
  int group;  // of the tile
  int channel;
  int first_row;

  __device__ std::byte* block(const StorePart& part, const PackTile& tile) const {
    return tile.block + group / (tile.n_tokens() / part.side().group) * tile.block_bytes;
  }
  // Of the page, where the group begins.
  __device__ int token(const StorePart& part, const PackTile& tile) const {
    const int group_tokens = part.side().group;
    return tile.first + group % (tile.n_tokens() / group_tokens) * group_tokens;
  }
  __device__ bool stores() const { return threadIdx.x % 32 < 16; }  // of the two lanes with the same channels one does
};

template <typename Visit>
__device__ void for_each_key_job(const StorePart& part, const PackTile& tile, Visit visit) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group_tokens = part.side().group;
  const int jobs_per_group = part.layout().head_dim / 32;
  const int n_jobs = tile.n_rows() / group_tokens * jobs_per_group;
#pragma unroll 1
  for (int job = static_cast<int>(threadIdx.x) / 32; job < n_jobs; job += kStoreWarps) {
    const int group = job / jobs_per_group;
    visit(KeyJob{job, group, job % jobs_per_group * 32 + lane % 16 * 2,
                 group * group_tokens + lane / 16 * (group_tokens / 2)});
  }
}

// Of all tokens of the group, of both channels.
template <typename T>
__device__ void find_ranges(const PackTile& tile, const KeyJob& job, int n_rows, format::GroupRange (&ranges)[2]) {
#pragma unroll 8
  for (int t = 0; t < n_rows; ++t) {
    float x[2];
    load_numbers<T>(tile.rows[job.first_row + t] + job.channel * 2, x);
    add(ranges[0], x[0]);
    add(ranges[1], x[1]);
  }
#pragma unroll
  for (format::GroupRange& range : ranges) range = merge(range, 16);
}

template <typename T>
__device__ void write_codes(const PackTile& tile, const KeyJob& job, int n_rows, const format::GroupLine (&lines)[2],
                            int bits) {
#pragma unroll 4
  for (int t = 0; t < n_rows; ++t) {
    float x[2];
    load_numbers<T>(tile.rows[job.first_row + t] + job.channel * 2, x);
    const uint32_t codes = format::quantise(x[0], lines[0].scale, lines[0].zero, bits) |
                           format::quantise(x[1], lines[1].scale, lines[1].zero, bits) << 8;
    *reinterpret_cast<uint16_t*>(tile.codes + (job.first_row + t) * tile.pitch + job.channel) =
        static_cast<uint16_t>(codes);
  }
}

template <typename T>
__device__ void quantise_keys(const StorePart& part, const PackTile& tile) {
  const int bits = part.side().bits;
  const int n_rows = part.side().group / 2;
  for_each_key_job(part, tile, [&](const KeyJob& job) {
    format::GroupRange ranges[2];
    find_ranges<T>(tile, job, n_rows, ranges);
    format::GroupLine lines[2];
    std::byte* block = job.block(part, tile);
    const int token = job.token(part, tile);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const format::GroupParams params = format::group_params(ranges[i], bits);
      if (job.stores()) store_params(part.side(), block, part.layout().key_param(token, job.channel + i), params);
      lines[i] = line_of(params);
    }
    write_codes<T>(tile, job, n_rows, lines, bits);
  });
}

// The same with params in bytes: the unit of zeros is known when all channels of the head are.
template <typename T>
__device__ void quantise_keys_in_units(const StorePart& part, const PackTile& tile) {
  const StoreSide& side = part.side();
  const int head_dim = part.layout().head_dim;
  const KeyScratch scratch(tile, tile.n_rows() / side.group, head_dim);
  for_each_key_job(part, tile, [&](const KeyJob& job) {
    format::GroupRange ranges[2];
    find_ranges<T>(tile, job, side.group / 2, ranges);
    float largest = 0.0F;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const format::KeyGroupParams params = format::key_group_params(ranges[i], side.bits);
      if (job.stores()) scratch.params[job.group * head_dim + job.channel + i] = params;
      largest = fmaxf(largest, fabsf(params.zero));
    }
    largest = warp_max(largest);
    if (threadIdx.x % 32 == 0) scratch.largest_zeros[job.index] = largest;
  });
  __syncthreads();
  for_each_key_job(part, tile, [&](const KeyJob& job) {
    const int jobs_per_group = head_dim / 32;
    const int some_job = static_cast<int>(threadIdx.x) % 32 % jobs_per_group;
    const Half unit = format::zero_unit(warp_max(scratch.largest_zeros[job.group * jobs_per_group + some_job]));
    format::GroupLine lines[2];
    uint32_t scales = 0;
    uint32_t zeros = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const format::KeyGroupParams params = scratch.params[job.group * head_dim + job.channel + i];
      const uint8_t zero = format::zero_to_byte(params.zero, to_float(unit));
      scales |= uint32_t{params.scale} << (8 * i);
      zeros |= uint32_t{zero} << (8 * i);
      lines[i] = {format::scale_of_byte(params.scale), format::zero_of_byte(zero, to_float(unit))};
    }
    if (job.stores()) {
      const int token = job.token(part, tile);
      std::byte* block = job.block(part, tile);
      std::byte* to = block + part.layout().key_param(token, job.channel);
      *reinterpret_cast<uint16_t*>(to + side.scales) = static_cast<uint16_t>(scales);
      *reinterpret_cast<uint16_t*>(to + side.zeros) = static_cast<uint16_t>(zeros);
      if (job.channel == 0) reinterpret_cast<Half*>(block + side.zero_units)[token / side.group] = unit;
    }
    write_codes<T>(tile, job, side.group / 2, lines, side.bits);
  });
}

}  // namespace kivi::cuda
