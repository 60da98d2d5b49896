#include "eval/tasks/confidence.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace kivi {
namespace {

constexpr double kZ = 1.959963984540054;  // the normal distribution's 97.5 % point

// How many standard errors the observed difference is above `difference`, under which the standard error is that of
// the most likely proportions. It falls as `difference` rises.
double score(double only_first, double only_second, double n, double difference) {
  const double observed = only_first - only_second;
  // The most likely proportion of items that are right in the second alone solves a q^2 + b q + c = 0.
  const double a = 2 * n;
  const double b = -only_first - only_second + (2 * n - observed) * difference;
  const double c = -only_second * difference * (1 - difference);
  const double q = (std::sqrt(std::max(0.0, b * b - 4 * a * c)) - b) / (2 * a);
  const double variance = n * (2 * q + difference * (1 - difference));
  const double excess = observed - n * difference;
  if (variance <= 0) return excess > 0 ? HUGE_VAL : excess < 0 ? -HUGE_VAL : 0.0;
  return excess / std::sqrt(variance);
}

// The difference in [low, high] whose score is `wanted`.
double solve_score(double only_first, double only_second, double n, double low, double high, double wanted) {
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (score(only_first, only_second, n, middle) > wanted ? low : high) = middle;
  }
  return (low + high) / 2;
}

// The 97.5 % point of Student's t with n degrees of freedom.
double student_t(size_t n) {
  constexpr std::array<double, 10> kFirst = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228};
  if (n <= kFirst.size()) return kFirst[n - 1];
  const auto nu = static_cast<double>(n);
  // Cornish and Fisher's expansion about the normal distribution; good to 0.001 from 11 on.
  return kZ + (std::pow(kZ, 3) + kZ) / (4 * nu) +
         (5 * std::pow(kZ, 5) + 16 * std::pow(kZ, 3) + 3 * kZ) / (96 * nu * nu);
}

}  // namespace

ConfidenceInterval proportion_interval(int64_t n_right, int64_t n) {
  if (n == 0) return {0.0, 1.0};
  const auto items = static_cast<double>(n);
  const double p = static_cast<double>(n_right) / items;
  const double z2 = kZ * kZ / items;
  const double centre = p + z2 / 2;
  const double reach = kZ * std::sqrt((p * (1 - p) + z2 / 4) / items);
  // Exact where rounding would miss it.
  return {n_right == 0 ? 0.0 : (centre - reach) / (1 + z2), n_right == n ? 1.0 : (centre + reach) / (1 + z2)};
}

ConfidenceInterval paired_difference_interval(int64_t only_first, int64_t only_second, int64_t n) {
  if (n == 0) return {-1.0, 1.0};
  const auto first = static_cast<double>(only_first);
  const auto second = static_cast<double>(only_second);
  const auto items = static_cast<double>(n);
  const double observed = (first - second) / items;
  return {solve_score(first, second, items, -1.0, observed, kZ), solve_score(first, second, items, observed, 1.0, -kZ)};
}

MeanEstimate mean_of(std::span<const double> values) {
  const auto n = static_cast<double>(values.size());
  double sum = 0.0;
  for (const double value : values) sum += value;
  const double mean = values.empty() ? 0.0 : sum / n;
  if (values.size() < 2) return {mean, {mean, mean}};
  double squares = 0.0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double reach = student_t(values.size() - 1) * std::sqrt(squares / (n - 1) / n);
  return {mean, {mean - reach, mean + reach}};
}

}  // namespace kivi
