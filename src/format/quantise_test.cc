#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "format/group_params.h"

namespace kivi::format {
namespace {

TEST(Quantise, ErrorIsAtMostHalfAStep) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0F, 3.0F);
  for (const int bits : {2, 4, 8}) {
    for (int round = 0; round < 200; ++round) {
      std::vector<float> group(32);
      for (float& x : group) x = to_float(to_half(normal(random)));
      const auto [low, high] = std::minmax_element(group.begin(), group.end());
      const GroupParams params = group_params({*low, *high}, bits);
      const float scale = to_float(params.scale);
      const float zero = to_float(params.zero);
      for (const float x : group) {
        const float back = dequantise(quantise(x, scale, zero, bits), scale, zero);
        // Half a step, and what the rounding of the scale to binary16 takes from the top of the range.
        EXPECT_LE(std::abs(back - x), 0.5F * scale + (*high - *low) * 0x1p-11F) << "bits " << bits;
      }
    }
  }
}

TEST(Quantise, HalfWayGoesToTheEvenCode) {
  EXPECT_EQ(quantise(0.5F, 1.0F, 0.0F, 2), 0U);
  EXPECT_EQ(quantise(1.5F, 1.0F, 0.0F, 2), 2U);
  EXPECT_EQ(quantise(2.5F, 1.0F, 0.0F, 2), 2U);
  EXPECT_EQ(quantise(2.5001F, 1.0F, 0.0F, 2), 3U);
}

TEST(Quantise, ClampsBeforeRounding) {
  EXPECT_EQ(quantise(-7.0F, 1.0F, 0.0F, 2), 0U);
  EXPECT_EQ(quantise(99.0F, 1.0F, 0.0F, 2), 3U);
  EXPECT_EQ(quantise(std::nanf(""), 1.0F, 0.0F, 2), 0U);
  EXPECT_EQ(quantise(std::numeric_limits<float>::infinity(), 1.0F, 0.0F, 4), 15U);
}

TEST(Quantise, ConstantGroupIsExact) {
  for (const float x : {0.0F, -0.0F, 1.5F, -65504.0F, 0x1p-24F}) {
    const GroupParams params = group_params({x, x}, 2);
    EXPECT_EQ(params.scale.bits, 0);
    const uint32_t code = quantise(x, to_float(params.scale), to_float(params.zero), 2);
    EXPECT_EQ(code, 0U);
    EXPECT_EQ(dequantise(code, to_float(params.scale), to_float(params.zero)), x);
  }
}

TEST(Quantise, RangesBeyondBinary16AreClamped) {
  const GroupParams params = group_params({-1e30F, std::numeric_limits<float>::infinity()}, 2);
  EXPECT_EQ(to_float(params.zero), -kHalfMax);
  EXPECT_TRUE(std::isfinite(to_float(params.scale)));
}

// Backends read a group in orders of their own.
TEST(Quantise, TheOrderOfAGroupDoesNotMatter) {
  const float nan = std::nanf("");
  for (std::vector<float> group : {std::vector<float>{0.0F, -0.0F, -0.0F}, {nan, -2.0F, 1.0F}, {-0.0F, 0.0F, 3.0F}}) {
    std::set<std::pair<int, int>> stored;
    for (size_t i = 0; i < group.size(); ++i) {
      std::rotate(group.begin(), group.begin() + 1, group.end());
      GroupRange range;
      for (const float x : group) range.add(x);
      const GroupParams params = group_params(range, 2);
      stored.emplace(params.scale.bits, params.zero.bits);
    }
    EXPECT_EQ(stored.size(), 1U);
  }
}

TEST(Quantise, ZerosOfUnlikeSignAndNothingButNanAreAConstantGroup) {
  EXPECT_EQ(group_params({0.0F, -0.0F}, 2), GroupParams{});
  EXPECT_EQ(group_params({-0.0F, 0.0F}, 8), GroupParams{});
  GroupRange range;
  range.add(std::nanf(""));
  EXPECT_EQ(group_params(range, 4), GroupParams{});
}

// ---- ParamFormat::kByte ----

