#include "study/group_axis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <vector>

namespace kivi {
namespace {

constexpr int64_t kTokens = 48;
constexpr int64_t kChannels = 32;

std::vector<float> random_rows() {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> rows(kTokens * kChannels);
  for (float& x : rows) x = normal(random);
  return rows;
}

std::vector<float> quantised(std::vector<float> rows, const Grouping& grouping) {
  quantise_in_place({rows.data(), {kTokens, kChannels}}, grouping);
  return rows;
}

double largest_error(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(double{a[i]} - b[i]));
  return largest;
}

TEST(GroupAxis, AGroupHasNoMoreValuesThanCodes) {
  const std::vector<float> per_token = quantised(random_rows(), {GroupAxis::kToken, 2, 16});
  const std::vector<float> per_channel = quantised(random_rows(), {GroupAxis::kChannel, 2, 16});
  for (int64_t group = 0; group < 2; ++group) {
    std::set<float> of_token;
    std::set<float> of_channel;
    for (int64_t i = 0; i < 16; ++i) {
      of_token.insert(per_token[7 * kChannels + group * 16 + i]);
      of_channel.insert(per_channel[(group * 16 + i) * kChannels + 7]);
    }
    EXPECT_LE(of_token.size(), 4U);
    EXPECT_LE(of_channel.size(), 4U);
    EXPECT_GT(of_token.size() + of_channel.size(), 4U);
  }
}

TEST(GroupAxis, TheErrorIsHalfAStepAtMost) {
  for (const GroupAxis axis : {GroupAxis::kToken, GroupAxis::kChannel}) {
    const std::vector<float> rows = random_rows();
    const auto [low, high] = std::ranges::minmax(rows);
    double previous = 1e9;
    for (const int bits : {2, 4, 8}) {
      const double error = largest_error(rows, quantised(rows, {axis, bits, 16}));
      // Half a step of the widest group there can be, and what binary16 makes of scale and zero.
      EXPECT_LE(error, double{high - low} / ((1 << bits) - 1) / 2 + 8 * 0x1p-11);
      EXPECT_LT(error, previous / 2);
      previous = error;
    }
  }
}

TEST(GroupAxis, AnOutlierStaysInItsGroup) {
  std::vector<float> rows = random_rows();
  const std::vector<float> plain = rows;
  for (int64_t t = 0; t < kTokens; ++t) rows[t * kChannels + 3] += 1000.0F;  // a channel
  const std::vector<float> per_channel = quantised(rows, {GroupAxis::kChannel, 2, 16});
  const std::vector<float> plain_per_channel = quantised(plain, {GroupAxis::kChannel, 2, 16});
  const std::vector<float> per_token = quantised(rows, {GroupAxis::kToken, 2, 16});
  for (int64_t t = 0; t < kTokens; ++t) {
    EXPECT_EQ(per_channel[t * kChannels + 2], plain_per_channel[t * kChannels + 2]);
    EXPECT_EQ(per_token[t * kChannels + 2], per_token[t * kChannels + 4]);  // both at the group's zero
  }
}

TEST(GroupAxis, ALastGroupMayBeSmaller) {
  const std::vector<float> rows = random_rows();
  std::vector<float> tail(rows.end() - 16 * kChannels, rows.end());
  const std::vector<float> all = quantised(rows, {GroupAxis::kChannel, 2, 32});
  quantise_in_place({tail.data(), {16, kChannels}}, {GroupAxis::kChannel, 2, 32});
  EXPECT_TRUE(std::equal(tail.begin(), tail.end(), all.end() - 16 * kChannels));
}

}  // namespace
}  // namespace kivi
