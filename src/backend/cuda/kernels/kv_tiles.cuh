// Tiles of 64 tokens of one side (keys or values), brought to shared memory as 16-bit rows by all threads of a block:
// 16-bit rows (sinks, window, new tokens) by asynchronous copies straight into the tile, half a packed page by
// asynchronous copies beside it, from where it is expanded into the tile.
#pragma once

#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/kernels/expand_page.h"
#include "backend/cuda/kernels/kv_rows.cuh"

namespace kivi::cuda {

using format::ParamFormat;

inline constexpr int kTileTokens = kHalfPage;

// Rows of shared memory are 16 bytes longer than head_dim numbers: eight rows then lie in different banks.
constexpr int tile_pitch(int head_dim) {
  return head_dim + 8;
}

// Copies a strip; kThreads threads share the work.
template <int kThreads>
__device__ void copy_strip(const Strip& strip, const std::byte* block, std::byte* staged) {
#pragma unroll 1
  for (int i = 16 * static_cast<int>(threadIdx.x); i < strip.bytes; i += 16 * kThreads) {
    cp_async_16(staged + strip.to + i, block + strip.from + i);
  }
}

// What the loader of a side needs that is the same for all blocks.
struct SideTiles {
  RowsView new_rows;
  int bits;
  ParamFormat params;
  int group;
  int sinks;
  HalfPage halves[2];
};

template <typename T, int kHeadDim, int kThreads>
class TileLoader {
 public:
  __device__ TileLoader(Side side, const format::KvBatchView& cache, const SideTiles& tiles,
                        const SequenceRows& sequence, int head)
      : side_(side),
        tiles_(tiles),
        timeline_(side, cache, tiles.new_rows, sequence, head),
        n_past_(sequence.n_past),
        n_tokens_(sequence.n_past + sequence.n_new) {
    const format::WindowPolicy& policy = side == Side::kKeys ? cache.key_policy : cache.value_policy;
    packed_end_ = tiles.sinks + static_cast<int>(policy.n_packed(n_past_));
  }

  __device__ bool packs() const { return packed_end_ > tiles_.sinks; }

  // Starts to bring the tokens from `first` on; first may be negative. Rows of 16 bits of tokens that do not exist, or
  // come before `oldest` (they may not be stored any more), become zero. `tile` [kTileTokens][pitch]; `staged` is used
  // where n_packed(first) > 0.
  __device__ void start(int first, int oldest, T* tile, std::byte* staged) const {
    const int n_packed = packed_tokens(first);
    if (n_packed < kTileTokens) {
      if (first >= n_past_) {
        start_new_rows(first, tile);
      } else {
        start_rows(first, n_packed, oldest, tile);
      }
    }
    if (n_packed > 0) {
      const HalfPage& half = half_page(first);
      const std::byte* block = timeline_.block(first - tiles_.sinks);
#pragma unroll 1
      for (const Strip& strip : half.strips) copy_strip<kThreads>(strip, block, staged);
    }
    cp_async_commit();
  }

  // After every thread's copies have arrived: makes the tile complete for the whole block.
  __device__ void finish(int first, T* tile, const std::byte* staged) const {
    const int n_packed = packed_tokens(first);
    if (n_packed == 0) return;
    if (tiles_.params == ParamFormat::kHalf) {
      expand<ParamFormat::kHalf>(n_packed, half_page(first), tile, staged);
    } else {
      expand<ParamFormat::kByte>(n_packed, half_page(first), tile, staged);
    }
    __syncthreads();
  }

 private:
  static constexpr int kPitch = tile_pitch(kHeadDim);
  static constexpr int kChunks = kHeadDim / 8;  // of 16 bytes, of a row

  // Packed tokens of the tile: its first ones.
  __device__ int packed_tokens(int first) const {
    return first < tiles_.sinks ? 0 : max(min(packed_end_ - first, kTileTokens), 0);
  }
  __device__ const HalfPage& half_page(int first) const {
    return tiles_.halves[(first - tiles_.sinks) / kHalfPage % 2];
  }

  // The hot path: a thread copies the same 16 bytes of every kRowsAtOnce-th row.
  __device__ void start_new_rows(int first, T* tile) const {
    constexpr int kRowsAtOnce = kThreads / kChunks;
    const int row = static_cast<int>(threadIdx.x) / kChunks;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    if (row >= kRowsAtOnce) return;
    const std::byte* from = timeline_.new_row(first + row) + chunk * 16;
    T* to = tile + row * kPitch + chunk * 8;
#pragma unroll
    for (int k = 0; k < kTileTokens; k += kRowsAtOnce) {
      if (kTileTokens % kRowsAtOnce != 0 && row + k >= kTileTokens) break;
      cp_async_16(to + k * kPitch, from, first + row + k < n_tokens_);
      from += kRowsAtOnce * timeline_.new_stride();
    }
  }

  __device__ void start_rows(int first, int n_packed, int oldest, T* tile) const {
#pragma unroll 1
    for (int i = n_packed * kChunks + static_cast<int>(threadIdx.x); i < kTileTokens * kChunks; i += kThreads) {
      const int row = i / kChunks;
      const int chunk = i % kChunks;
      const int token = first + row;
      const bool inside = token >= oldest && token < n_tokens_;
      cp_async_16(tile + row * kPitch + chunk * 8, timeline_.row(inside ? token : n_past_) + chunk * 16, inside);
    }
  }

  template <ParamFormat kParams>
  __device__ void expand(int n_packed, const HalfPage& half, T* tile, const std::byte* staged) const {
    switch (tiles_.bits) {
      case 2:
        return expand<2, kParams>(n_packed, half, tile, staged);
      case 3:
        return expand<3, kParams>(n_packed, half, tile, staged);
      case 4:
        return expand<4, kParams>(n_packed, half, tile, staged);
      default:
        return expand<8, kParams>(n_packed, half, tile, staged);
    }
  }
  template <int Bits, ParamFormat kParams>
  __device__ void expand(int n_packed, const HalfPage& half, T* tile, const std::byte* staged) const {
#pragma unroll 1
    for (int item = static_cast<int>(threadIdx.x); item < expand_items(kHeadDim); item += kThreads) {
      if (side_ == Side::kKeys) {
        expand_keys<T, kHeadDim, Bits, kParams>(item, staged, half, tiles_.group, n_packed, tile, kPitch);
      } else {
        expand_values<T, kHeadDim, Bits, kParams>(item, staged, half, tiles_.group, n_packed, tile, kPitch);
      }
    }
  }

  Side side_;
  const SideTiles& tiles_;
  Timeline timeline_;
  int n_past_;
  int n_tokens_;
  int packed_end_;
};

}  // namespace kivi::cuda
