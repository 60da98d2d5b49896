// The quantiser (KIVI, section 3): asymmetric, round to nearest even, one scale and one zero for each group.
//
//   zero  = binary16(min x)                     scale = binary16((max x - min x) / (2^bits - 1))
//   code  = round_half_even(clamp((x - zero) / scale, 0, 2^bits - 1))
//   x'    = code * scale + zero
//
// The arithmetic is IEEE binary32 with no contraction, on the *stored* scale and zero, so that a code is the best one
// for the values that a reader will see, and is the same bit for bit on every backend. A group whose scale is 0
// (constant, or a spread below binary16) has all codes 0 and dequantises to its zero: exactly, if the input is
// binary16. Minima and maxima beyond +-65504 (possible in bfloat16 and float) are clamped to it; -0 counts as +0; a NaN
// counts for neither and gets code 0. So nothing depends on the order in which a group is read.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "core/half.h"
#include "core/host_device.h"
#include "format/packed_word.h"

namespace kivi::format {

// What a group stores beside its codes.
struct GroupParams {
  Half scale;
  Half zero;  // the minimum
  friend constexpr bool operator==(GroupParams, GroupParams) = default;
};

// The smallest and the largest number added so far; min > max before the first.
struct GroupRange {
  float min = std::numeric_limits<float>::infinity();
  float max = -std::numeric_limits<float>::infinity();

  KIVI_HD constexpr void add(float x) {
    if (x < min) min = x;
    if (x > max) max = x;
  }
};

// -0 becomes +0: the sum of zeros of unlike sign is +0.
KIVI_HD constexpr float clamp_to_half_range(float x) {
  if (x < -kHalfMax) return -kHalfMax;
  return (x < kHalfMax ? x : kHalfMax) + 0.0F;
}

KIVI_HD constexpr GroupParams group_params(const GroupRange& range, int bits) {
  if (range.min > range.max) return {};  // nothing but NaN
  const float low = clamp_to_half_range(range.min);
  const float high = clamp_to_half_range(range.max);
  return {to_half((high - low) / static_cast<float>(max_code(bits))), to_half(low)};
}

// Round half to even for 0 <= x <= 255: adding 2^23 leaves no fraction bits, and the addition rounds.
KIVI_HD constexpr uint32_t round_half_even(float x) {
  return std::bit_cast<uint32_t>(x + 8388608.0F) & 0x7FFFFFU;
}

// The code of x; `scale` and `zero` are the stored parameters as float.
KIVI_HD constexpr uint32_t quantise(float x, float scale, float zero, int bits) {
  if (scale == 0.0F) return 0;
  const auto top = static_cast<float>(max_code(bits));
  const float position = (x - zero) / scale;
  if (!(position > 0.0F)) return 0;  // and NaN
  return round_half_even(position < top ? position : top);
}

KIVI_HD constexpr float dequantise(uint32_t code, float scale, float zero) {
  return static_cast<float>(code) * scale + zero;
}

static_assert(round_half_even(0.5F) == 0 && round_half_even(1.5F) == 2 && round_half_even(2.5F) == 2);

}  // namespace kivi::format
