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
  return fragments % (16 / bits) == 0 ? format::kTileSpan : 2 * format::kTileSpan;
}

// Words that hold the codes of n tokens; n a multiple of exclusive_tokens.
KIVI_HD constexpr int words_of_tokens(int n_tokens, int head_dim, int bits) {
  return n_tokens * head_dim * bits / 32;
}

// New codes of a word, and the bits that they take in it.
struct WordUpdate {
  uint32_t codes = 0;
  uint32_t mask = 0;

  KIVI_HD constexpr uint32_t apply(uint32_t word) const { return (word & ~mask) | codes; }
};

// Calls visit(i, token tile, channel tile) for the 16 / bits fragments of a group.
template <typename Visit>
KIVI_HD constexpr void for_each_fragment(int group, int head_dim, int bits, Visit visit) {
  const int channel_tiles = head_dim / format::kTile;
  const int per_half = 16 / bits;
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

// The row and the even column of a fragment that word `word` of a side has.
KIVI_HD constexpr int row_of_word(int word) {
  return word / 4 % 32 / 4 + 8 * (word % 2);
}
KIVI_HD constexpr int column_of_word(int word) {
  return word / 4 % 4 * 2 + 8 * (word / 2 % 2);
}

// The codes of tokens first .. end - 1 of a page that word `word` of the keys holds. code_of(token, channel).
template <int Bits, typename CodeOf>
KIVI_HD constexpr WordUpdate key_word(int word, int head_dim, int first, int end, CodeOf code_of) {
  WordUpdate update;
  for_each_fragment(word / format::kFragmentGroupWords, head_dim, Bits, [&](int i, int token_tile, int channel_tile) {
    const int token = format::spread_number({token_tile, row_of_word(word)});
    if (token < first || token >= end) return;
    const int channel = format::spread_number({channel_tile, column_of_word(word)});
    update.codes |= (code_of(token, channel) | code_of(token, channel + 1) << 16) << (Bits * i);
    update.mask |= format::max_code(Bits) * 0x00010001U << (Bits * i);
  });
  return update;
}

// The same for values: a word has two neighbouring tokens.
template <int Bits, typename CodeOf>
KIVI_HD constexpr WordUpdate value_word(int word, int head_dim, int first, int end, CodeOf code_of) {
  WordUpdate update;
  for_each_fragment(word / format::kFragmentGroupWords, head_dim, Bits, [&](int i, int token_tile, int channel_tile) {
    const int token = format::spread_number({token_tile, column_of_word(word)});
    const int channel = format::rows_number({channel_tile, row_of_word(word)});
    for (int odd = 0; odd < 2; ++odd) {
      if (token + odd < first || token + odd >= end) continue;
      update.codes |= code_of(token + odd, channel) << (16 * odd + Bits * i);
      update.mask |= format::max_code(Bits) << (16 * odd + Bits * i);
    }
  });
  return update;
}

}  // namespace kivi::cuda
