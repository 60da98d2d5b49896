#include "study/interval.h"

#include <array>
#include <cmath>

namespace kivi {
namespace {

// The 97.5 % point of Student's t with n degrees of freedom.
double student_t(size_t n) {
  constexpr std::array<double, 10> kFirst = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228};
  if (n <= kFirst.size()) return kFirst[n - 1];
  const double z = 1.959964;
  const auto nu = static_cast<double>(n);
  // Cornish and Fisher's expansion about the normal distribution; good to 0.001 from 11 on.
  return z + (std::pow(z, 3) + z) / (4 * nu) + (5 * std::pow(z, 5) + 16 * std::pow(z, 3) + 3 * z) / (96 * nu * nu);
}

}  // namespace

Interval mean_interval(std::span<const double> x) {
  if (x.empty()) return {};
  const auto n = static_cast<double>(x.size());
  double mean = 0;
  for (const double value : x) mean += value / n;
  if (x.size() == 1) return {mean, mean, mean};
  double squares = 0;
  for (const double value : x) squares += (value - mean) * (value - mean);
  const double half = student_t(x.size() - 1) * std::sqrt(squares / (n - 1) / n);
  return {mean, mean - half, mean + half};
}

}  // namespace kivi
