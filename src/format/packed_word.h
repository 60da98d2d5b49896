// Codes of `bits` bits in 32-bit words. Code j of a word is in bits [bits*j, bits*(j+1)): code 0 in the low bits.
//   bits = 2:  | c15 | c14 | ... | c1 | c0 |     keys: consecutive tokens of one channel
//   bits = 4:  | c7  | c6  | ... | c1 | c0 |     values: consecutive channels of one token
//   bits = 8:  | c3  | c2  | c1  | c0 |
// A width that does not divide 32 (3 bits) would pack 32 codes into `bits` words; nothing below depends on the count of
// codes in a word except these functions.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace kivi::format {

KIVI_HD constexpr bool is_packed_width(int bits) {
  return bits == 2 || bits == 4 || bits == 8;
}
KIVI_HD constexpr int codes_per_word(int bits) {
  return 32 / bits;
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

static_assert(code_at(0b11'10'01'00U, 2, 2) == 2U);
static_assert(with_code(0x0000000FU, 1, 4, 0xA) == 0xAFU);

}  // namespace kivi::format
