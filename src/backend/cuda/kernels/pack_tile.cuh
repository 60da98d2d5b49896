// Packing rows of keys or values into pages: the rows that one block of store.cu packs together.
//   shared memory   pointers to the rows (1 KiB), codes as bytes [row][head_dim + 4] (17 KiB for head_dim 128)
//   keys            a warp has 32 channels of a group: a lane two channels and half the tokens, read twice
//   values          a warp has a row: a lane four channels
//   words           a thread gathers a word's codes from shared memory
#pragma once

#include <type_traits>

#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/kernels/fragment_words.h"
#include "backend/cuda/kernels/kv_rows.cuh"
#include "format/quantise.h"

namespace kivi::cuda {

inline constexpr int kStoreThreads = 128;
inline constexpr int kStoreWarps = kStoreThreads / 32;
inline constexpr int kPackRows = format::kPageTokens;  // at once
static_assert(kPackRows <= kStoreThreads);

// One side (keys or values) of the cache.
struct StoreSide {
  RowsView new_rows;
  format::WindowPolicy policy;
  int bits;
  int group;
  int unit;   // tokens
  int codes;  // bytes from the start of a block
  int scales;
  int zeros;
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
constexpr size_t pack_bytes(int head_dim) {
  return kPackRows * (sizeof(void*) + code_pitch(head_dim));
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

// The range of this lane's numbers and of those of the lane `distance` away.
__device__ inline format::GroupRange merge(const format::GroupRange& range, int distance) {
  return {fminf(range.min, __shfl_xor_sync(~0U, range.min, distance)),
          fmaxf(range.max, __shfl_xor_sync(~0U, range.max, distance))};
}

__device__ inline void store_params(const StoreSide& side, std::byte* block, int64_t index,
                                    format::GroupParams params) {
  reinterpret_cast<Half*>(block + side.scales)[index] = params.scale;
  reinterpret_cast<Half*>(block + side.zeros)[index] = params.zero;
}

template <typename T>
__device__ void quantise_keys(const StorePart& part, const PackTile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int bits = part.side().bits;
  const int group_tokens = part.side().group;
  const int jobs_per_group = part.layout().head_dim / 32;
  const int groups_per_head = tile.n_tokens() / group_tokens;
  const int n_jobs = tile.n_heads * groups_per_head * jobs_per_group;
#pragma unroll 1
  for (int job = static_cast<int>(threadIdx.x) / 32; job < n_jobs; job += kStoreWarps) {
    const int group = job / jobs_per_group;
    const int channel = job % jobs_per_group * 32 + lane % 16 * 2;
    const int first_row = group * group_tokens + lane / 16 * (group_tokens / 2);
    format::GroupRange range[2];
#pragma unroll 8
    for (int t = 0; t < group_tokens / 2; ++t) {
      float x[2];
      load_numbers<T>(tile.rows[first_row + t] + channel * 2, x);
      add(range[0], x[0]);
      add(range[1], x[1]);
    }
    float scale[2];
    float zero[2];
    std::byte* block = tile.block + group / groups_per_head * tile.block_bytes;
    const int token = tile.first + group % groups_per_head * group_tokens;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const format::GroupParams params = format::group_params(merge(range[i], 16), bits);
      if (lane < 16) store_params(part.side(), block, part.layout().key_param(token, channel + i), params);
      scale[i] = to_float(params.scale);
      zero[i] = to_float(params.zero);
    }
#pragma unroll 4
    for (int t = 0; t < group_tokens / 2; ++t) {
      float x[2];
      load_numbers<T>(tile.rows[first_row + t] + channel * 2, x);
      const uint32_t codes =
          format::quantise(x[0], scale[0], zero[0], bits) | format::quantise(x[1], scale[1], zero[1], bits) << 8;
      *reinterpret_cast<uint16_t*>(tile.codes + (first_row + t) * tile.pitch + channel) = static_cast<uint16_t>(codes);
    }
  }
}

template <typename T>
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
      format::GroupRange range;
      if (inside) {
        load_numbers<T>(tile.rows[row] + channel * 2, x);
#pragma unroll
        for (int i = 0; i < 4; ++i) add(range, x[i]);
      }
#pragma unroll 1
      for (int distance = 1; distance < lanes_per_group; distance *= 2) range = merge(range, distance);
      if (!inside) continue;
      const format::GroupParams params = format::group_params(range, bits);
      if (lane % lanes_per_group == 0) {
        store_params(part.side(), block, part.layout().value_param(token, channel), params);
      }
      uint32_t codes = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        codes |= format::quantise(x[i], to_float(params.scale), to_float(params.zero), bits) << (8 * i);
      }
      *reinterpret_cast<uint32_t*>(tile.codes + row * tile.pitch + channel) = codes;
    }
  }
}

