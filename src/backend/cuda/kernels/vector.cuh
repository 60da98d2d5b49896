// Several elements of a row at once: loaded and stored as one word of the memory, computed with as floats.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "backend/cuda/dispatch.h"
#include "core/half.h"
#include "core/tensor_view.h"

namespace kivi::cuda {

__device__ inline float widen(float value) {
  return value;
}
__device__ inline float widen(Half value) {
  return __half2float(__ushort_as_half(value.bits));
}
__device__ inline float widen(BFloat16 value) {
  return __bfloat162float(__ushort_as_bfloat16(value.bits));
}

inline constexpr float kBFloat16Max = to_float(BFloat16{0x7F7F});

// Finite values beyond the range become its ends; infinities and NaN stay.
__device__ inline float saturate(float value, float max) {
  return isfinite(value) ? fminf(fmaxf(value, -max), max) : value;
}

// Rounded to nearest even, saturated.
template <typename T>
__device__ T narrow(float value);
template <>
__device__ inline float narrow<float>(float value) {
  return value;
}
template <>
__device__ inline Half narrow<Half>(float value) {
  return {__half_as_ushort(__float2half_rn(saturate(value, kHalfMax)))};
}
template <>
__device__ inline BFloat16 narrow<BFloat16>(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(saturate(value, kBFloat16Max)))};
}

// Two of them in a word, the first in its low half.
template <typename T>
__device__ uint32_t narrow_pair(float first, float second);
template <>
__device__ inline uint32_t narrow_pair<Half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(saturate(first, kHalfMax), saturate(second, kHalfMax));
  return reinterpret_cast<const uint32_t&>(pair);
}
template <>
__device__ inline uint32_t narrow_pair<BFloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(saturate(first, kBFloat16Max), saturate(second, kBFloat16Max));
  return reinterpret_cast<const uint32_t&>(pair);
}

// What one access of the memory moves.
template <size_t Bytes>
using Word = std::conditional_t<
    Bytes == 16, uint4,
    std::conditional_t<Bytes == 8, uint2,
                       std::conditional_t<Bytes == 4, uint32_t, std::conditional_t<Bytes == 2, uint16_t, void>>>>;

template <int N, typename T>
__device__ void load(const T* from, float (&to)[N]) {
  const auto word = *reinterpret_cast<const Word<N * sizeof(T)>*>(from);
  T lanes[N];
  memcpy(lanes, &word, sizeof(word));
  for (int i = 0; i < N; ++i) to[i] = widen(lanes[i]);
}

template <int N, typename T>
__device__ void store(const float (&from)[N], T* to) {
  if constexpr (N == 1) {
    *to = narrow<T>(from[0]);
  } else {  // in one instruction: left alone, the compiler stores lanes one by one
    Word<N * sizeof(T)> word;
    auto* words = reinterpret_cast<uint32_t*>(&word);
    for (int i = 0; i < N * static_cast<int>(sizeof(T)) / 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        words[i] = __float_as_uint(from[i]);
      } else {
        words[i] = narrow_pair<T>(from[2 * i], from[2 * i + 1]);
      }
    }
    __stwb(reinterpret_cast<Word<N * sizeof(T)>*>(to), word);
  }
}

// Whether every row of every view is whole words of n elements, each aligned to its size.
inline bool are_words(int n, std::initializer_list<AnyView> views) {
  for (const AnyView& view : views) {
    if (reinterpret_cast<uintptr_t>(view.data) % (n * size_bytes(view.dtype)) != 0) return false;
    if (view.shape[view.rank - 1] % n != 0) return false;
    for (int i = 0; i + 1 < view.rank; ++i) {
      if (view.stride[i] % n != 0) return false;
    }
  }
  return true;
}

}  // namespace kivi::cuda
