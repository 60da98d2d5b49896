// Two floats as two 16-bit numbers in one word, on the host as on the device.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/half.h"
#include "core/host_device.h"

namespace kivi::cuda {

// T: Half or BFloat16. Rounded to nearest even; `low` is in the low half.
template <typename T>
KIVI_HD inline uint32_t pack_pair(float low, float high) {
  constexpr bool kHalf = std::is_same_v<T, Half>;
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  if constexpr (kHalf) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  if constexpr (kHalf) {
    return to_half(low).bits | uint32_t{to_half(high).bits} << 16;
  } else {
    return to_bfloat16(low).bits | uint32_t{to_bfloat16(high).bits} << 16;
  }
#endif
}

}  // namespace kivi::cuda
