// The instructions of a warp that C++ has no name for, each wrapped once. Registers of 32 bits hold two 16-bit floats,
// the lower index in the low half; fragments are those of mma.m16n8k16 (format/fragment_order.h draws operand A).
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace kivi::cuda {

inline constexpr int kWarpLanes = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFU;
inline constexpr uint32_t kHalfOnes = 0x3C003C00U;  // two binary16 ones

// d += a b.  a: 16 x 16, b: 16 x 8, both binary16; d: 16 x 8 in f32, d[0], d[1] in row lane / 4, d[2], d[3] in row
// lane / 4 + 8, columns 2 (lane % 4) and one more.
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Transposes an 8 x 8 matrix of 16-bit numbers that the lanes of a warp hold, two each.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t a) {
  uint32_t d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
  return d;
}

__device__ __forceinline__ uint32_t multiply_halves(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
__device__ __forceinline__ uint32_t pack_bfloats(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
__device__ __forceinline__ uint32_t pack_16(DType dtype, float low, float high) {
  return dtype == DType::kF16 ? pack_halves(low, high) : pack_bfloats(low, high);
}

// Two bfloat16 as two binary16: exact from 2^-14 to 65504, beyond it infinite.
__device__ __forceinline__ uint32_t bfloats_to_halves(uint32_t pair) {
  return pack_halves(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000U));
}

// Two binary16 of value 2^exponent, -14 <= exponent <= 15.
constexpr __device__ uint32_t halves_of_power(int exponent) {
  return static_cast<uint32_t>(exponent + 15) << 10 | static_cast<uint32_t>(exponent + 15) << 26;
}

// 2^x, relative error 2^-22; subnormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
  uint4 d;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w) : "r"(address));
  return d;
}

__device__ __forceinline__ uint2 load_shared_8(uint32_t address) {
  uint2 d;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(d.x), "=r"(d.y) : "r"(address));
  return d;
}

// Policy for memory that is read once: its lines leave the second-level cache first.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Copies 16 bytes to shared memory behind the thread's back; they are there after wait_copies.
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "l"(policy)
               : "memory");
}
// The same, or 16 zeros without reading anything.
__device__ __forceinline__ void copy_or_zero_async_16(uint32_t shared, const void* global, bool copy, uint64_t policy) {
  const int n = copy ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared), "l"(global), "r"(n),
               "l"(policy)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of the groups committed by this thread are on their way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
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
