// Stands for CUDA's header where kernels are emulated: the words of CUDA C++ and the functions of the device that the
// kernels use. Only whole warps: every mask is all lanes.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

#define threadIdx (::kivi::emulation::here().thread)
#define blockIdx (::kivi::emulation::here().block)
#define blockDim (::kivi::emulation::grid().threads)
#define gridDim (::kivi::emulation::grid().blocks)

using std::isfinite;
using std::isnan;
using std::max;
using std::min;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// ---- A block's and a warp's threads together ----

namespace kivi::emulation {

template <typename T>
using OfLanes = std::array<T, kLanes>;
struct Nothing {};

template <typename T>
struct Shuffled {
  T x;
  int source;
};
template <typename T>
T shuffle(unsigned mask, T x, int source) {
  if (mask != ~0U) fault("a mask that is not all lanes");
  return collective<T, Shuffled<T>, [](const OfLanes<Shuffled<T>>& in, OfLanes<T>& out) {
    for (size_t i = 0; i < kLanes; ++i) out[i] = in[static_cast<unsigned>(in[i].source) % kLanes].x;
  }>({x, source});
}

// Bit j of lane i's result: whether join(x of lane i, x of lane j).
template <auto join, typename T>
unsigned vote(unsigned mask, T x) {
  if (mask != ~0U) fault("a mask that is not all lanes");
  return collective<unsigned, T, [](const OfLanes<T>& in, OfLanes<unsigned>& out) {
    for (size_t i = 0; i < kLanes; ++i) {
      for (size_t j = 0; j < kLanes; ++j) out[i] |= unsigned{join(in[i], in[j])} << j;
    }
  }>(x);
}

}  // namespace kivi::emulation

inline void __syncthreads() {
  kivi::emulation::sync_threads();
}
inline void __syncwarp() {
  using namespace kivi::emulation;
  collective<Nothing, Nothing, [](const OfLanes<Nothing>&, OfLanes<Nothing>&) {}>({});
}
inline void __threadfence() {}

template <typename T>
T __shfl_sync(unsigned mask, T x, int source) {
  return kivi::emulation::shuffle(mask, x, source);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int distance) {
  return kivi::emulation::shuffle(mask, x, kivi::emulation::here().lane ^ distance);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T x, int distance) {
  const int lane = kivi::emulation::here().lane;
  return kivi::emulation::shuffle(mask, x, lane >= distance ? lane - distance : lane);
}
inline unsigned __ballot_sync(unsigned mask, bool x) {
  return kivi::emulation::vote<[](bool, bool other) { return other; }>(mask, x);
}
inline bool __any_sync(unsigned mask, bool x) {
  return __ballot_sync(mask, x) != 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T x) {
  return kivi::emulation::vote<[](T own, T other) { return own == other; }>(mask, x);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned x) {
  for (int distance = 1; distance < kivi::emulation::kLanes; distance *= 2) x += __shfl_xor_sync(mask, x, distance);
  return x;
}

template <typename T>
T atomicAdd(T* x, T y) {
  const T before = *x;
  *x = before + y;
  return before;
}

// ---- Memory, bits, arithmetic ----

template <typename T>
T __ldg(const T* x) {
  return *x;
}
template <typename T>
T __ldcg(const T* x) {
  return *x;
}
template <typename T>
T __ldcs(const T* x) {
  return *x;
}
template <typename T>
void __stwb(T* to, T x) {
  *to = x;
}

inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
// The place of the n-th set bit from `base` on; ~0 if there are fewer.
inline unsigned __fns(unsigned mask, unsigned base, int n) {
  for (unsigned i = base; i < 32; ++i) {
    if ((mask >> i & 1U) != 0 && --n == 0) return i;
  }
  return ~0U;
}
// Byte i of the result is byte  selector >> 4i & 7  of b:a.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7U)) & 0xFFU) << (8 * i);
  }
  return result;
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float normcdff(float x) {
  return static_cast<float>(0.5 * std::erfc(-double{x} * 0.70710678118654752));
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
