#include "format/packed_word.h"

#include <gtest/gtest.h>

namespace kivi::format {
namespace {

TEST(PackedWord, CodesComeBackFromEveryPlace) {
  for (const int bits : {2, 4, 8}) {
    uint32_t word = 0;
    for (int j = 0; j < codes_per_word(bits); ++j)
      word = with_code(word, j, bits, static_cast<uint32_t>(7 * j + 1) & max_code(bits));
    for (int j = 0; j < codes_per_word(bits); ++j) {
      EXPECT_EQ(code_at(word, j, bits), static_cast<uint32_t>(7 * j + 1) & max_code(bits))
          << "bits " << bits << " place " << j;
    }
  }
}

TEST(PackedWord, LowBitsFirst) {
  EXPECT_EQ(with_code(0, 0, 2, 3), 3U);
  EXPECT_EQ(with_code(0, 15, 2, 3), 0xC0000000U);
  EXPECT_EQ(with_code(0, 7, 4, 0xF), 0xF0000000U);
  EXPECT_EQ(with_code(0, 3, 8, 0xFF), 0xFF000000U);
}

}  // namespace
}  // namespace kivi::format
