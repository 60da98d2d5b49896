// Half a page as a tile of 16-bit rows: 64 tokens of one side are copied as they are (staged), then each code * scale +
// zero is rounded once to T, Half or BFloat16. For host and device: the tests check it against the layout's index
// functions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "backend/cuda/device/pack_pair.h"
#include "core/half.h"
#include "core/host_device.h"
#include "format/fragment_order.h"
#include "format/page_layout.h"
#include "format/quantise.h"

namespace kivi::cuda {

inline constexpr int kHalfPage = format::kPageTokens / 2;

// Bytes of a block, and where they are staged. All are multiples of 16.
struct Strip {
  int from;  // from the start of the block
  int to;    // from the start of the staged half
  int bytes;
};

// A side of half a page: where its parts are in a block, and where they are staged. What a layout has not, has no
// bytes.
struct HalfPage {
  enum Part : uint8_t { kCodes, kHighPlane, kScales, kZeros, kZeroUnits, kParts };
  Strip strips[kParts];
  int first_unit = 0;  // of those staged

  constexpr int bytes() const { return strips[kParts - 1].to + strips[kParts - 1].bytes; }
  template <typename T>
  KIVI_HD const T* part(const std::byte* staged, Part which) const {
    return reinterpret_cast<const T*>(staged + strips[which].to);
  }
  // Parts are set in order: each is staged behind the last.
  constexpr void set(Part which, int64_t from, int n_bytes) {
    const int to = which == kCodes ? 0 : strips[which - 1].to + strips[which - 1].bytes;
    strips[which] = {static_cast<int>(from), to, n_bytes};
  }
  constexpr void set_codes(int64_t low, int64_t high, int bits, int head_dim, int half) {
    const int low_bytes = kHalfPage * head_dim * format::low_bits(bits) / 8;
    const int high_bytes = format::has_high_plane(bits) ? kHalfPage * head_dim / 8 : 0;
    set(kCodes, low + half * low_bytes, low_bytes);
    set(kHighPlane, high + half * high_bytes, high_bytes);
  }
};

// Half 0 or 1 of a page.
constexpr HalfPage key_half_page(const format::PageLayout& layout, int half) {
  const int row = layout.head_dim * layout.param_bytes();  // of a group's scales
  const int params = row * (layout.key_group < kHalfPage ? kHalfPage / layout.key_group : 1);
  HalfPage out;
  out.set_codes(layout.key_codes(), layout.key_high_plane(), layout.key_bits, layout.head_dim, half);
  out.first_unit = half * kHalfPage / layout.key_group;
  out.set(HalfPage::kScales, layout.key_scales() + out.first_unit * row, params);
  out.set(HalfPage::kZeros, layout.key_zeros() + out.first_unit * row, params);
  out.set(HalfPage::kZeroUnits, layout.key_zero_units(), layout.params == format::ParamFormat::kByte ? 16 : 0);
  return out;
}

constexpr HalfPage value_half_page(const format::PageLayout& layout, int half) {
  const int params = kHalfPage * layout.value_groups() * layout.param_bytes();
  HalfPage out;
  out.set_codes(layout.value_codes(), layout.value_high_plane(), layout.value_bits, layout.head_dim, half);
  out.set(HalfPage::kScales, layout.value_scales() + half * params, params);
  out.set(HalfPage::kZeros, layout.value_zeros() + half * params,
          layout.params == format::ParamFormat::kHalf ? params : 0);
  out.set(HalfPage::kZeroUnits, 0, 0);
  return out;
}

// A pair of stored numbers as T; finite ones that binary16 cannot hold become its largest, or its least. (Not the
// latter with params in binary16: then a zero is in its range, and codes and scales are positive.)
template <typename T, format::ParamFormat kParams>
KIVI_HD uint32_t pack_stored(float low, float high) {
  constexpr float kMost = std::is_same_v<T, Half> ? kHalfMax : std::numeric_limits<float>::max();
  if constexpr (kParams == format::ParamFormat::kByte) {
    low = low > -kMost ? low : -kMost;
    high = high > -kMost ? high : -kMost;
  }
  return pack_pair<T>(low < kMost ? low : kMost, high < kMost ? high : kMost);
}

// A code as float, without a conversion, of which a GPU does few at a time.
KIVI_HD constexpr float code_to_float(uint32_t code) {
  return std::bit_cast<float>(0x4B000000U | code) - 8388608.0F;
}

// Numbers that are loaded and stored at once.
template <typename E, int n>
struct alignas(sizeof(E) * n) Pack {
  E x[n];
};
template <int n, typename E>
KIVI_HD inline Pack<E, n> load_pack(const E* from) {
  return *reinterpret_cast<const Pack<E, n>*>(from);
}

// What threads share the work of expanding by: an item is 16 codes.
KIVI_HD constexpr int expand_items(int head_dim) {
  return kHalfPage * head_dim / 16;
}

// The codes that a lane has of two neighbouring fragments: `fragment`, which is even, and the next.
template <int Bits>
class LaneCodes {
 public:
  KIVI_HD LaneCodes(const std::byte* staged, const HalfPage& half, int fragment, int lane)
      : words_(load_pack<4>(half.part<uint32_t>(staged, HalfPage::kCodes) +
                            fragment / kPerHalf * format::kFragmentGroupWords + 4 * lane)),
        shift_(kLow * (fragment % kPerHalf)) {
    if constexpr (format::has_high_plane(Bits)) {
      high_words_ = load_pack<2>(half.part<uint32_t>(staged, HalfPage::kHighPlane) +
                                 fragment / kPerHalf * format::kHighGroupWords + 2 * lane);
      high_shift_ = format::high_bit_in_byte(fragment % kPerHalf);
    }
  }

