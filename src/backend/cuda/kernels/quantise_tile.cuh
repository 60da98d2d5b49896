// Quantising rows of keys or values that are packed together (pack_tile.cuh): their groups' params go into the page,
// their codes into shared memory.
#pragma once

#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/device/warp.cuh"
#include "backend/cuda/kernels/fragment_words.h"
#include "backend/cuda/kernels/group_quantiser.h"
#include "backend/cuda/kernels/pair_bounds.h"
#include "backend/cuda/kernels/store_problem.cuh"
#include "format/quantise.h"

namespace kivi::cuda {

// Rows that are packed together: tokens first .. end - 1 of a page, of n_heads heads; row = head, then token.
struct PackTile {
  const std::byte** rows;  // where their 16-bit numbers are
  uint32_t* pairs;         // [row][pitch]: of two channels their numbers, and then their codes, in 16 bits each
  int pitch;
  std::byte* block;  // of the first head
  int block_bytes;
  int first;
  int end;
  int n_heads;

  __device__ int n_tokens() const { return end - first; }
  __device__ int n_rows() const { return n_heads * n_tokens(); }
};

// Odd multiples of 16 words: of a word's codes at most two come from one bank at a time.
constexpr int pair_pitch(int head_dim) {
  return (head_dim / 2 + 15) / 32 * 32 + 16;
}

// Keys beside their tile.
struct KeyScratch {
  GroupQuantiser* quantisers;  // [group of the tile][head_dim]
  uint4* ranges;               // [split][column]: of four channels the minima, then the maxima (KeyColumns)
  float* largest_zeros;        // [2][warp]

