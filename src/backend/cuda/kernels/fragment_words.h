// Writing and reading codes in fragment order (format/fragment_order.h) from the words' side: which elements a word
// holds, and what 64 staged tokens of a page are as 16-bit rows. For host and device: the tests enumerate it on the
// host.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/host_device.h"
#include "format/fragment_order.h"
#include "format/packed_word.h"

namespace kivi::cuda {

// The shortest stretch of a page that shares no word with other tokens, if it starts at a multiple of itself: one
// writer has whole stretches. 32 tokens, but 64 where the fragments of 32 do not fill their last group.
KIVI_HD constexpr int exclusive_tokens(int head_dim, int bits) {
  const int fragments = format::kTileSpan * head_dim / (format::kTile * format::kTile);
  return fragments % (16 / format::low_bits(bits)) == 0 ? format::kTileSpan : 2 * format::kTileSpan;
}

enum class Plane : uint8_t { kLow, kHigh };

// Words of a plane that hold the codes of n tokens; n a multiple of exclusive_tokens.
KIVI_HD constexpr int words_of_tokens(int n_tokens, int head_dim, int bits, Plane plane) {
  return n_tokens * head_dim * (plane == Plane::kLow ? format::low_bits(bits) : 1) / 32;
}

// New codes of a word, and the bits that they take in it.
struct WordUpdate {
  uint32_t codes = 0;
  uint32_t mask = 0;

  // A part of a code, `width` bits at bit `at`.
  KIVI_HD constexpr void add(int at, int width, uint32_t part) {
    codes |= part << at;
    mask |= format::max_code(width) << at;
  }
  KIVI_HD constexpr uint32_t apply(uint32_t word) const { return (word & ~mask) | codes; }
};

// Calls visit(i, token tile, channel tile) for the fragments of a group, 16 / low_bits(bits) of them.
template <typename Visit>
KIVI_HD constexpr void for_each_fragment(int group, int head_dim, int bits, Visit visit) {
  const int channel_tiles = head_dim / format::kTile;
  const int per_half = 16 / format::low_bits(bits);
  int token_tile = group * per_half / channel_tiles;
  int channel_tile = group * per_half % channel_tiles;
  for (int i = 0; i < per_half; ++i) {
    visit(i, token_tile, channel_tile);
    if (++channel_tile == channel_tiles) {
      channel_tile = 0;
      ++token_tile;
    }
  }
}

// The row and the even column of a fragment that word `word` of a side's low plane has.
KIVI_HD constexpr int row_of_word(int word) {
  return word / 4 % 32 / 4 + 8 * (word % 2);
}
KIVI_HD constexpr int column_of_word(int word) {
  return word / 4 % 4 * 2 + 8 * (word / 2 % 2);
}

// Calls visit(i, odd, token, channel) for the codes of a word of the keys' low plane: fragment i of its group, the
// lower or the upper half.
template <int Bits, typename Visit>
KIVI_HD constexpr void for_each_key(int word, int head_dim, Visit visit) {
  for_each_fragment(word / format::kFragmentGroupWords, head_dim, Bits, [&](int i, int token_tile, int channel_tile) {
    const int token = format::spread_number({token_tile, row_of_word(word)});
    const int channel = format::spread_number({channel_tile, column_of_word(word)});
    for (int odd = 0; odd < 2; ++odd) visit(i, odd, token, channel + odd);
  });
}

// The same for values: a word has two neighbouring tokens.
template <int Bits, typename Visit>
KIVI_HD constexpr void for_each_value(int word, int head_dim, Visit visit) {
  for_each_fragment(word / format::kFragmentGroupWords, head_dim, Bits, [&](int i, int token_tile, int channel_tile) {
    const int token = format::spread_number({token_tile, column_of_word(word)});
    const int channel = format::rows_number({channel_tile, row_of_word(word)});
    for (int odd = 0; odd < 2; ++odd) visit(i, odd, token + odd, channel);
  });
}

// What word `word` of a plane holds of tokens first .. end - 1 of a page. code_of(token, channel);
// for_each(word of the low plane, visit) is one of the above.
template <int Bits, Plane plane, typename ForEach, typename CodeOf>
KIVI_HD constexpr WordUpdate update_of_word(int word, int first, int end, ForEach for_each, CodeOf code_of) {
  constexpr int kLow = format::low_bits(Bits);
  WordUpdate update;
  if constexpr (plane == Plane::kLow) {
    for_each(word, [&](int i, int odd, int token, int channel) {
      if (token < first || token >= end) return;
      update.add(16 * odd + kLow * i, kLow, code_of(token, channel) & format::max_code(kLow));
    });
  } else {  // the high bits of what two words of the low plane have
    for (int below = 0; below < 2; ++below) {
      for_each(2 * word + below, [&](int i, int odd, int token, int channel) {
        if (token < first || token >= end) return;
        update.add(16 * odd + 8 * below + format::high_bit_in_byte(i), 1, code_of(token, channel) >> kLow);
      });
    }
  }
  return update;
}

template <int Bits, Plane plane, typename CodeOf>
KIVI_HD constexpr WordUpdate key_word(int word, int head_dim, int first, int end, CodeOf code_of) {
  return update_of_word<Bits, plane>(
      word, first, end, [=](int low, auto visit) { for_each_key<Bits>(low, head_dim, visit); }, code_of);
}
template <int Bits, Plane plane, typename CodeOf>
KIVI_HD constexpr WordUpdate value_word(int word, int head_dim, int first, int end, CodeOf code_of) {
  return update_of_word<Bits, plane>(
      word, first, end, [=](int low, auto visit) { for_each_value<Bits>(low, head_dim, visit); }, code_of);
}

}  // namespace kivi::cuda
