#include "format/page_layout.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace kivi::format {
namespace {

// Every (token, channel) has bits of its own, and they fill the codes without a gap.
void expect_bijection(const PageLayout& layout) {
  std::set<int64_t> bits[2];
  const auto add = [](std::set<int64_t>& taken, const CodePlaces& at, int width) {
    for (int i = 0; i < low_bits(width); ++i) taken.insert(at.low.word * 32 + at.low.place * low_bits(width) + i);
    if (has_high_plane(width)) taken.insert(at.high.word * 32 + at.high.place);
  };
  for (int token = 0; token < kPageTokens; ++token) {
    for (int channel = 0; channel < layout.head_dim; ++channel) {
      add(bits[0], layout.key_code(token, channel), layout.key_bits);
      add(bits[1], layout.value_code(token, channel), layout.value_bits);
      ASSERT_LT(layout.key_param(token, channel) * layout.param_bytes(), layout.key_zeros() - layout.key_scales());
      ASSERT_LT(layout.value_param(token, channel) * layout.param_bytes(),
                layout.value_zeros() - layout.value_scales());
    }
  }
  const auto expect_full = [&layout](const std::set<int64_t>& taken, int width, int64_t bytes) {
    EXPECT_EQ(std::ssize(taken), int64_t{kPageTokens} * layout.head_dim * width);
    EXPECT_EQ(*taken.begin(), 0);
    EXPECT_EQ(*taken.rbegin(), bytes * 8 - 1);
  };
  expect_full(bits[0], layout.key_bits, layout.key_scales());
  expect_full(bits[1], layout.value_bits, layout.value_scales() - layout.value_codes());
}

TEST(PageLayout, EveryCodeHasItsOwnPlace) {
  for (const CodeOrder order : {CodeOrder::kLinear, CodeOrder::kFragment}) {
    for (const int head_dim : {64, 96, 128, 256}) {
      for (const int bits : {2, 3, 4, 8}) {
        for (const int group : {32, 64, 128})
          expect_bijection({2, head_dim, bits, bits == 3 ? 2 : bits == 2 ? 3 : bits, group, 32, order});
      }
      for (const int bits : {2, 3}) {
        expect_bijection({2, head_dim, bits, 5 - bits, 128, 32, order, ParamFormat::kByte});
      }
    }
  }
  expect_bijection({2, 64, 2, 4, 16, 16});
  expect_bijection({2, 80, 3, 3, 16, 16});
}

TEST(PageLayout, SizesAreTheFormatsBits) {
  const PageLayout paper{3, 64, 2, 2, 32, 32};
  EXPECT_EQ(paper.page_bytes() * 8, static_cast<int64_t>(3.0 * kPageTokens * 64 * 2 * 3));
  EXPECT_DOUBLE_EQ((PageLayout{1, 64, 2, 2, 64, 64}.bits_per_element()), 2.5);
  EXPECT_DOUBLE_EQ((PageLayout{1, 64, 2, 2, 128, 64}.bits_per_element()), 2.375);
  EXPECT_DOUBLE_EQ((PageLayout{1, 128, 4, 2, 32, 32}.bits_per_element()), 4.0);
  EXPECT_DOUBLE_EQ((PageLayout{1, 64, 3, 2, 128, 64, CodeOrder::kLinear, ParamFormat::kByte}.bits_per_element()),
                   (3 + 2 + (16.0 + 0.25) / 128 + 8.0 / 64) / 2);
}

}  // namespace
}  // namespace kivi::format
