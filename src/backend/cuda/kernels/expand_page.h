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

namespace kivi::cuda {

inline constexpr int kHalfPage = format::kPageTokens / 2;

// Bytes of a block, and where they are staged. All are multiples of 16.
struct Strip {
  int from;  // from the start of the block
  int to;    // from the start of the staged half
  int bytes;
};

// A side of half a page: where its parts are in a block, and where they are staged.
struct HalfPage {
  Strip codes;
  Strip scales;
  Strip zeros;

  constexpr int bytes() const { return zeros.to + zeros.bytes; }
};

// Half 0 or 1 of a page.
constexpr HalfPage key_half_page(const format::PageLayout& layout, int half) {
  const int codes = kHalfPage * layout.head_dim * layout.key_bits / 8;
  const int row = layout.head_dim * 2;  // of a group's scales
  const int params = row * (layout.key_group < kHalfPage ? kHalfPage / layout.key_group : 1);
  const int skip = half * kHalfPage / layout.key_group * row;
  return {{half * codes, 0, codes},
          {static_cast<int>(layout.key_scales()) + skip, codes, params},
          {static_cast<int>(layout.key_zeros()) + skip, codes + params, params}};
}

constexpr HalfPage value_half_page(const format::PageLayout& layout, int half) {
  const int codes = kHalfPage * layout.head_dim * layout.value_bits / 8;
  const int params = kHalfPage * layout.value_groups() * 2;
  return {{static_cast<int>(layout.value_codes()) + half * codes, 0, codes},
          {static_cast<int>(layout.value_scales()) + half * params, codes, params},
          {static_cast<int>(layout.value_zeros()) + half * params, codes + params, params}};
}

// A pair of stored numbers as T; finite ones that binary16 cannot hold become its largest. (Not its least: a zero is in
// its range, and codes and scales are positive.)
template <typename T>
KIVI_HD uint32_t pack_stored(float low, float high) {
  constexpr float kMost = std::is_same_v<T, Half> ? kHalfMax : std::numeric_limits<float>::max();
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

// Item `item` of the keys: two tokens, eight channels. Writes what belongs to the first n_tokens tokens of the half to
// `rows`, [kHalfPage][pitch].
template <typename T, int kHeadDim, int Bits>
KIVI_HD void expand_keys(int item, const std::byte* staged, const HalfPage& half, int group_tokens, int n_tokens,
                         T* rows, int pitch) {
  constexpr int kPerHalf = 16 / Bits;
  constexpr int kSpans = kHeadDim / format::kTileSpan;
  const int lane = item % 32;
  const int span = item / 32 % kSpans;  // of 32 channels: two fragments
  const int token_tile = item / 32 / kSpans;
  const int fragment = 2 * (token_tile * kSpans + span);
  const int shift = Bits * (fragment % kPerHalf);
  const auto words = load_pack<4>(reinterpret_cast<const uint32_t*>(staged + half.codes.to) +
                                  fragment / kPerHalf * format::kFragmentGroupWords + 4 * lane);
  const int channel = format::kTileSpan * span + lane % 4 * 8;
  const int param = token_tile * format::kTile / group_tokens * kHeadDim + channel;
  const auto scales = load_pack<8>(reinterpret_cast<const Half*>(staged + half.scales.to) + param);
  const auto zeros = load_pack<8>(reinterpret_cast<const Half*>(staged + half.zeros.to) + param);
  for (int below = 0; below < 2; ++below) {  // rows r and r + 8 of the fragments
    const int token = format::spread_number({token_tile, lane / 4 + 8 * below});
    if (token >= n_tokens) continue;
    Pack<uint32_t, 4> pairs;
    for (int i = 0; i < 4; ++i) {  // channels 2i, 2i + 1: fragment i / 2, half i % 2 of its columns
      const uint32_t codes = words.x[below + 2 * (i % 2)] >> (shift + Bits * (i / 2));
      const float low = code_to_float(codes & format::max_code(Bits));
      const float high = code_to_float(codes >> 16 & format::max_code(Bits));
      pairs.x[i] = pack_stored<T>(low * to_float(scales.x[2 * i]) + to_float(zeros.x[2 * i]),
                                  high * to_float(scales.x[2 * i + 1]) + to_float(zeros.x[2 * i + 1]));
    }
    *reinterpret_cast<Pack<uint32_t, 4>*>(rows + token * pitch + channel) = pairs;
  }
}

// Item `item` of the values: four tokens, four channels.
template <typename T, int kHeadDim, int Bits>
KIVI_HD void expand_values(int item, const std::byte* staged, const HalfPage& half, int group_channels, int n_tokens,
                           T* rows, int pitch) {
  constexpr int kPerHalf = 16 / Bits;
  constexpr int kSpans = kHeadDim / format::kTileSpan;
  // An order of the lanes in which neighbours meet few of each other's banks, in words and in rows.
  const int r = item % 32 / 2 % 8;
  const int j = item % 2 + 2 * (item % 32 / 16);
  const int span = item / 32 % kSpans;
  const int token_tile = item / 32 / kSpans;
  const int fragment = 2 * (token_tile * kSpans + span);
  const int shift = Bits * (fragment % kPerHalf);
  const auto words = load_pack<4>(reinterpret_cast<const uint32_t*>(staged + half.codes.to) +
                                  fragment / kPerHalf * format::kFragmentGroupWords + 4 * (4 * r + j));
  const int channel = format::kTileSpan * span + 4 * r;
  const int token = format::spread_number({token_tile, 2 * j});
  const int row = token / format::kTileSpan * (kHeadDim / group_channels) + channel / group_channels;
  const int param = row * format::kTileSpan + token % format::kTileSpan;
  const auto scales = load_pack<4>(reinterpret_cast<const Half*>(staged + half.scales.to) + param);
  const auto zeros = load_pack<4>(reinterpret_cast<const Half*>(staged + half.zeros.to) + param);
  for (int i = 0; i < 4; ++i) {  // tokens: half i / 2 of the columns
    if (token + i >= n_tokens) continue;
    float x[4] = {};
    for (int k = 0; k < 4; ++k) {  // channels: fragment k / 2, half k % 2 of its rows
      const uint32_t codes = words.x[k % 2 + 2 * (i / 2)] >> (shift + Bits * (k / 2) + 16 * (i % 2));
      x[k] = code_to_float(codes & format::max_code(Bits)) * to_float(scales.x[i]) + to_float(zeros.x[i]);
    }
    *reinterpret_cast<Pack<uint32_t, 2>*>(rows + (token + i) * pitch +
                                          channel) = {{pack_stored<T>(x[0], x[1]), pack_stored<T>(x[2], x[3])}};
  }
}

}  // namespace kivi::cuda
