#include "format/quantise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <utility>
#include <vector>

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

}  // namespace
}  // namespace kivi::format