  // Of the first or the second fragment, of a register, of its lower or upper half; as float.
  KIVI_HD float code(int second, int in_lane, int odd) const {
    uint32_t code = words_.x[in_lane] >> (shift_ + kLow * second + 16 * odd) & format::max_code(kLow);
    if constexpr (format::has_high_plane(Bits)) {
      code |= (high_words_.x[in_lane / 2] >> (high_shift_ + 2 * second + 8 * (in_lane % 2) + 16 * odd) & 1U) << kLow;
    }
    return code_to_float(code);
  }

 private:
  static constexpr int kLow = format::low_bits(Bits);
  static constexpr int kPerHalf = 16 / kLow;
  Pack<uint32_t, 4> words_;
  int shift_;
  Pack<uint32_t, 2> high_words_ = {};
  int high_shift_ = 0;
};

// The lines of n neighbouring groups: of the keys n channels, of the values n tokens. `first` is the first one's number
// among the params that are staged, `unit` its unit's.
template <format::ParamFormat kParams, int n>
struct Lines {
  static constexpr bool kHalves = kParams == format::ParamFormat::kHalf;
  using Param = std::conditional_t<kHalves, Half, uint8_t>;
  Pack<Param, n> scales;
  Pack<Param, n> zeros = {};
  float zero_unit = 0.0F;

  static KIVI_HD Lines of_keys(const std::byte* staged, const HalfPage& half, int first, int unit) {
    Lines lines{load_pack<n>(half.part<Param>(staged, HalfPage::kScales) + first),
                load_pack<n>(half.part<Param>(staged, HalfPage::kZeros) + first)};
    if constexpr (!kHalves) lines.zero_unit = to_float(half.part<Half>(staged, HalfPage::kZeroUnits)[unit]);
    return lines;
  }
  static KIVI_HD Lines of_values(const std::byte* staged, const HalfPage& half, int first) {
    Lines lines{load_pack<n>(half.part<Param>(staged, HalfPage::kScales) + first)};
    if constexpr (kHalves) lines.zeros = load_pack<n>(half.part<Param>(staged, HalfPage::kZeros) + first);
    return lines;
  }