TEST(ByteParams, AScaleIsTheNearestByte) {
  for (int byte = 0; byte <= 0xF7; ++byte) {
    EXPECT_EQ(scale_to_byte(scale_of_byte(static_cast<uint8_t>(byte))), byte);
    if (byte == 0xF7) continue;
    const float low = scale_of_byte(static_cast<uint8_t>(byte));
    const float high = scale_of_byte(static_cast<uint8_t>(byte + 1));
    EXPECT_EQ(scale_to_byte(low + 0.25F * (high - low)), byte);
    EXPECT_EQ(scale_to_byte(low + 0.75F * (high - low)), byte + 1);
  }
  EXPECT_EQ(scale_of_byte(1), 0x1p-17F);
  EXPECT_EQ(scale_to_byte(65504.0F), 0xF7) << "never infinity";
}

TEST(ByteParams, AZeroIsAWholeNumberOfUnits) {
  for (int units = -127; units <= 127; ++units) {
    const float zero = static_cast<float>(units) * 0.25F;
    const uint8_t byte = zero_to_byte(zero, 0.25F);
    EXPECT_EQ(byte, units + 128);
    EXPECT_EQ(zero_of_byte(byte, 0.25F), zero);
    EXPECT_EQ(zero_to_byte(zero + 0.1F, 0.25F), byte);
  }
  EXPECT_EQ(zero_to_byte(1000.0F, 0.25F), 255);
  EXPECT_EQ(zero_to_byte(-1000.0F, 0.25F), 1);
  EXPECT_EQ(zero_to_byte(1000.0F, 0.0F), 128);
}

// Codes are chosen for the stored line, so that the error of a number inside it is at most half a step, and the line
// leaves out no more than the byte of the scale and the unit of the zero take.
TEST(ByteParams, AKeyGroupIsCovered) {
  for (const int bits : {2, 3, 4}) {
    const auto top = static_cast<float>(max_code(bits));
    for (int i = 1; i < 200; ++i) {
      const GroupRange range{-0.37F * static_cast<float>(i), 0.11F * static_cast<float>(i * i)};
      const float unit = to_float(zero_unit(3.0F * std::abs(range.min)));
      const KeyGroupParams params = key_group_params(range, bits);
      const float scale = scale_of_byte(params.scale);
      const float zero = zero_of_byte(zero_to_byte(params.zero, unit), unit);
      for (const float x : {range.min, range.max}) {
        const float error = std::abs(dequantise(quantise(x, scale, zero, bits), scale, zero) - x);
        EXPECT_LE(error, 0.51F * unit + 0.04F * top * scale) << "bits " << bits << " i " << i;
      }
    }
  }
}

TEST(ByteParams, AGroupOfNothingButNaN) {
  const KeyGroupParams params = key_group_params({}, 3);
  EXPECT_EQ(params.scale, 0);
  EXPECT_EQ(params.zero, 0.0F);
  EXPECT_EQ(square_of(std::numeric_limits<float>::quiet_NaN()), 0.0F);
  EXPECT_EQ(square_of(std::numeric_limits<float>::infinity()), kHalfMax * kHalfMax);
}

// The step is the best there is: a tenth more or less makes the mean square error of normal draws larger.
TEST(ByteParams, TheStepOfValuesFitsNormalNumbers) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> draws(1 << 16);
  for (float& x : draws) x = normal(random);
  for (const int bits : {2, 3, 4, 8}) {
    const auto error = [&](float step) {
      const float zero = -0.5F * static_cast<float>(max_code(bits)) * step;
      double sum = 0;
      for (const float x : draws) sum += std::pow(dequantise(quantise(x, step, zero, bits), step, zero) - x, 2.0);
      return sum;
    };
    EXPECT_LT(error(normal_step(bits)), error(1.1F * normal_step(bits))) << bits;
    EXPECT_LT(error(normal_step(bits)), error(0.9F * normal_step(bits))) << bits;
  }
}

TEST(ByteParams, ValuesHaveLevelsAroundZero) {
  const std::vector<float> x(64, 2.0F);
  const uint8_t scale = value_scale(sum_of_squares(x), 64, 2);
  EXPECT_EQ(scale_of_byte(scale), 2.0F);  // 1.99
  const GroupLine line = value_line(scale, 2);
  EXPECT_EQ(line.zero, -3.0F);
  EXPECT_EQ(dequantise(0, line.scale, line.zero), -dequantise(3, line.scale, line.zero));
}

}  // namespace
}  // namespace kivi::format
