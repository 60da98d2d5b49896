// 95 % confidence intervals of what is counted over items, and of differences on the same items.
#pragma once

#include <cstdint>
#include <span>

namespace kivi {

struct ConfidenceInterval {
  double low = 0.0;
  double high = 0.0;
};

// Of a proportion, n_right of n: Wilson's score interval. [0, 1] for no items.
ConfidenceInterval proportion_interval(int64_t n_right, int64_t n);

// Of the difference of two proportions on the same n items, first - second, where only_first items are right in the
// first alone and only_second in the second alone: Tango's score interval (Statistics in Medicine 17, 1998), which
// holds for few discordant items, also for none. [-1, 1] for no items.
ConfidenceInterval paired_difference_interval(int64_t only_first, int64_t only_second, int64_t n);

struct MeanEstimate {
  double value = 0.0;
  ConfidenceInterval interval{};  // Student's; value alone for fewer than two items
};

MeanEstimate mean_of(std::span<const double> values);

}  // namespace kivi
