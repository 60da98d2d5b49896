// 95 % confidence intervals of what is counted over items, and of differences on the same items.
#pragma once

#include <cstdint>
#include <span>

namespace kivi {

struct Interval {
  double low = 0.0;
  double high = 0.0;
};

// Of a proportion, n_right of n: Wilson's score interval. [0, 1] for no items.
Interval proportion_interval(int64_t n_right, int64_t n);

// Of the difference of two proportions on the same n items, first - second, where only_first items are right in the
// first alone and only_second in the second alone: Tango's score interval (Statistics in Medicine 17, 1998), which
// holds for few discordant items, also for none. [-1, 1] for no items.
Interval paired_difference_interval(int64_t only_first, int64_t only_second, int64_t n);

struct Mean {
  double value = 0.0;
  Interval interval{};  // normal approximation; value alone for fewer than two items
};

Mean mean_of(std::span<const double> values);

}  // namespace kivi
