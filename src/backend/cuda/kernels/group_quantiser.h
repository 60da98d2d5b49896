// Codes of a group with one reciprocal for all its numbers: equal to format::quantise's to the bit. For host and
// device: the tests enumerate it on the host.
//
// Let s be the scale, d = x - zero as rounded, Q = d / s without rounding, and k + 1/2 the border between two codes.
// format::quantise rounds Q to a float q, and q to a whole number, ties to even.
//
// 1. q is k + 1/2 only where Q is. s has at most 11 bits (a binary16) and 2k + 1 at most 9, so b = (k + 1/2) s is a
//    float of at most 20 bits, and another float d is at least 2^-24 (1 + 2^-20) b away from it, or, below a power of
//    two, 2^-24 b, which takes k = 0. So Q is as far from k + 1/2, relatively. Half a unit in the last place of k + 1/2
//    is at most 2^-24 / (1 + 2^-8) of it for k > 0; for 1/2 it is 2^-24 above and 2^-25 below, and b has 11 bits, which
//    makes the distance above 2^-24 (1 + 2^-11). So there is a margin of at least 2^-36, relatively, wherever Q is not
//    k + 1/2, and the code is what Q itself would round to.
// 2. So any q does that is k + 1/2 where Q is, and on the same side of it elsewhere: Q with a relative error below
//    2^-36, rounded to a float. `inverse` may be off by 2^-23; what it lacks, 1 - s * inverse, takes less than 24 bits,
//    so a fused multiply-add finds it exactly. `rest` is that over s but for 2^-22 of it, and d * rest rounds by
//    another 2^-24 of it: all in all 2^-43 of Q. (s is at least 2^-24, so rest is below 1, and d * rest is finite.)
//
// All is divided by 2^bits, which is exact, so that saturation is the lower clamp: NaN becomes 0. The upper one is
// applied to d, for infinity less infinity is none: top * s has at most 19 bits, and its quotient is top. Scale 0 has
// the codes 0.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "format/quantise.h"

namespace kivi::cuda {

// 1 / x to a relative error of 2^-23, for x a positive binary16.
KIVI_HD inline float approximate_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0F / x;
#endif
}

// a * b + c, rounded once.
KIVI_HD inline float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}
// The same clamped to 0 .. 1; 0 for NaN.
KIVI_HD inline float fused_saturated(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  float d;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
#else
  const float d = std::fma(a, b, c);
  return d > 0.0F ? (d < 1.0F ? d : 1.0F) : 0.0F;
#endif
}
// The lesser; NaN if one is.
KIVI_HD inline float lesser_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  float d;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
#else
  return !(a >= b) ? a : b;  // b is a number
#endif
}

struct alignas(16) GroupQuantiser {
  float zero;
  float limit;    // top * scale
  float inverse;  // 1 / scale, about
  float rest;     // what it lacks; both over 2^bits

  // reciprocal: approximate_reciprocal(line.scale).
  static KIVI_HD GroupQuantiser make(const format::GroupLine& line, int bits, float reciprocal) {
    const float inverse = line.scale == 0.0F ? 0.0F : reciprocal;
    const float lacking = fused(-line.scale, inverse, 1.0F);
    const float over = std::bit_cast<float>(static_cast<uint32_t>(127 - bits) << 23);
    return {line.zero, static_cast<float>(format::max_code(bits)) * line.scale, inverse * over,
            lacking * inverse * over};
  }
  static KIVI_HD GroupQuantiser make(const format::GroupLine& line, int bits) {
    return make(line, bits, approximate_reciprocal(line.scale));
  }

  // The code of x as a float of 2^23 and more: its lowest bits.
  KIVI_HD uint32_t raised_code(float x, int bits) const {
    const float d = lesser_or_nan(x - zero, limit);
    const float q = fused_saturated(d, inverse, d * rest);
    return std::bit_cast<uint32_t>(fused(q, static_cast<float>(1U << bits), 8388608.0F));
  }
  KIVI_HD uint32_t code(float x, int bits) const { return raised_code(x, bits) - 0x4B000000U; }
};

}  // namespace kivi::cuda
