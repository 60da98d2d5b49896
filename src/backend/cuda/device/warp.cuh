// What lanes of a warp share, and arithmetic on the 16-bit numbers that registers hold in pairs.
#pragma once

#include <cstdint>

#include "backend/cuda/device/pack_pair.h"
#include "core/dtype.h"
#include "core/half.h"

namespace kivi::cuda {

inline constexpr int kWarpLanes = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFU;
inline constexpr uint32_t kHalfOnes = 0x3C003C00U;  // two binary16 ones

// Registers of 32 bits hold two 16-bit floats, the lower index in the low half.
__device__ __forceinline__ uint32_t pack_16(DType dtype, float low, float high) {
  return dtype == DType::kF16 ? pack_pair<Half>(low, high) : pack_pair<BFloat16>(low, high);
}

// Two bfloat16 as two binary16: exact from 2^-14 to 65504, beyond it infinite.
__device__ __forceinline__ uint32_t bfloats_to_halves(uint32_t pair) {
  return pack_pair<Half>(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000U));
}

// Two binary16 of value 2^exponent, -14 <= exponent <= 15.
constexpr __device__ uint32_t halves_of_power(int exponent) {
  return static_cast<uint32_t>(exponent + 15) << 10 | static_cast<uint32_t>(exponent + 15) << 26;
}

__device__ __forceinline__ float max_over_rows(float x) {  // over the lanes of equal lane % 4
#pragma unroll
  for (int step = 4; step < kWarpLanes; step *= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 1; step < kWarpLanes; step *= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 1; step < kWarpLanes; step *= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

}  // namespace kivi::cuda
