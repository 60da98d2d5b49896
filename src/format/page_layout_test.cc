#include "format/page_layout.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace kivi::format {
namespace {

// Every (token, channel) has a place of its own, and the places fill the codes without a gap.
void expect_bijection(const PageLayout& layout) {
  std::set<std::pair<int64_t, int>> keys;
  std::set<std::pair<int64_t, int>> values;
  for (int token = 0; token < kPageTokens; ++token) {
    for (int channel = 0; channel < layout.head_dim; ++channel) {
      const CodePlace key = layout.key_code(token, channel);
      const CodePlace value = layout.value_code(token, channel);
      keys.emplace(key.word, key.place);
      values.emplace(value.word, value.place);
      ASSERT_LT(key.place, codes_per_word(layout.key_bits));
      ASSERT_LT(value.place, codes_per_word(layout.value_bits));
      ASSERT_LT(key.word * 4, layout.key_scales());
      ASSERT_LT(layout.key_param(token, channel) * 2, layout.key_zeros() - layout.key_scales());
      ASSERT_LT(value.word * 4, layout.value_scales() - layout.value_codes());
      ASSERT_LT(layout.value_param(token, channel) * 2, layout.value_zeros() - layout.value_scales());
    }
  }
  EXPECT_EQ(keys.size(), static_cast<size_t>(kPageTokens * layout.head_dim));
  EXPECT_EQ(values.size(), static_cast<size_t>(kPageTokens * layout.head_dim));
}

TEST(PageLayout, EveryCodeHasItsOwnPlace) {
  for (const CodeOrder order : {CodeOrder::kLinear, CodeOrder::kFragment}) {
    for (const int head_dim : {64, 96, 128, 256}) {
      for (const int key_bits : {2, 4, 8}) {
        for (const int value_bits : {2, 4, 8}) {
          for (const int group : {32, 64, 128}) {
            expect_bijection({2, head_dim, key_bits, value_bits, group, 32, order});
          }
        }
      }
    }
  }
  expect_bijection({2, 64, 2, 4, 16, 16});
}

TEST(PageLayout, SizesAreTheFormatsBits) {
  const PageLayout paper{3, 64, 2, 2, 32, 32};
  EXPECT_EQ(paper.page_bytes() * 8, static_cast<int64_t>(3.0 * kPageTokens * 64 * 2 * 3));
  EXPECT_DOUBLE_EQ((PageLayout{1, 64, 2, 2, 64, 64}.bits_per_element()), 2.5);
  EXPECT_DOUBLE_EQ((PageLayout{1, 64, 2, 2, 128, 64}.bits_per_element()), 2.375);
  EXPECT_DOUBLE_EQ((PageLayout{1, 128, 4, 2, 32, 32}.bits_per_element()), 4.0);
}

}  // namespace
}  // namespace kivi::format
