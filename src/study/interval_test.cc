#include "study/interval.h"

#include <gtest/gtest.h>

#include <vector>

namespace kivi {
namespace {

TEST(Interval, IsStudentsOverTheChunks) {
  const std::vector<double> x = {1, 2, 3, 4};  // deviation 1.29099, standard error 0.645497
  const Interval interval = mean_interval(x);
  EXPECT_DOUBLE_EQ(interval.mean, 2.5);
  EXPECT_NEAR(interval.high, 2.5 + 3.182 * 0.645497, 1e-3);
  EXPECT_NEAR(interval.low + interval.high, 5, 1e-12);
}

TEST(Interval, OfManyIsNearTheNormalOne) {
  std::vector<double> x;
  for (int i = 0; i < 31; ++i) x.push_back(i % 2);
  const Interval interval = mean_interval(x);
  const double standard_error = 0.508001 / 5.567764;  // of 15 ones in 31
  EXPECT_NEAR((interval.high - interval.mean) / standard_error, 2.042, 0.002);
}

TEST(Interval, OfOneHasNoWidth) {
  const std::vector<double> x = {7};
  EXPECT_EQ(mean_interval(x).low, 7);
  EXPECT_EQ(mean_interval(x).high, 7);
}

}  // namespace
}  // namespace kivi
