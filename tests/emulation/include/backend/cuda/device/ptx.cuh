// Stands for the backend's header where kernels are emulated: each instruction as its comment there says.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "backend/cuda/device/warp.cuh"

namespace kivi::cuda {

// ---- Shared memory, and copies to it ----

inline std::byte* dynamic_shared() {
  return emulation::dynamic_shared();
}
inline uint32_t shared_address(const void* shared) {
  return emulation::shared_address(shared);
}

template <typename T>
T load_shared(uint32_t address) {
  T x;
  std::memcpy(&x, emulation::at_shared_address(address, sizeof(T)), sizeof(T));
  return x;
}
inline uint4 load_shared_16(uint32_t address) {
  return load_shared<uint4>(address);
}
inline uint2 load_shared_8(uint32_t address) {
  return load_shared<uint2>(address);
}

inline void cp_async_16(void* shared, const void* global, bool valid = true) {
  emulation::start_copy(shared_address(shared), global, valid ? 16 : 0);
}
inline uint64_t evict_first_policy() {
  return 0;
}
inline void cp_async_16(uint32_t shared, const void* global, uint64_t /*policy*/) {
  emulation::start_copy(shared, global, 16);
}
inline void cp_async_part_16(uint32_t shared, const void* global, int n, uint64_t /*policy*/) {
  emulation::start_copy(shared, global, n);
}
inline void cp_async_commit() {
  emulation::commit_copies();
}
template <int kPending>
void cp_async_wait() {
  emulation::wait_for_copies(kPending);
}

// ---- Matrix products of a warp ----

using Fragments = std::array<uint32_t, 4>;

inline uint32_t pair_of(uint16_t low, uint16_t high) {
  return low | uint32_t{high} << 16;
}
inline uint16_t half_of(uint32_t pair, size_t i) {
  return static_cast<uint16_t>(pair >> (16 * i));
}

// in: the address of a row from every lane.
template <bool kTransposed>
void load_matrices(const emulation::OfLanes<uint32_t>& in, emulation::OfLanes<Fragments>& out) {
  for (size_t matrix = 0; matrix < 4; ++matrix) {
    uint16_t rows[8][8];
    for (size_t r = 0; r < 8; ++r) {
      std::memcpy(rows[r], emulation::at_shared_address(in[8 * matrix + r], sizeof(rows[r])), sizeof(rows[r]));
    }
    for (size_t lane = 0; lane < out.size(); ++lane) {
      const size_t r = lane / 4;
      const size_t c = lane % 4 * 2;
      out[lane][matrix] = kTransposed ? pair_of(rows[c][r], rows[c + 1][r]) : pair_of(rows[r][c], rows[r][c + 1]);
    }
  }
}
inline void ldmatrix(uint32_t (&to)[4], const void* shared) {
  std::ranges::copy(emulation::collective<Fragments, uint32_t, load_matrices<false>>(shared_address(shared)), to);
}
inline void ldmatrix_transposed(uint32_t (&to)[4], const void* shared) {
  std::ranges::copy(emulation::collective<Fragments, uint32_t, load_matrices<true>>(shared_address(shared)), to);
}

template <typename T>
float number_of(uint16_t bits) {
  static const auto numbers = [] {
    std::vector<float> all(1 << 16);
    for (size_t i = 0; i < all.size(); ++i) all[i] = to_float(T{static_cast<uint16_t>(i)});
    return all;
  }();
  return numbers[bits];
}

struct Operands {
  uint32_t a[4];
  uint32_t b[2];
  float c[4];
};
using Sums = std::array<float, 4>;

template <typename T>
void multiply_matrices(const emulation::OfLanes<Operands>& in, emulation::OfLanes<Sums>& out) {
  float a[16][16];  // [row][k]
  float b[16][8];   // [k][column]
  float c[16][8];
  for (size_t lane = 0; lane < in.size(); ++lane) {
    const size_t r = lane / 4;
    const size_t j = lane % 4 * 2;
    for (size_t e = 0; e < 2; ++e) {
      for (size_t i = 0; i < 4; ++i) a[r + i % 2 * 8][j + i / 2 * 8 + e] = number_of<T>(half_of(in[lane].a[i], e));
      for (size_t i = 0; i < 2; ++i) b[j + i * 8 + e][r] = number_of<T>(half_of(in[lane].b[i], e));
      for (size_t i = 0; i < 2; ++i) c[r + i * 8][j + e] = in[lane].c[2 * i + e];
    }
  }
  for (size_t row = 0; row < 16; ++row) {
    for (size_t k = 0; k < 16; ++k) {
      for (size_t column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
    }
  }
  for (size_t lane = 0; lane < out.size(); ++lane) {
    for (size_t i = 0; i < 4; ++i) out[lane][i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}
template <typename T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands operands{{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
  std::ranges::copy(emulation::collective<Sums, Operands, multiply_matrices<T>>(operands), c);
}
inline void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const uint32_t a[4] = {a0, a1, a2, a3};
  mma_16x8x16<Half>(c, a, b0, b1);
}

inline uint32_t transpose_8x8(uint32_t a) {
  return emulation::collective<uint32_t, uint32_t,
                               [](const emulation::OfLanes<uint32_t>& in, emulation::OfLanes<uint32_t>& out) {
                                 for (size_t lane = 0; lane < in.size(); ++lane) {
                                   const size_t r = lane / 4;
                                   const size_t from = lane % 4 * 8 + r / 2;  // has element r of row 2 (lane % 4)
                                   out[lane] = pair_of(half_of(in[from], r % 2), half_of(in[from + 4], r % 2));
                                 }
                               }>(a);
}

// ---- Arithmetic ----

inline uint32_t multiply_halves(uint32_t a, uint32_t b) {
  const auto product = [&](size_t i) { return number_of<Half>(half_of(a, i)) * number_of<Half>(half_of(b, i)); };
  return pack_pair<Half>(product(0), product(1));
}
inline uint32_t add_halves(uint32_t a, uint32_t b) {
  const auto product = [&](size_t i) { return number_of<Half>(half_of(a, i)) + number_of<Half>(half_of(b, i)); };
  return pack_pair<Half>(product(0), product(1));
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < std::numeric_limits<float>::min() ? 0.0F : y;
}

}  // namespace kivi::cuda
