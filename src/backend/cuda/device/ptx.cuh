// Instructions that C++ has no word for, each wrapped once. For sm_80 and later. T is the 16-bit type of the operands,
// Half or BFloat16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backend/cuda/device/warp.cuh"
#include "core/half.h"

namespace kivi::cuda {

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ inline std::byte* dynamic_shared() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<std::byte*>(memory);
}

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
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

// ---- Asynchronous copies from global to shared memory ----

// 16 bytes, both sides aligned to 16. Where not `valid` nothing is read and zeros are written.
__device__ inline void cp_async_16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
// Policy for memory that is read once: its lines leave the second-level cache first. What  createpolicy.fractional.L2::
// evict_first 1.0  gives: of a constant the compiler keeps no registers.
__device__ __forceinline__ uint64_t evict_first_policy() {
  return 0x12F0000000000000;
}

// 16 bytes to a shared address, under a policy.
__device__ __forceinline__ void cp_async_16(uint32_t shared, const void* global, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "l"(policy)
               : "memory");
}
// The same of the first n bytes, 0 to 16; the others become zero, and where n is 0 nothing is read.
__device__ __forceinline__ void cp_async_part_16(uint32_t shared, const void* global, int n, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared), "l"(global), "r"(n),
               "l"(policy)
               : "memory");
}
// Ends this thread's current group of copies.
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of this thread's newest groups are under way.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- Matrix products of a warp ----

// Four 8 x 8 matrices of 16-bit numbers. Lane l gives the address of row l % 8 of matrix l / 8 and gets of matrix i, in
// to[i], columns 2 (l % 4) and the next of row l / 4.
__device__ inline void ldmatrix(uint32_t (&to)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(shared))
               : "memory");
}
// The same of the transposed matrices.
__device__ inline void ldmatrix_transposed(uint32_t (&to)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(shared))
               : "memory");
}

// c [16, 8] += a [16, 16] b [16, 8]. With r = lane / 4 and j = lane % 4: a[0] is row r, columns 2j and 2j + 1; a[1] row
// r + 8; a[2] and a[3] the same 8 columns on. b0 is rows 2j and 2j + 1 of column r, b1 8 rows on. c[0], c[1] are row r,
// columns 2j and 2j + 1; c[2], c[3] row r + 8.
template <typename T>
__device__ inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, Half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// The same of binary16, with a as four registers.
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  const uint32_t a[4] = {a0, a1, a2, a3};
  mma_16x8x16<Half>(c, a, b0, b1);
}

// Transposes an 8 x 8 matrix of 16-bit numbers that the lanes of a warp hold, two each.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t a) {
  uint32_t d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
  return d;
}

// ---- Arithmetic ----

// Registers of 32 bits hold two 16-bit floats, the lower index in the low half.
__device__ __forceinline__ uint32_t multiply_halves(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

__device__ __forceinline__ uint32_t add_halves(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// 2^x to a relative error of 2^-22; subnormal results are 0.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace kivi::cuda
