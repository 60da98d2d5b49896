// What a warp computes in attend_chunk.cu: two matrix products and an online softmax between them, in the layout of
// mma_16x8x16. A warp's rows are tiles of 16.
#pragma once

#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/kernels/kv_tiles.cuh"
#include "backend/cuda/kernels/score_cap.cuh"

namespace kivi::cuda {

inline constexpr int kQueryRows = 128;  // of a block

// Number: Half or BFloat16.
template <typename NumberType, int kDim>
struct ChunkConfig {
  using Number = NumberType;
  static constexpr int kHeadDim = kDim;
  static constexpr int kRowTiles = kHeadDim <= 128 ? 2 : 1;  // of 16 rows, of a warp
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kThreads = 32 * kQueryRows / kWarpRows;
  static constexpr int kPitch = tile_pitch(kHeadDim);
  static constexpr int kBlocksPerSm = kHeadDim <= 64 ? 3 : kHeadDim <= 128 ? 2 : 1;
  static constexpr size_t kStagedAt = sizeof(Number) * kPitch * (kQueryRows + 2 * kTileTokens);

  using Scores = float[kRowTiles][kTileTokens / 8][4];
  using Output = float[kRowTiles][kHeadDim / 8][4];
};

// scores = q keys^T, of the warp's rows of q.
template <typename C>
__device__ void multiply_keys(const typename C::Number* q, const typename C::Number* keys, typename C::Scores& scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto* q_row = q + lane % 16 * C::kPitch + lane / 16 * 8;
  const auto* key_row = keys + (lane / 16 * 8 + lane % 8) * C::kPitch + lane / 8 % 2 * 8;
#pragma unroll
  for (auto& row_tile : scores) {
#pragma unroll
    for (auto& tile : row_tile) {
#pragma unroll
      for (float& score : tile) score = 0.0F;
    }
  }
#pragma unroll
  for (int k = 0; k < C::kHeadDim; k += 16) {
    uint32_t a[C::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < C::kRowTiles; ++i) ldmatrix(a[i], q_row + i * 16 * C::kPitch + k);
#pragma unroll
    for (int n = 0; n < kTileTokens / 16; ++n) {
      uint32_t b[4];
      ldmatrix(b, key_row + n * 16 * C::kPitch + k);
#pragma unroll
      for (int i = 0; i < C::kRowTiles; ++i) {
        mma_16x8x16<typename C::Number>(scores[i][2 * n], a[i], b[0], b[1]);
        mma_16x8x16<typename C::Number>(scores[i][2 * n + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// out += p values, with p rounded to 16 bits.
template <typename C>
__device__ void multiply_values(const typename C::Scores& p, const typename C::Number* values,
                                typename C::Output& out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto* value_row = values + lane % 16 * C::kPitch + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kTileTokens / 16; ++k) {
    uint32_t a[C::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < C::kRowTiles; ++i) {
      a[i][0] = pack_pair<typename C::Number>(p[i][2 * k][0], p[i][2 * k][1]);
      a[i][1] = pack_pair<typename C::Number>(p[i][2 * k][2], p[i][2 * k][3]);
      a[i][2] = pack_pair<typename C::Number>(p[i][2 * k + 1][0], p[i][2 * k + 1][1]);
      a[i][3] = pack_pair<typename C::Number>(p[i][2 * k + 1][2], p[i][2 * k + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < C::kHeadDim / 16; ++n) {
      uint32_t b[4];
      ldmatrix_transposed(b, value_row + k * 16 * C::kPitch + n * 16);
#pragma unroll
      for (int i = 0; i < C::kRowTiles; ++i) {
        mma_16x8x16<typename C::Number>(out[i][2 * n], a[i], b[0], b[1]);
        mma_16x8x16<typename C::Number>(out[i][2 * n + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// Rows of this thread: of row tile i, row lane / 4 (h 0) and eight below (h 1). Maxima are of scores times scale_log2;
// sums are of this thread's columns.
template <typename C>
struct Softmax {
  float maximum[C::kRowTiles][2];
  float sum[C::kRowTiles][2];

  __device__ Softmax() {
#pragma unroll
    for (int i = 0; i < 2 * C::kRowTiles; ++i) {
      maximum[i / 2][i % 2] = -INFINITY;
      sum[i / 2][i % 2] = 0.0F;
    }
  }
};

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0U, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0U, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(~0U, x, 1);
  return x + __shfl_xor_sync(~0U, x, 2);
}

// Scores become logarithms to base 2, capped.
template <typename C>
__device__ void cap_scores(float scale_log2, float cap_log2, typename C::Scores& scores) {
#pragma unroll
  for (auto& row_tile : scores) {
#pragma unroll
    for (auto& tile : row_tile) {
#pragma unroll
      for (float& score : tile) score = capped(score * scale_log2, cap_log2);
    }
  }
}

// One step of the online softmax: scores become probabilities relative to the new maxima, and what was summed up so far
// is rescaled to these. In a layer that slides a row may not have seen any token yet: its maximum is then -inf.
template <typename C>
__device__ void softmax_step(float scale_log2, typename C::Scores& scores, Softmax<C>& softmax,
                             typename C::Output& out) {
#pragma unroll
  for (int i = 0; i < C::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = scores[i][0][2 * h];
#pragma unroll
      for (int n = 0; n < kTileTokens / 8; ++n) top = fmaxf(top, fmaxf(scores[i][n][2 * h], scores[i][n][2 * h + 1]));
      const float maximum = fmaxf(softmax.maximum[i][h], quad_max(top) * scale_log2);
      const float base = maximum == -INFINITY ? 0.0F : maximum;
      const float factor = exp2_approx(softmax.maximum[i][h] - base);
      softmax.maximum[i][h] = maximum;
      float sum = 0.0F;
#pragma unroll
      for (int n = 0; n < kTileTokens / 8; ++n) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          scores[i][n][e] = exp2_approx(fmaf(scores[i][n][e], scale_log2, -base));
          sum += scores[i][n][e];
        }
      }
      softmax.sum[i][h] = softmax.sum[i][h] * factor + sum;
#pragma unroll
      for (int n = 0; n < C::kHeadDim / 8; ++n) {
        out[i][n][2 * h] *= factor;
        out[i][n][2 * h + 1] *= factor;
      }
    }
  }
}

}  // namespace kivi::cuda
