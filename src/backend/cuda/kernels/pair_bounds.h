// The lesser and the greater of 16-bit floats, two in a word, on the host as on the device: a NaN counts for neither,
// and which of -0 and +0 comes out is open.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/half.h"
#include "core/host_device.h"

namespace kivi::cuda {

// One PTX instruction, of f16x2 or bf16x2.
#define KIVI_PAIR_INSTRUCTION(op, d, a, b)                    \
  if constexpr (std::is_same_v<T, Half>) {                    \
    asm(op ".f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));  \
  } else {                                                    \
    asm(op ".bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b)); \
  }

// Of the pairs' numbers i the lesser, or the greater, or the only number. T: Half or BFloat16.
template <typename T, bool kGreater>
KIVI_HD inline uint32_t bound_pair(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  uint32_t d;
  if constexpr (kGreater) {
    KIVI_PAIR_INSTRUCTION("max", d, a, b)
  } else {
    KIVI_PAIR_INSTRUCTION("min", d, a, b)
  }
  return d;
#else
  uint32_t chosen = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const float x = to_float(T{static_cast<uint16_t>(a >> shift)});
    const float y = to_float(T{static_cast<uint16_t>(b >> shift)});
    const bool first = y != y || (kGreater ? x > y : x < y);
    chosen |= (first ? a : b) & 0xFFFFU << shift;
  }
  return chosen;
#endif
}
template <typename T>
KIVI_HD inline uint32_t min_pair(uint32_t a, uint32_t b) {
  return bound_pair<T, false>(a, b);
}
template <typename T>
KIVI_HD inline uint32_t max_pair(uint32_t a, uint32_t b) {
  return bound_pair<T, true>(a, b);
}

#undef KIVI_PAIR_INSTRUCTION

}  // namespace kivi::cuda
