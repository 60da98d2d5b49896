// Means over chunks of text, with how sure they are.
#pragma once

#include <span>

namespace kivi {

// A mean and its 95 % confidence interval (Student's t over the chunks); without width for one chunk.
struct Interval {
  double mean = 0.0;
  double low = 0.0;
  double high = 0.0;
};

Interval mean_interval(std::span<const double> x);

}  // namespace kivi
