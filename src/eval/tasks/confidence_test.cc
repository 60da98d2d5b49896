#include "eval/tasks/confidence.h"

#include <gtest/gtest.h>

#include <vector>

namespace kivi {
namespace {

void expect_near(const ConfidenceInterval& interval, double low, double high, double tolerance) {
  EXPECT_NEAR(interval.low, low, tolerance);
  EXPECT_NEAR(interval.high, high, tolerance);
}

// Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
TEST(ConfidenceTest, ProportionsAreThoseOfNewcombesTable) {
  expect_near(proportion_interval(81, 263), 0.2553, 0.3662, 5e-5);
  expect_near(proportion_interval(15, 148), 0.0624, 0.1605, 5e-5);
  expect_near(proportion_interval(0, 20), 0.0, 0.1611, 5e-5);
  expect_near(proportion_interval(1, 29), 0.0061, 0.1718, 5e-5);
}

TEST(ConfidenceTest, ProportionsStayInTheirRange) {
  EXPECT_EQ(proportion_interval(0, 20).low, 0.0);
  EXPECT_EQ(proportion_interval(20, 20).high, 1.0);
  expect_near(proportion_interval(0, 0), 0.0, 1.0, 0.0);
}

// The likelihood maximised by a search instead of by its formula gives these.
TEST(ConfidenceTest, PairedDifferencesAreTangos) {
  expect_near(paired_difference_interval(12, 2, 50), 0.061112, 0.344709, 1e-6);
  expect_near(paired_difference_interval(1, 7, 21), -0.517232, -0.026003, 1e-6);
  expect_near(paired_difference_interval(30, 50, 1319), -0.028976, -0.001916, 1e-6);
  expect_near(paired_difference_interval(1, 0, 100), -0.027363, 0.054486, 1e-6);
  expect_near(paired_difference_interval(0, 9, 54), -0.287365, -0.089184, 1e-6);
}

TEST(ConfidenceTest, NoDiscordantItemsLeaveAnIntervalAllTheSame) {
  const ConfidenceInterval interval = paired_difference_interval(0, 0, 30);
  expect_near(interval, -0.113513, 0.113513, 1e-6);  // z^2 / (n + z^2)
  expect_near(paired_difference_interval(0, 0, 0), -1.0, 1.0, 0.0);
}

TEST(ConfidenceTest, SwappedSidesSwapTheInterval) {
  const ConfidenceInterval one = paired_difference_interval(5, 9, 40);
  const ConfidenceInterval other = paired_difference_interval(9, 5, 40);
  expect_near(one, -other.high, -other.low, 1e-9);
}

TEST(ConfidenceTest, MeansHaveStudentsIntervals) {
  const std::vector<double> values = {1, 2, 3, 4};  // standard error 0.645497
  const MeanEstimate mean = mean_of(values);
  EXPECT_DOUBLE_EQ(mean.value, 2.5);
  expect_near(mean.interval, 2.5 - 3.182 * 0.645497, 2.5 + 3.182 * 0.645497, 1e-3);
  expect_near(mean_of(std::vector<double>{3}).interval, 3, 3, 0);
  EXPECT_EQ(mean_of({}).value, 0);
}

TEST(ConfidenceTest, MeansOfManyAreNearlyNormal) {
  std::vector<double> values;
  for (int i = 0; i < 31; ++i) values.push_back(i % 2);
  const MeanEstimate mean = mean_of(values);
  const double standard_error = 0.508001 / 5.567764;  // of 15 ones in 31
  EXPECT_NEAR((mean.interval.high - mean.value) / standard_error, 2.042, 0.002);
}

}  // namespace
}  // namespace kivi
