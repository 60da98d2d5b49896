// The packed page: kPageTokens consecutive tokens of one layer and all its KV heads. Version 2.
//
//   page   = block of KV head 0 | block of KV head 1 | ...          each block is padded to kBlockAlignment
//   block  = key codes | key params | value codes | value params
//
//   key codes     uint32    [kPageTokens / key_group][head_dim][key_group * key_bits / 32]
//   value codes   uint32    [kPageTokens][head_dim * value_bits / 32]
//   Codes of 3 bits: so with 2 bits, then one bit a code in the same order (format/packed_word.h).
//
// With ParamFormat::kHalf, params are scales and then zeros, binary16 both:
//   key scales    [kPageTokens / key_group][head_dim]    one for each group of tokens and channel
//   value scales  [head_dim / value_group][kPageTokens]  one for each group of channels and token
// With ParamFormat::kByte (format/quantise.h) they are uint8 of the same shapes. Values have no zeros, and the zeros of
// keys are in units of their own:
//   key zero units  binary16  [kPageTokens / key_group], padded to kUnitsBytes
//
// That is CodeOrder::kLinear. A device may keep the codes of a side in another order of the same words
// (format/fragment_order.h), and with it value scales (and zeros) as
//
//   value scales  [kPageTokens / kTileSpan][head_dim / value_group][kTileSpan]
//
// so that 32 tokens are read without gaps; everything else stays where it is.
// A side (keys or values) that stays in 16 bits has 0 bits here and takes no room in the page.
// Token t of a page is token 128 * page + t counted from the end of the sinks. Keys and values of a page fill at their
// own pace (format/window_policy.h). docs/packed-format.md is this in prose, with test vectors.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "format/fragment_order.h"
#include "format/packed_word.h"

namespace kivi::format {

inline constexpr int kVersion = 2;
inline constexpr int kPageTokens = 128;
inline constexpr int kBlockAlignment = 32;
inline constexpr int kUnitsBytes = 32;
// Widths of groups are multiples of this, so that a group is whole words at every bit width.
inline constexpr int kGroupUnit = 16;

enum class CodeOrder : uint8_t {
  kLinear,
  kFragment,  // needs head_dim and groups that are multiples of kTileSpan
};

// How a group's scale and zero are stored.
enum class ParamFormat : uint8_t {
  kHalf,  // in binary16
  kByte,  // in 8 bits each; values, rotated before, have a scale only
};

struct PageLayout {
  int n_kv_heads = 0;
  int head_dim = 0;     // a multiple of kGroupUnit
  int key_bits = 0;     // 2, 3, 4 or 8; 0: keys are never packed
  int value_bits = 0;   // 2, 3, 4 or 8; 0: values are never packed
  int key_group = 0;    // tokens; a multiple of kGroupUnit that divides kPageTokens
  int value_group = 0;  // channels; a multiple of kGroupUnit that divides head_dim; kByte: a power of two
  CodeOrder order = CodeOrder::kLinear;
  ParamFormat params = ParamFormat::kHalf;

  friend constexpr bool operator==(const PageLayout&, const PageLayout&) = default;

  KIVI_HD constexpr int key_groups() const { return kPageTokens / key_group; }
  KIVI_HD constexpr int value_groups() const { return head_dim / value_group; }
  // Whoever stores values has turned each group by a Walsh-Hadamard transform, and turns back what attention returns.
  KIVI_HD constexpr bool has_rotated_values() const { return params == ParamFormat::kByte && value_bits != 0; }
  KIVI_HD constexpr int param_bytes() const { return params == ParamFormat::kHalf ? 2 : 1; }
  // Words of the low plane.
  KIVI_HD constexpr int words_per_key_group() const { return key_group * low_bits(key_bits) / 32; }
  KIVI_HD constexpr int words_per_value_row() const { return head_dim * low_bits(value_bits) / 32; }

