// The packed page: kPageTokens consecutive tokens of one layer and all its KV heads. Version 1.
//
//   page   = block of KV head 0 | block of KV head 1 | ...          each block is padded to kBlockAlignment
//   block  = key codes | key scales | key zeros | value codes | value scales | value zeros
//
//   key codes     uint32    [kPageTokens / key_group][head_dim][key_group * key_bits / 32]
//   key scales    binary16  [kPageTokens / key_group][head_dim]
//                           one for each group of tokens and channel; key zeros alike
//   value codes   uint32    [kPageTokens][head_dim * value_bits / 32]
//   value scales  binary16  [head_dim / value_group][kPageTokens]
//                           one for each group of channels and token; value zeros alike
//
// That is CodeOrder::kLinear. A device may keep the codes of a side in another order of the same words
// (format/fragment_order.h), and with it value scales (and zeros) as
//
//   value scales  binary16  [kPageTokens / kTileSpan][head_dim / value_group][kTileSpan]
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

inline constexpr int kVersion = 1;
inline constexpr int kPageTokens = 128;
inline constexpr int kBlockAlignment = 64;
// Widths of groups are multiples of this, so that a group is whole words at every bit width.
inline constexpr int kGroupUnit = 16;

enum class CodeOrder : uint8_t {
  kLinear,
  kFragment,  // needs head_dim and groups that are multiples of kTileSpan
};

struct PageLayout {
  int n_kv_heads = 0;
  int head_dim = 0;     // a multiple of kGroupUnit
  int key_bits = 0;     // 2, 4 or 8; 0: keys are never packed
  int value_bits = 0;   // 2, 4 or 8; 0: values are never packed
  int key_group = 0;    // tokens; a multiple of kGroupUnit that divides kPageTokens
  int value_group = 0;  // channels; a multiple of kGroupUnit that divides head_dim
  CodeOrder order = CodeOrder::kLinear;

  friend constexpr bool operator==(const PageLayout&, const PageLayout&) = default;

  KIVI_HD constexpr int key_groups() const { return kPageTokens / key_group; }
  KIVI_HD constexpr int value_groups() const { return head_dim / value_group; }
  KIVI_HD constexpr int words_per_key_group() const { return key_group * key_bits / 32; }
  KIVI_HD constexpr int words_per_value_group() const { return value_group * value_bits / 32; }
  KIVI_HD constexpr int words_per_value_row() const { return head_dim * value_bits / 32; }

  // Byte offsets inside a block.
  KIVI_HD constexpr int64_t key_codes() const { return 0; }
  KIVI_HD constexpr int64_t key_scales() const { return int64_t{kPageTokens} * head_dim * key_bits / 8; }
  KIVI_HD constexpr int64_t key_zeros() const { return key_scales() + key_params_bytes(); }
  KIVI_HD constexpr int64_t value_codes() const { return key_zeros() + key_params_bytes(); }
  KIVI_HD constexpr int64_t value_scales() const {
    return value_codes() + int64_t{kPageTokens} * head_dim * value_bits / 8;
  }
  KIVI_HD constexpr int64_t value_zeros() const { return value_scales() + value_params_bytes(); }
  KIVI_HD constexpr int64_t payload_bytes() const { return value_zeros() + value_params_bytes(); }
  KIVI_HD constexpr int64_t block_bytes() const {
    return (payload_bytes() + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
  }
  KIVI_HD constexpr int64_t page_bytes() const { return n_kv_heads * block_bytes(); }

  // Where the code of (token, channel) is among the words of its side; index of its scale and zero from the start of
  // theirs.
  KIVI_HD constexpr CodePlace key_code(int token, int channel) const {
    if (order == CodeOrder::kFragment) return key_fragment_place(token, channel, head_dim, key_bits);
    const int in_group = token % key_group;
    return {
        (int64_t{token / key_group} * head_dim + channel) * words_per_key_group() + in_group / codes_per_word(key_bits),
        token % codes_per_word(key_bits)};
  }
  KIVI_HD constexpr int64_t key_param(int token, int channel) const {
    return int64_t{token / key_group} * head_dim + channel;
  }
  KIVI_HD constexpr CodePlace value_code(int token, int channel) const {
    if (order == CodeOrder::kFragment) return value_fragment_place(token, channel, head_dim, value_bits);
    return {int64_t{token} * words_per_value_row() + channel / codes_per_word(value_bits),
            channel % codes_per_word(value_bits)};
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
    const double key = key_bits == 0 ? 16.0 : key_bits + 32.0 / key_group;
    const double value = value_bits == 0 ? 16.0 : value_bits + 32.0 / value_group;
    return 0.5 * (key + value);
  }

 private:
  // Bytes of the scales (the zeros take the same).
  KIVI_HD constexpr int64_t key_params_bytes() const {
    return key_bits == 0 ? 0 : int64_t{key_groups()} * head_dim * 2;
  }
  KIVI_HD constexpr int64_t value_params_bytes() const {
    return value_bits == 0 ? 0 : int64_t{value_groups()} * kPageTokens * 2;
  }
};

// The paper's setting at head_dim 128: 96 bytes a token and KV head, no padding.
static_assert(PageLayout{1, 128, 2, 2, 32, 32}.page_bytes() == 96 * kPageTokens);
static_assert(PageLayout{1, 128, 2, 2, 32, 32}.bits_per_element() == 3.0);
static_assert(PageLayout{3, 64, 4, 4, 32, 32}.page_bytes() == 3 * 80 * kPageTokens);

}  // namespace kivi::format
