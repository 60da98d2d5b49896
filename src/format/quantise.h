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
//
// That is ParamFormat::kHalf. With ParamFormat::kByte
//   keys    scale = the byte nearest to (max x - min x) / (2^bits - 1), zero = the whole number of units nearest to
//   what
//           puts the codes' middle between min and max. A unit is the binary16 of 1/127 of the largest zero among the
//           channels of a head and the same tokens. That a zero is coarse costs little: codes are chosen for it.
//   values  have been rotated (Backend::rotate), so that the numbers of a group are much like draws from a normal
//           distribution around 0: zero = -(2^bits - 1) / 2 * scale, and scale = the byte nearest to the step that is
//           best for such draws, a constant times the root of their mean square.
#pragma once

#include <bit>
#include <cmath>
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

// What a reader of a group sees: code * scale + zero.
struct GroupLine {
  float scale;
  float zero;
};
KIVI_HD constexpr GroupLine line_of(GroupParams params) {
  return {to_float(params.scale), to_float(params.zero)};
}

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

// ---- ParamFormat::kByte ----

// A scale's byte is the middle of a binary16 >= 0: five bits of exponent and three of mantissa.
KIVI_HD constexpr float scale_of_byte(uint8_t byte) {
  return to_float(Half{static_cast<uint16_t>(byte << 7)});
}
KIVI_HD constexpr uint8_t scale_to_byte(float scale) {
  constexpr uint32_t kLargest = 0xF7;  // 61440; the next would be infinity
  const uint32_t bits = to_half(scale).bits;
  const uint32_t nearest = (bits + 0x3F + (bits >> 7 & 1)) >> 7;  // a half to the even byte
  return static_cast<uint8_t>(nearest < kLargest ? nearest : kLargest);
}

// A zero's byte is a whole number of units, -127 to 127, plus 128.
KIVI_HD constexpr float zero_of_byte(uint8_t byte, float unit) {
  return static_cast<float>(int{byte} - 128) * unit;
}
KIVI_HD constexpr uint8_t zero_to_byte(float zero, float unit) {
  if (unit == 0.0F) return 128;
  const float units = zero / unit;
  const float inside = units < -127.0F ? -127.0F : units < 127.0F ? units : 127.0F;
  return static_cast<uint8_t>(round_half_even(inside + 128.0F));
}
// largest: of the absolute values of all zeros that share the unit.
KIVI_HD constexpr Half zero_unit(float largest) {
  return to_half(largest / 127.0F);
}

// A key group before its zero is stored: its scale's byte, and the zero that would be best.
struct KeyGroupParams {
  uint8_t scale = 0;
  float zero = 0.0F;
};
KIVI_HD constexpr KeyGroupParams key_group_params(const GroupRange& range, int bits) {
  if (range.min > range.max) return {};  // nothing but NaN
  const float low = clamp_to_half_range(range.min);
  const float high = clamp_to_half_range(range.max);
  const auto top = static_cast<float>(max_code(bits));
  const uint8_t scale = scale_to_byte((high - low) / top);
  return {scale, (low + high) * 0.5F - scale_of_byte(scale) * (top * 0.5F)};
}

// The step between levels that loses least of normally distributed numbers of mean square 1.
KIVI_HD constexpr float normal_step(int bits) {
  return bits == 2 ? 0.9957F : bits == 3 ? 0.5860F : bits == 4 ? 0.3352F : 0.0308F;
}
// What x adds to the sum of squares of a group. Sums are taken pair by pair: of neighbours, then of neighbouring sums,
// and so on. NaN counts for 0.
KIVI_HD constexpr float square_of(float x) {
  if (!(x == x)) return 0.0F;
  const float inside = clamp_to_half_range(x);
  return inside * inside;
}
// n: numbers of the group, a power of two.
KIVI_HD inline uint8_t value_scale(float sum_of_squares, int n, int bits) {
  return scale_to_byte(normal_step(bits) * std::sqrt(sum_of_squares / static_cast<float>(n)));
}
// A value group's zero, in steps.
KIVI_HD constexpr float value_zero_steps(int bits) {
  return -0.5F * static_cast<float>(max_code(bits));
}
KIVI_HD constexpr GroupLine value_line(uint8_t scale, int bits) {
  const float step = scale_of_byte(scale);
  return {step, value_zero_steps(bits) * step};
}

static_assert(scale_to_byte(1.0F) == 0x78 && scale_of_byte(0x78) == 1.0F && scale_to_byte(1.0625F) == 0x78);
static_assert(round_half_even(0.5F) == 0 && round_half_even(1.5F) == 2 && round_half_even(2.5F) == 2);

}  // namespace kivi::format
