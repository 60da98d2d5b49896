// 16-bit floating point storage and its conversions: IEEE binary16 and bfloat16, round to nearest even, the same bits
// on every compiler and machine (on a GPU, the bits of a NaN made from a Half may be others).
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "core/host_device.h"

namespace kivi {

// Storage of an IEEE binary16 number. No arithmetic: convert first.
struct Half {
  uint16_t bits = 0;
  friend constexpr bool operator==(Half, Half) = default;
};

// Storage of a bfloat16 number.
struct BFloat16 {
  uint16_t bits = 0;
  friend constexpr bool operator==(BFloat16, BFloat16) = default;
};

inline constexpr float kHalfMax = 65504.0F;

KIVI_HD constexpr float to_float(Half h) {
#if defined(__CUDA_ARCH__)
  if (!std::is_constant_evaluated()) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(h.bits));
    return value;
  }
#endif
  const uint32_t sign = uint32_t{h.bits & 0x8000U} << 16;
  const uint32_t exponent = (h.bits >> 10) & 0x1FU;
  const uint32_t mantissa = h.bits & 0x3FFU;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t exponent32 = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | exponent32 << 23 | mantissa << 13);
}

KIVI_HD constexpr float to_float(BFloat16 h) {
  return std::bit_cast<float>(uint32_t{h.bits} << 16);
}

KIVI_HD constexpr Half to_half(float value) {
#if defined(__CUDA_ARCH__)
  if (!std::is_constant_evaluated() && value == value) {
    Half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(value));
    return h;
  }
#endif
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude >= 0x7F800000U) {  // infinity stays; NaN stays a quiet NaN
    return {
        static_cast<uint16_t>(sign | 0x7C00U | (magnitude > 0x7F800000U ? 0x200U | ((magnitude >> 13) & 0x3FFU) : 0U))};
  }
  if (magnitude >= 0x477FF000U) return {static_cast<uint16_t>(sign | 0x7C00U)};  // rounds to beyond 65504
  if (magnitude >= 0x38800000U) {                                                // a normal binary16
    const uint32_t rounded = magnitude - 0x38000000U + 0xFFFU + ((magnitude >> 13) & 1U);
    return {static_cast<uint16_t>(sign | (rounded >> 13))};
  }
  // Subnormal or zero. Adding 0.5 leaves the number of units of 2^-24, rounded to nearest even, in the low mantissa
  // bits.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
  return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000U))};
}

KIVI_HD constexpr BFloat16 to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return {static_cast<uint16_t>((bits >> 16) | 0x40U)};
  return {static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16)};
}

}  // namespace kivi