  __device__ KeyScratch(const PackTile& tile, int tile_rows, int n_channels, int n_columns)
      : quantisers(reinterpret_cast<GroupQuantiser*>(tile.pairs + tile_rows * tile.pitch)),
        ranges(reinterpret_cast<uint4*>(quantisers + n_channels)),
        largest_zeros(reinterpret_cast<float*>(ranges + max(n_columns, kStoreThreads))) {}
  static constexpr size_t bytes(int n_channels) {
    const int n_ranges = n_channels / 4 < kStoreThreads ? kStoreThreads : n_channels / 4;
    return n_channels * sizeof(GroupQuantiser) + n_ranges * sizeof(uint4) + 2 * kStoreWarps * sizeof(float);
  }
};

constexpr size_t pack_bytes(const format::PageLayout& layout, int tile_rows) {
  const int key_groups = layout.key_bits == 0 ? 0 : tile_rows / layout.key_group;
  return tile_rows * (sizeof(void*) + pair_pitch(layout.head_dim) * sizeof(uint32_t)) +
         KeyScratch::bytes(key_groups * layout.head_dim);
}

// ---- Quantising ----

// Number i of two.
template <typename T>
__device__ float number_of(uint32_t pair, int i) {
  return to_float(T{static_cast<uint16_t>(pair >> (16 * i))});
}

// The codes of two numbers, in 16 bits each.
template <typename T>
__device__ uint32_t codes_of(uint32_t pair, const GroupQuantiser& low, const GroupQuantiser& high, int bits) {
  return __byte_perm(low.raised_code(number_of<T>(pair, 0), bits), high.raised_code(number_of<T>(pair, 1), bits),
                     0x5410);
}

// Copies the rows into the tile.
__device__ inline void stage_rows(const StorePart& part, const PackTile& tile) {
  const int per_row = part.layout().head_dim / 8;  // pieces of 16 bytes
  const int rows_at_once = kStoreThreads / per_row;
  const auto first = static_cast<int>(threadIdx.x / static_cast<unsigned>(per_row));
  const int piece = static_cast<int>(threadIdx.x) - first * per_row;
  if (first < rows_at_once) {
#pragma unroll 4
    for (int row = first; row < tile.n_rows(); row += rows_at_once) {
      cp_async_16(tile.pairs + row * tile.pitch + piece * 4, tile.rows[row] + piece * 16);
    }
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
}

// ---- Values ----

// What the params of a group of values follow from, in a register: its smallest number, and its largest with the sign
// turned, as a pair; or its sum of squares. Parts of a group are joined pair by pair.
template <typename T, ParamFormat kParams>
struct ValueStatistic;

template <typename T>
struct ValueStatistic<T, ParamFormat::kHalf> {
  uint32_t bounds;

  static __device__ ValueStatistic of(uint2 numbers) {
    const uint32_t min = min_pair<T>(numbers.x, numbers.y);
    const uint32_t max = max_pair<T>(numbers.x, numbers.y) ^ 0x80008000U;
    return {min_pair<T>(__byte_perm(min, max, 0x5410), __byte_perm(min, max, 0x7632))};
  }
  __device__ ValueStatistic join(ValueStatistic other) const { return {min_pair<T>(bounds, other.bounds)}; }
  __device__ ValueStatistic of_lane(int distance) const { return {__shfl_xor_sync(~0U, bounds, distance)}; }
  __device__ format::GroupParams params(const StoreSide&, int bits) const {
    format::GroupRange range;
    range.min = fminf(range.min, number_of<T>(bounds, 0));  // NaN only if there is nothing else
    range.max = fmaxf(range.max, -number_of<T>(bounds, 1));
    return format::group_params(range, bits);
  }
};

template <typename T>
struct ValueStatistic<T, ParamFormat::kByte> {
  float squares;

  static __device__ ValueStatistic of(uint2 numbers) {
    const auto square = [](uint32_t pair, int i) { return format::square_of(number_of<T>(pair, i)); };
    return {(square(numbers.x, 0) + square(numbers.x, 1)) + (square(numbers.y, 0) + square(numbers.y, 1))};
  }
  __device__ ValueStatistic join(ValueStatistic other) const { return {squares + other.squares}; }
  __device__ ValueStatistic of_lane(int distance) const { return {__shfl_xor_sync(~0U, squares, distance)}; }
  __device__ uint8_t params(const StoreSide& side, int bits) const {
    return format::value_scale(squares, side.group, bits);
  }
};

__device__ inline format::GroupLine line_of_value(format::GroupParams params, int) {
  return format::line_of(params);
}
__device__ inline format::GroupLine line_of_value(uint8_t scale, int bits) {
  return format::value_line(scale, bits);
}
__device__ inline void store_params(const StoreSide& side, std::byte* block, int index, format::GroupParams params) {
  reinterpret_cast<Half*>(block + side.scales)[index] = params.scale;
  reinterpret_cast<Half*>(block + side.zeros)[index] = params.zero;
}
__device__ inline void store_params(const StoreSide& side, std::byte* block, int index, uint8_t scale) {
  block[side.scales + index] = std::byte{scale};
}

template <typename C>
__device__ void quantise_values(const StorePart& part, const PackTile& tile) {
  using T = typename C::Number;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int bits = part.side().bits;
  const int head_dim = part.layout().head_dim;
  const int lanes_per_group = part.side().group / 4;
  stage_rows(part, tile);
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x / 32); row < tile.n_rows(); row += kStoreWarps) {
    const int token = tile.first + row % tile.n_tokens();
    std::byte* block = tile.block + row / tile.n_tokens() * tile.block_bytes;
#pragma unroll 1
    for (int channel = 4 * lane; channel - 4 * lane < head_dim; channel += 128) {
      const bool inside = channel < head_dim;
      auto* pairs = reinterpret_cast<uint2*>(tile.pairs + row * tile.pitch + channel / 2);
      const uint2 numbers = inside ? *pairs : uint2{0, 0};
      auto statistic = ValueStatistic<T, C::kParams>::of(numbers);
#pragma unroll 1
      for (int distance = 1; distance < lanes_per_group; distance *= 2) {
        statistic = statistic.join(statistic.of_lane(distance));
      }
      if (!inside) continue;
      const auto params = statistic.params(part.side(), bits);
      if (lane % lanes_per_group == 0) {
        store_params(part.side(), block, part.side().value_param(part.layout(), token, channel), params);
      }
      const auto quantiser = GroupQuantiser::make(line_of_value(params, bits), bits);
      *pairs = {codes_of<T>(numbers.x, quantiser, quantiser, bits), codes_of<T>(numbers.y, quantiser, quantiser, bits)};
    }
  }
}

