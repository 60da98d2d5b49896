// Tiles of 64 tokens of one side (keys or values), brought to shared memory as 16-bit rows by all threads of a block:
// 16-bit rows (sinks, window, new tokens) by asynchronous copies straight into the tile, half a packed page by
// asynchronous copies beside it, from where it is expanded into the tile.
#pragma once

#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/kernels/expand_page.h"
#include "backend/cuda/kernels/kv_rows.cuh"

namespace kivi::cuda {

inline constexpr int kTileTokens = kHalfPage;

// Rows of shared memory are 16 bytes longer than head_dim numbers: eight rows then lie in different banks.
constexpr int tile_pitch(int head_dim) {
  return head_dim + 8;
}

// Copies the strips; kThreads threads share the work.
template <int kThreads>
__device__ void copy_strips(const Strips& strips, const std::byte* block, std::byte* staged) {
  const int chunks = strips.bytes / 16;
  for (int i = static_cast<int>(threadIdx.x); i < strips.n * chunks; i += kThreads) {
    cp_async_16(staged + strips.to + i * 16, block + strips.from + i / chunks * strips.stride + i % chunks * 16);
  }
}

template <typename T, int kHeadDim, int kThreads>
class TileLoader {
 public:
  __device__ TileLoader(Side side, const format::KvBatchView& cache, const RowsView& new_rows,
                        const SequenceRows& sequence, int head)
      : cache_(cache),
        side_(side),
        timeline_(side, cache, new_rows, sequence, head),
        n_past_(sequence.n_past),
        n_tokens_(sequence.n_past + sequence.n_new) {
    const format::WindowPolicy& policy = side == Side::kKeys ? cache.key_policy : cache.value_policy;
    sinks_ = policy.sinks;
    packed_end_ = sinks_ + static_cast<int>(policy.n_packed(n_past_));
  }

  __device__ bool packs() const { return packed_end_ > sinks_; }

  // Starts to bring the tokens from `first` on; first may be negative. Rows of tokens that do not exist become zero.
  // `tile` [kTileTokens][pitch]; `staged` is used where n_packed(first) > 0.
  __device__ void start(int first, T* tile, std::byte* staged) const {
    const int n_packed = packed_tokens(first);
    if (n_packed < kTileTokens) {
      if (first >= n_past_) {
        start_new_rows(first, tile);
      } else {
        start_rows(first, n_packed, tile);
      }
    }
    if (n_packed > 0) {
      const HalfPage half = half_page(first);
      const std::byte* block = timeline_.block(first - sinks_);
      copy_strips<kThreads>(half.codes, block, staged);
      copy_strips<kThreads>(half.scales, block, staged);
      copy_strips<kThreads>(half.zeros, block, staged);
    }
    cp_async_commit();
  }

  // After every thread's copies have arrived: makes the tile complete for the whole block.
  __device__ void finish(int first, T* tile, const std::byte* staged) const {
    const int n_packed = packed_tokens(first);
    if (n_packed == 0) return;
    const HalfPage half = half_page(first);
    const int bits = side_ == Side::kKeys ? cache_.layout.key_bits : cache_.layout.value_bits;
    if (bits == 2) {
      expand<2>(n_packed, half, tile, staged);
    } else if (bits == 4) {
      expand<4>(n_packed, half, tile, staged);
    } else {
      expand<8>(n_packed, half, tile, staged);
    }
    __syncthreads();
  }

 private:
  static constexpr int kPitch = tile_pitch(kHeadDim);
  static constexpr int kChunks = kHeadDim / 8;  // of 16 bytes, of a row

  // Packed tokens of the tile: its first ones.
  __device__ int packed_tokens(int first) const {
    return first < sinks_ ? 0 : max(min(packed_end_ - first, kTileTokens), 0);
  }
  __device__ HalfPage half_page(int first) const {
    const int half = (first - sinks_) / kHalfPage % 2;
    return side_ == Side::kKeys ? key_half_page(cache_.layout, half) : value_half_page(cache_.layout, half);
  }

  __device__ void start_new_rows(int first, T* tile) const {
#pragma unroll
    for (int k = 0; k < kTileTokens * kChunks / kThreads; ++k) {
      const int i = k * kThreads + static_cast<int>(threadIdx.x);
      const int row = i / kChunks;
      const int chunk = i % kChunks;
      const bool inside = first + row < n_tokens_;
      cp_async_16(tile + row * kPitch + chunk * 8, timeline_.new_row(inside ? first + row : n_past_) + chunk * 16,
                  inside);
    }
  }

  __device__ void start_rows(int first, int n_packed, T* tile) const {
#pragma unroll 1
    for (int i = n_packed * kChunks + static_cast<int>(threadIdx.x); i < kTileTokens * kChunks; i += kThreads) {
      const int row = i / kChunks;
      const int chunk = i % kChunks;
      const int token = first + row;
      const bool inside = token >= 0 && token < n_tokens_;
      cp_async_16(tile + row * kPitch + chunk * 8, timeline_.row(inside ? token : n_past_) + chunk * 16, inside);
    }
  }

  template <int Bits>
  __device__ void expand(int n_packed, const HalfPage& half, T* tile, const std::byte* staged) const {
#pragma unroll 1
    for (int item = static_cast<int>(threadIdx.x); item < expand_items(kHeadDim); item += kThreads) {
      if (side_ == Side::kKeys) {
        expand_keys<T, kHeadDim, Bits>(item, staged, half, cache_.layout.key_group, n_packed, tile, kPitch);
      } else {
        expand_values<T, kHeadDim, Bits>(item, staged, half, cache_.layout.value_group, n_packed, tile, kPitch);
      }
    }
  }

  const format::KvBatchView& cache_;
  Side side_;
  Timeline timeline_;
  int n_past_;
  int n_tokens_;
  int sinks_;
  int packed_end_;
};

}  // namespace kivi::cuda
