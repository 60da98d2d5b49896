// Instructions that C++ has no word for, each wrapped once. For sm_80 and later. T is the 16-bit type of the operands,
// Half or BFloat16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backend/cuda/device/pack_pair.h"
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

// ---- Asynchronous copies from global to shared memory ----

// 16 bytes, both sides aligned to 16. Where not `valid` nothing is read and zeros are written.
__device__ inline void cp_async_16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
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

// ---- Arithmetic ----

// 2^x to a relative error of 2^-22.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace kivi::cuda
