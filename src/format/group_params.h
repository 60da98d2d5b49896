// The stored parameters of groups, read and written whatever their format.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/host_device.h"
#include "format/page_layout.h"
#include "format/quantise.h"

namespace kivi::format {

KIVI_HD inline float half_at(const std::byte* halves, int64_t index) {
  return to_float(reinterpret_cast<const Half*>(halves)[index]);
}

// Of the group that has (token, channel) of the keys.
KIVI_HD inline GroupLine key_line(const PageLayout& layout, const std::byte* block, int token, int channel) {
  const int64_t at = layout.key_param(token, channel);
  const std::byte* scales = block + layout.key_scales();
  const std::byte* zeros = block + layout.key_zeros();
  if (layout.params == ParamFormat::kHalf) return {half_at(scales, at), half_at(zeros, at)};
  const float unit = half_at(block + layout.key_zero_units(), token / layout.key_group);
  return {scale_of_byte(static_cast<uint8_t>(scales[at])), zero_of_byte(static_cast<uint8_t>(zeros[at]), unit)};
}

// Of the group that has (token, channel) of the values.
KIVI_HD inline GroupLine value_line(const PageLayout& layout, const std::byte* block, int token, int channel) {
  const int64_t at = layout.value_param(token, channel);
  const std::byte* scales = block + layout.value_scales();
  if (layout.params == ParamFormat::kHalf) return {half_at(scales, at), half_at(block + layout.value_zeros(), at)};
  return value_line(static_cast<uint8_t>(scales[at]), layout.value_bits);
}

// ---- On a host ----

// The sum of squares of n numbers, a power of two, pair by pair.
inline float sum_of_squares(std::span<const float> x) {
  if (x.size() == 1) return square_of(x[0]);
  const size_t half = x.size() / 2;
  return sum_of_squares(x.first(half)) + sum_of_squares(x.subspan(half));
}

inline void set_half(std::byte* halves, int64_t index, Half h) {
  reinterpret_cast<Half*>(halves)[index] = h;
}

// The params of the key groups that begin with `token`. ranges: of each channel.
inline void store_key_params(const PageLayout& layout, std::byte* block, int token,
                             std::span<const GroupRange> ranges) {
  const int64_t first = layout.key_param(token, 0);
  std::byte* scales = block + layout.key_scales();
  std::byte* zeros = block + layout.key_zeros();
  if (layout.params == ParamFormat::kHalf) {
    for (int c = 0; c < layout.head_dim; ++c) {
      const GroupParams params = group_params(ranges[c], layout.key_bits);
      set_half(scales, first + c, params.scale);
      set_half(zeros, first + c, params.zero);
    }
    return;
  }
  float largest = 0.0F;
  for (const GroupRange& range : ranges) {
    largest = std::max(largest, std::abs(key_group_params(range, layout.key_bits).zero));
  }
  const Half unit = zero_unit(largest);
  set_half(block + layout.key_zero_units(), token / layout.key_group, unit);
  for (int c = 0; c < layout.head_dim; ++c) {
    const KeyGroupParams params = key_group_params(ranges[c], layout.key_bits);
    scales[first + c] = std::byte{params.scale};
    zeros[first + c] = std::byte{zero_to_byte(params.zero, to_float(unit))};
  }
}

// The params of the value group x that begins at (token, channel).
inline void store_value_params(const PageLayout& layout, std::byte* block, int token, int channel,
                               std::span<const float> x) {
  const int64_t at = layout.value_param(token, channel);
  std::byte* scales = block + layout.value_scales();
  if (layout.params == ParamFormat::kByte) {
    scales[at] = std::byte{value_scale(sum_of_squares(x), static_cast<int>(x.size()), layout.value_bits)};
    return;
  }
  GroupRange range;
  for (const float number : x) range.add(number);
  const GroupParams params = group_params(range, layout.value_bits);
  set_half(scales, at, params.scale);
  set_half(block + layout.value_zeros(), at, params.zero);
}

}  // namespace kivi::format
