#include "core/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kivi {
namespace {

TEST(Half, EveryValueSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const Half h{static_cast<uint16_t>(bits)};
    const float value = to_float(h);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_half(value)))) << bits;
    } else {
      ASSERT_EQ(to_half(value).bits, h.bits) << bits;
    }
  }
}

TEST(Half, RoundsToNearestEven) {
  // Between any two neighbours the middle goes to the even one, and everything else to the nearer one.
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    const float low = to_float(Half{static_cast<uint16_t>(bits)});
    const float high = to_float(Half{static_cast<uint16_t>(bits + 1)});
    const float middle = 0.5F * (low + high);
    ASSERT_EQ(to_half(middle).bits, bits % 2 == 0 ? bits : bits + 1) << bits;
    ASSERT_EQ(to_half(std::nextafter(middle, 0.0F)).bits, bits) << bits;
    ASSERT_EQ(to_half(std::nextafter(middle, 1e9F)).bits, bits + 1) << bits;
  }
}

TEST(Half, BeyondTheRangeIsInfinity) {
  EXPECT_EQ(to_half(65519.0F).bits, 0x7BFF);
  EXPECT_EQ(to_half(65520.0F).bits, 0x7C00);
  EXPECT_EQ(to_half(-1e30F).bits, 0xFC00);
  EXPECT_EQ(to_half(std::numeric_limits<float>::infinity()).bits, 0x7C00);
  EXPECT_EQ(to_half(-0.0F).bits, 0x8000);
}

TEST(BFloat16, RoundsToNearestEven) {
  EXPECT_EQ(to_bfloat16(1.0F).bits, 0x3F80);
  EXPECT_EQ(to_bfloat16(1.00390625F).bits, 0x3F80);  // half a step above 1: to even
  EXPECT_EQ(to_bfloat16(1.01171875F).bits, 0x3F82);  // one and a half steps: to even
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::nanf("")))));
  for (uint32_t bits = 0; bits < 0x7F80; ++bits) {
    ASSERT_EQ(to_bfloat16(to_float(BFloat16{static_cast<uint16_t>(bits)})).bits, bits);
  }
}

}  // namespace
}  // namespace kivi
