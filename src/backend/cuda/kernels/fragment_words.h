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

// What a word of a plane has of the codes of fragment i of its group, and where.
template <int Bits, Plane plane>
struct PlaneBits {
  static constexpr int kLow = format::low_bits(Bits);
  static constexpr int kWidth = plane == Plane::kLow ? kLow : 1;
  static constexpr int kLowWords = plane == Plane::kLow ? 1 : 2;  // whose codes it has

  static KIVI_HD constexpr uint32_t part(uint32_t code) {
    if constexpr (!format::has_high_plane(Bits)) return code;
    return plane == Plane::kLow ? code & format::max_code(kLow) : code >> kLow;
  }
  // In the lower half; of the second word of the low plane, in a byte of its own.
  static KIVI_HD constexpr int at(int i, int low_word) {
    return plane == Plane::kLow ? kLow * i : format::high_bit_in_byte(i) + 8 * (low_word % 2);
  }
};

// The codes of tokens first .. end - 1 of a page that word `word` of a plane of the keys holds. code_of(token,
// channel).
template <int Bits, Plane plane, typename CodeOf>
KIVI_HD constexpr WordUpdate key_word(int word, int head_dim, int first, int end, CodeOf code_of) {
  using Part = PlaneBits<Bits, plane>;
  WordUpdate update;
  for (int low = word * Part::kLowWords; low < (word + 1) * Part::kLowWords; ++low) {
    for_each_fragment(low / format::kFragmentGroupWords, head_dim, Bits, [&](int i, int token_tile, int channel_tile) {
      const int token = format::spread_number({token_tile, row_of_word(low)});
      if (token < first || token >= end) return;
      const int channel = format::spread_number({channel_tile, column_of_word(low)});
      update.codes |= (Part::part(code_of(token, channel)) | Part::part(code_of(token, channel + 1)) << 16)
                      << Part::at(i, low);
      update.mask |= format::max_code(Part::kWidth) * 0x00010001U << Part::at(i, low);
    });
  }
  return update;
}

// The same for values: a word has two neighbouring tokens.
template <int Bits, Plane plane, typename CodeOf>
KIVI_HD constexpr WordUpdate value_word(int word, int head_dim, int first, int end, CodeOf code_of) {
  using Part = PlaneBits<Bits, plane>;
  WordUpdate update;
  for (int low = word * Part::kLowWords; low < (word + 1) * Part::kLowWords; ++low) {
    for_each_fragment(low / format::kFragmentGroupWords, head_dim, Bits, [&](int i, int token_tile, int channel_tile) {
      const int token = format::spread_number({token_tile, column_of_word(low)});
      const int channel = format::rows_number({channel_tile, row_of_word(low)});
      for (int odd = 0; odd < 2; ++odd) {
        if (token + odd < first || token + odd >= end) continue;
        update.codes |= Part::part(code_of(token + odd, channel)) << (16 * odd + Part::at(i, low));
        update.mask |= format::max_code(Part::kWidth) << (16 * odd + Part::at(i, low));
      }
    });
  }
  return update;
}

}  // namespace kivi::cuda
