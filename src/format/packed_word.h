// Codes of `bits` bits in 32-bit words. Code j of a word is in bits [bits*j, bits*(j+1)): code 0 in the low bits.
//   bits = 2:  | c15 | c14 | ... | c1 | c0 |     keys: consecutive tokens of one channel
//   bits = 4:  | c7  | c6  | ... | c1 | c0 |     values: consecutive channels of one token
//   bits = 8:  | c3  | c2  | c1  | c0 |
// Codes of 3 bits lie in two planes: their two low bits as codes of 2 bits, and after all of those their high bits, one
// each. So a group is whole words' halves at every width, and what reads 2 bits reads 3 with one more look.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace kivi::format {

KIVI_HD constexpr bool is_packed_width(int bits) {
  return bits == 2 || bits == 3 || bits == 4 || bits == 8;
}
KIVI_HD constexpr bool has_high_plane(int bits) {
  return bits == 3;
}
// Bits of a code in the words of its low plane: all of them where there is no other.
KIVI_HD constexpr int low_bits(int bits) {
  return has_high_plane(bits) ? 2 : bits;
}
// In a word of the low plane.
KIVI_HD constexpr int codes_per_word(int bits) {
  return 32 / low_bits(bits);
}
KIVI_HD constexpr uint32_t max_code(int bits) {
  return (1U << bits) - 1U;
}

KIVI_HD constexpr uint32_t code_at(uint32_t word, int j, int bits) {
  return (word >> (bits * j)) & max_code(bits);
}

// `word` with code j set; the bits of code j must be zero before.
KIVI_HD constexpr uint32_t with_code(uint32_t word, int j, int bits, uint32_t code) {
  return word | code << (bits * j);
}

// Where a code, or its high bit, is: a word, counted from the start of the side's codes, and its place in the word
// (bit bits * place).
struct CodePlace {
  int64_t word;
  int place;
};
struct CodePlaces {
  CodePlace low;
  CodePlace high;  // where the width has a high plane
};

KIVI_HD constexpr uint32_t read_code(const uint32_t* words, const CodePlaces& at, int bits) {
  const uint32_t low = code_at(words[at.low.word], at.low.place, low_bits(bits));
  return has_high_plane(bits) ? low | code_at(words[at.high.word], at.high.place, 1) << 2 : low;
}
KIVI_HD constexpr void write_code(uint32_t* words, const CodePlaces& at, int bits, uint32_t code) {
  const auto write = [words](const CodePlace& place, int width, uint32_t part) {
    uint32_t& word = words[place.word];
    word = with_code(word & ~(max_code(width) << (width * place.place)), place.place, width, part);
  };
  write(at.low, low_bits(bits), code & max_code(low_bits(bits)));
  if (has_high_plane(bits)) write(at.high, 1, code >> 2);
}

static_assert(code_at(0b11'10'01'00U, 2, 2) == 2U);
static_assert(with_code(0x0000000FU, 1, 4, 0xA) == 0xAFU);

}  // namespace kivi::format