// ---- Packing ----

template <int Bits>
__device__ void write_words(const StorePart& part, const PackTile& tile) {
  const int head_dim = part.layout().head_dim;
  const int exclusive = exclusive_tokens(head_dim, Bits);
  const int begin = words_of_tokens(tile.first / exclusive * exclusive, head_dim, Bits);
  const int end = words_of_tokens(round_up(tile.end, exclusive), head_dim, Bits);
  const int n_words = end - begin;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < tile.n_heads * n_words; i += kStoreThreads) {
    const int head = i / n_words;
    const int word = begin + i % n_words;
    const uint8_t* codes = tile.codes + (head * tile.n_tokens() - tile.first) * tile.pitch;
    const auto code_of = [&](int token, int channel) { return uint32_t{codes[token * tile.pitch + channel]}; };
    const WordUpdate update = part.side_kind == Side::kKeys
                                  ? key_word<Bits>(word, head_dim, tile.first, tile.end, code_of)
                                  : value_word<Bits>(word, head_dim, tile.first, tile.end, code_of);
    if (update.mask == 0) continue;
    auto* words = reinterpret_cast<uint32_t*>(tile.block + head * tile.block_bytes + part.side().codes);
    words[word] = update.mask == ~0U ? update.codes : update.apply(words[word]);
  }
}

template <typename T>
__device__ void pack_tile(const StorePart& part, const PackTile& tile) {
  if (part.side_kind == Side::kKeys) {
    quantise_keys<T>(part, tile);
  } else {
    quantise_values<T>(part, tile);
  }
  __syncthreads();
  switch (part.side().bits) {
    case 2:
      return write_words<2>(part, tile);
    case 4:
      return write_words<4>(part, tile);
    default:
      return write_words<8>(part, tile);
  }
}

// Packs tokens. On return no thread of the block reads the window any more.
template <typename T>
__device__ void pack(const StorePart& part, TokenRange tokens) {
  PackTile tile;
  tile.rows = reinterpret_cast<const std::byte**>(dynamic_shared());
  tile.codes = reinterpret_cast<uint8_t*>(tile.rows + kPackRows);
  tile.pitch = code_pitch(part.layout().head_dim);
  tile.block_bytes = part.problem.block_bytes;
#pragma unroll 1
  for (int u = tokens.begin; u < tokens.end; u += tile.n_tokens()) {
    tile.first = u % format::kPageTokens;
    tile.end = min(format::kPageTokens, tile.first + tokens.end - u);
    const int heads_at_once = min(part.n_heads, kPackRows / tile.n_tokens());
#pragma unroll 1
    for (int h = 0; h < part.n_heads; h += heads_at_once) {
      tile.n_heads = min(heads_at_once, part.n_heads - h);
      tile.block = part.timeline(part.head + h).block(u);
      const auto row = static_cast<int>(threadIdx.x);
      if (row < tile.n_rows()) {
        const int token = part.side().policy.sinks + u + row % tile.n_tokens();
        tile.rows[row] = part.timeline(part.head + h + row / tile.n_tokens()).row(token);
      }
      __syncthreads();
      pack_tile<T>(part, tile);
    }
  }
}

}  // namespace kivi::cuda