  // Byte offsets inside a block. Planes of high bits come after key_codes() and value_codes().
  KIVI_HD constexpr int64_t key_codes() const { return 0; }
  KIVI_HD constexpr int64_t key_high_plane() const { return low_plane_bytes(key_bits); }
  KIVI_HD constexpr int64_t key_scales() const { return int64_t{kPageTokens} * head_dim * key_bits / 8; }
  KIVI_HD constexpr int64_t key_zeros() const { return key_scales() + key_params_bytes(); }
  KIVI_HD constexpr int64_t key_zero_units() const { return key_zeros() + key_params_bytes(); }
  KIVI_HD constexpr int64_t value_codes() const {
    return key_zero_units() + (params == ParamFormat::kByte && key_bits != 0 ? kUnitsBytes : 0);
  }
  KIVI_HD constexpr int64_t value_high_plane() const { return value_codes() + low_plane_bytes(value_bits); }
  KIVI_HD constexpr int64_t value_scales() const {
    return value_codes() + int64_t{kPageTokens} * head_dim * value_bits / 8;
  }
  KIVI_HD constexpr int64_t value_zeros() const { return value_scales() + value_params_bytes(); }  // kHalf only
  KIVI_HD constexpr int64_t payload_bytes() const {
    return value_zeros() + (params == ParamFormat::kHalf ? value_params_bytes() : 0);
  }
  KIVI_HD constexpr int64_t block_bytes() const {
    return (payload_bytes() + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
  }
  KIVI_HD constexpr int64_t page_bytes() const { return n_kv_heads * block_bytes(); }

  // Where the code of (token, channel) is among the words of its side; index of its scale and zero from the start of
  // theirs.
  KIVI_HD constexpr CodePlaces key_code(int token, int channel) const {
    const int64_t first_high = low_plane_bytes(key_bits) / 4;
    if (order == CodeOrder::kFragment) return key_fragment_place(token, channel, head_dim, key_bits, first_high);
    const int in_group = token % key_group;
    const int64_t run = int64_t{token / key_group} * head_dim + channel;
    return {{run * words_per_key_group() + in_group / codes_per_word(key_bits), in_group % codes_per_word(key_bits)},
            bit_place(first_high, run * key_group + in_group)};
  }
  KIVI_HD constexpr int64_t key_param(int token, int channel) const {
    return int64_t{token / key_group} * head_dim + channel;
  }
  KIVI_HD constexpr CodePlaces value_code(int token, int channel) const {
    const int64_t first_high = low_plane_bytes(value_bits) / 4;
    if (order == CodeOrder::kFragment) return value_fragment_place(token, channel, head_dim, value_bits, first_high);
    return {{int64_t{token} * words_per_value_row() + channel / codes_per_word(value_bits),
             channel % codes_per_word(value_bits)},
            bit_place(first_high, int64_t{token} * head_dim + channel)};
  }
  KIVI_HD constexpr int64_t value_param(int token, int channel) const {
    if (order == CodeOrder::kFragment) {
      const int64_t row = int64_t{token / kTileSpan} * value_groups() + channel / value_group;
      return row * kTileSpan + token % kTileSpan;
    }
    return int64_t{channel / value_group} * kPageTokens + token;
  }

  // Bits per cached element of the packed format: codes, scales and zeros; no windows, no page slack. A side that is
  // never packed counts 16.
  constexpr double bits_per_element() const {
    const bool half = params == ParamFormat::kHalf;
    const double key_params = half ? 32.0 / key_group : (16.0 + 16.0 / head_dim) / key_group;
    const double value_params = (half ? 32.0 : 8.0) / value_group;
    return 0.5 *
           ((key_bits == 0 ? 16.0 : key_bits + key_params) + (value_bits == 0 ? 16.0 : value_bits + value_params));
  }

 private:
  KIVI_HD constexpr int64_t low_plane_bytes(int bits) const {
    return int64_t{kPageTokens} * head_dim * low_bits(bits) / 8;
  }
  KIVI_HD static constexpr CodePlace bit_place(int64_t first_word, int64_t bit) {
    return {first_word + bit / 32, static_cast<int>(bit % 32)};
  }
  // Bytes of the scales (the zeros take the same).
  KIVI_HD constexpr int64_t key_params_bytes() const {
    return key_bits == 0 ? 0 : int64_t{key_groups()} * head_dim * param_bytes();
  }
  KIVI_HD constexpr int64_t value_params_bytes() const {
    return value_bits == 0 ? 0 : int64_t{value_groups()} * kPageTokens * param_bytes();
  }
};

// The paper's setting at head_dim 128: 96 bytes a token and KV head, no padding.
static_assert(PageLayout{1, 128, 2, 2, 32, 32}.page_bytes() == 96 * kPageTokens);
static_assert(PageLayout{1, 128, 2, 2, 32, 32}.bits_per_element() == 3.0);
static_assert(PageLayout{3, 64, 4, 4, 32, 32}.page_bytes() == 3 * 80 * kPageTokens);
// Keys of 3 bits, values of 2, params of 8.
static_assert(PageLayout{1, 64, 3, 2, 128, 64, CodeOrder::kLinear, ParamFormat::kByte}.page_bytes() ==
              (24 + 16 + 1 + 1) * kPageTokens + kUnitsBytes);

}  // namespace kivi::format