// ---- Keys ----

// A column is four channels of a group. Where there are fewer than threads, several threads share one: thread `split`
// of them has every `splits`-th token.
struct KeyColumns {
  static constexpr int kRowsAtOnce = 4;  // of a thread
  int per_group;
  int n;
  int splits = 1;

  __device__ KeyColumns(const StorePart& part, const PackTile& tile)
      : per_group(part.layout().head_dim / 4), n(tile.n_rows() / part.side().group * per_group) {
    while (2 * splits * n <= kStoreThreads && splits < format::kTileSpan / kRowsAtOnce) splits *= 2;
  }

  // visit(column, the first of its words in the thread's first row, split)
  template <typename Visit>
  __device__ void for_each(const PackTile& tile, int group_tokens, Visit visit) const {
    const auto thread = static_cast<int>(threadIdx.x);
    const int split = splits == 1 ? 0 : thread / n;
    if (split >= splits) return;
#pragma unroll 1
    for (int column = thread - split * n; column < n; column += kStoreThreads) {
      const int group = column / per_group;
      visit(column, tile.pairs + (group * group_tokens + split) * tile.pitch + (column - group * per_group) * 2, split);
    }
  }
};

template <typename T>
__device__ void find_key_ranges(const StorePart& part, const PackTile& tile, const KeyColumns& columns,
                                const KeyScratch& scratch) {
  const int n_rows = part.side().group / columns.splits;
  const int stride = columns.splits * tile.pitch;
  columns.for_each(tile, part.side().group, [&](int column, const uint32_t* words, int split) {
    uint2 min = *reinterpret_cast<const uint2*>(words);
    uint2 max = min;
#pragma unroll 1
    for (int row = 0; row < n_rows; row += KeyColumns::kRowsAtOnce) {
#pragma unroll
      for (int i = 0; i < KeyColumns::kRowsAtOnce; ++i) {
        const uint2 numbers = *reinterpret_cast<const uint2*>(words + (row + i) * stride);
        min = {min_pair<T>(min.x, numbers.x), min_pair<T>(min.y, numbers.y)};
        max = {max_pair<T>(max.x, numbers.x), max_pair<T>(max.y, numbers.y)};
      }
    }
    scratch.ranges[split * columns.n + column] = {min.x, min.y, max.x, max.y};
  });
}

// Of a channel of a group.
template <typename T>
__device__ format::GroupRange key_range(const KeyColumns& columns, const KeyScratch& scratch, int group, int channel) {
  format::GroupRange range;
#pragma unroll 1
  for (int split = 0; split < columns.splits; ++split) {
    const auto* bounds =
        reinterpret_cast<const T*>(&scratch.ranges[split * columns.n + group * columns.per_group + channel / 4]);
    range.min = fminf(range.min, to_float(bounds[channel % 4]));
    range.max = fmaxf(range.max, to_float(bounds[4 + channel % 4]));
  }
  return range;
}

// Where the params of a group of the tile go.
struct KeyGroup {
  std::byte* block;
  int token;  // of the page, where the group begins

  __device__ KeyGroup(const StorePart& part, const PackTile& tile, int group) {
    const int per_head = tile.n_tokens() / part.side().group;
    const int head = group / per_head;
    block = tile.block + head * tile.block_bytes;
    token = tile.first + (group - head * per_head) * part.side().group;
  }
};

template <typename T>
__device__ void set_key_params(const StorePart& part, const PackTile& tile, const KeyColumns& columns,
                               const KeyScratch& scratch) {
  const StoreSide& side = part.side();
  const int head_dim = part.layout().head_dim;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < columns.n * 4; i += kStoreThreads) {
    const int group = i / head_dim;
    const int channel = i - group * head_dim;
    const KeyGroup to(part, tile, group);
    const auto params = format::group_params(key_range<T>(columns, scratch, group, channel), side.bits);
    store_params(side, to.block, part.layout().key_param(to.token, channel), params);
    scratch.quantisers[i] = GroupQuantiser::make(format::line_of(params), side.bits);
  }
}