  KIVI_HD format::GroupLine key(int i) const {
    if constexpr (kHalves)
      return {to_float(scales.x[i]), to_float(zeros.x[i])};
    else
      return {format::scale_of_byte(scales.x[i]), (code_to_float(zeros.x[i]) - 128.0F) * zero_unit};
  }
  KIVI_HD format::GroupLine value(int i, int bits) const {
    if constexpr (kHalves)
      return {to_float(scales.x[i]), to_float(zeros.x[i])};
    else
      return format::value_line(scales.x[i], bits);
  }
};

// Item `item` of the keys: two tokens, eight channels. Writes what belongs to the first n_tokens tokens of the half to
// `rows`, [kHalfPage][pitch].
template <typename T, int kHeadDim, int Bits, format::ParamFormat kParams>
KIVI_HD void expand_keys(int item, const std::byte* staged, const HalfPage& half, int group_tokens, int n_tokens,
                         T* rows, int pitch) {
  constexpr int kSpans = kHeadDim / format::kTileSpan;
  const int lane = item % 32;
  const int span = item / 32 % kSpans;  // of 32 channels: two fragments
  const int token_tile = item / 32 / kSpans;
  const LaneCodes<Bits> codes(staged, half, 2 * (token_tile * kSpans + span), lane);
  const int channel = format::kTileSpan * span + lane % 4 * 8;
  const int group = token_tile * format::kTile / group_tokens;
  const auto lines = Lines<kParams, 8>::of_keys(staged, half, group * kHeadDim + channel, half.first_unit + group);
  for (int below = 0; below < 2; ++below) {  // rows r and r + 8 of the fragments
    const int token = format::spread_number({token_tile, lane / 4 + 8 * below});
    if (token >= n_tokens) continue;
    Pack<uint32_t, 4> pairs;
    for (int i = 0; i < 4; ++i) {  // channels 2i, 2i + 1: fragment i / 2, half i % 2 of its columns
      float x[2];
      for (int odd = 0; odd < 2; ++odd) {
        const format::GroupLine line = lines.key(2 * i + odd);
        x[odd] = codes.code(i / 2, below + 2 * (i % 2), odd) * line.scale + line.zero;
      }
      pairs.x[i] = pack_stored<T, kParams>(x[0], x[1]);
    }
    *reinterpret_cast<Pack<uint32_t, 4>*>(rows + token * pitch + channel) = pairs;
  }
}

// Item `item` of the values: four tokens, four channels.
template <typename T, int kHeadDim, int Bits, format::ParamFormat kParams>
KIVI_HD void expand_values(int item, const std::byte* staged, const HalfPage& half, int group_channels, int n_tokens,
                           T* rows, int pitch) {
  constexpr int kSpans = kHeadDim / format::kTileSpan;
  // An order of the lanes in which neighbours meet few of each other's banks, in words and in rows.
  const int r = item % 32 / 2 % 8;
  const int j = item % 2 + 2 * (item % 32 / 16);
  const int span = item / 32 % kSpans;
  const int token_tile = item / 32 / kSpans;
  const LaneCodes<Bits> codes(staged, half, 2 * (token_tile * kSpans + span), 4 * r + j);
  const int channel = format::kTileSpan * span + 4 * r;
  const int token = format::spread_number({token_tile, 2 * j});
  const int row = token / format::kTileSpan * (kHeadDim / group_channels) + channel / group_channels;
  const auto lines = Lines<kParams, 4>::of_values(staged, half, row * format::kTileSpan + token % format::kTileSpan);
  for (int i = 0; i < 4; ++i) {  // tokens: half i / 2 of the columns
    if (token + i >= n_tokens) continue;
    const format::GroupLine line = lines.value(i, Bits);
    float x[4] = {};
    for (int k = 0; k < 4; ++k) {  // channels: fragment k / 2, half k % 2 of its rows
      x[k] = codes.code(k / 2, k % 2 + 2 * (i / 2), i % 2) * line.scale + line.zero;
    }
    *reinterpret_cast<Pack<uint32_t, 2>*>(rows + (token + i) * pitch + channel) = {
        {pack_stored<T, kParams>(x[0], x[1]), pack_stored<T, kParams>(x[2], x[3])}};
  }
}

}  // namespace kivi::cuda