// The same with params in bytes: the unit of zeros is known when all channels of the head are.
template <typename T>
__device__ void set_key_params_in_units(const StorePart& part, const PackTile& tile, const KeyColumns& columns,
                                        const KeyScratch& scratch) {
  constexpr int kMostChannels = 256 / kStoreThreads;  // of a thread
  const StoreSide& side = part.side();
  const int head_dim = part.layout().head_dim;
  const auto thread = static_cast<int>(threadIdx.x);
  const int n_groups = tile.n_rows() / side.group;
#pragma unroll 1
  for (int group = 0; group < n_groups; ++group) {
    format::KeyGroupParams wanted[kMostChannels];
    float largest = 0.0F;
#pragma unroll
    for (int i = 0; i < kMostChannels; ++i) {
      const int channel = thread + i * kStoreThreads;
      if (channel >= head_dim) continue;
      wanted[i] = format::key_group_params(key_range<T>(columns, scratch, group, channel), side.bits);
      largest = fmaxf(largest, fabsf(wanted[i].zero));
    }
    largest = warp_max(largest);
    float* const of_warps = scratch.largest_zeros + group % 2 * kStoreWarps;
    if (thread % 32 == 0) of_warps[thread / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kStoreWarps; ++warp) largest = fmaxf(largest, of_warps[warp]);
    const Half unit = format::zero_unit(largest);
    const KeyGroup to(part, tile, group);
    if (thread == 0) reinterpret_cast<Half*>(to.block + side.zero_units)[to.token / side.group] = unit;
#pragma unroll
    for (int i = 0; i < kMostChannels; ++i) {
      const int channel = thread + i * kStoreThreads;
      if (channel >= head_dim) continue;
      const uint8_t zero = format::zero_to_byte(wanted[i].zero, to_float(unit));
      std::byte* param = to.block + part.layout().key_param(to.token, channel);
      param[side.scales] = std::byte{wanted[i].scale};
      param[side.zeros] = std::byte{zero};
      scratch.quantisers[group * head_dim + channel] = GroupQuantiser::make(
          {format::scale_of_byte(wanted[i].scale), format::zero_of_byte(zero, to_float(unit))}, side.bits);
    }
  }
}

template <typename C>
__device__ void quantise_keys(const StorePart& part, const PackTile& tile) {
  using T = typename C::Number;
  const int group_tokens = part.side().group;
  const int bits = part.side().bits;
  const KeyColumns columns(part, tile);
  const KeyScratch scratch(tile, part.problem.tile_rows, columns.n * 4, columns.n);
  stage_rows(part, tile);
  find_key_ranges<T>(part, tile, columns, scratch);
  __syncthreads();
  if constexpr (C::kParams == ParamFormat::kByte) {
    set_key_params_in_units<T>(part, tile, columns, scratch);
  } else {
    set_key_params<T>(part, tile, columns, scratch);
  }
  __syncthreads();
  const int n_rows = group_tokens / columns.splits;
  const int stride = columns.splits * tile.pitch;
  columns.for_each(tile, group_tokens, [&](int column, uint32_t* words, int) {
    const GroupQuantiser* of_channels = scratch.quantisers + 4 * column;
    const GroupQuantiser q[4] = {of_channels[0], of_channels[1], of_channels[2], of_channels[3]};
#pragma unroll 1
    for (int row = 0; row < n_rows; row += KeyColumns::kRowsAtOnce) {
      uint2 pairs[KeyColumns::kRowsAtOnce];
#pragma unroll
      for (int i = 0; i < KeyColumns::kRowsAtOnce; ++i)
        pairs[i] = *reinterpret_cast<const uint2*>(words + (row + i) * stride);
#pragma unroll
      for (int i = 0; i < KeyColumns::kRowsAtOnce; ++i) {
        *reinterpret_cast<uint2*>(words + (row + i) * stride) = {codes_of<T>(pairs[i].x, q[0], q[1], bits),
                                                                 codes_of<T>(pairs[i].y, q[2], q[3], bits)};
      }
    }
  });
}

}  // namespace kivi::cuda
