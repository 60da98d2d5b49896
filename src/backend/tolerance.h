// How far a backend that computes in f32 may be from the reference, which computes in double and rounds once. For
// tests. Each bound is derived, not tuned: a bound that fails means a wrong kernel.
#pragma once

#include <bit>
#include <cmath>

#include "core/dtype.h"

namespace kivi::tolerance {

inline constexpr double kUnit = 0x1p-24;  // half the spacing of f32 at 1: the relative error of one rounding

// A sum of n products in f32, in any order and fused or not: at most n + 1 roundings of partial sums, each no larger
// than the sum of magnitudes.
inline double dot(int64_t n, double sum_of_magnitudes) {
  return static_cast<double>(n + 1) * kUnit * sum_of_magnitudes + 1e-37;
}

// The same on tensor cores: products of 16-bit numbers are exact, but terms are cut off, not rounded, where they are
// aligned to the largest and where they are summed: two steps a product, each of at most one spacing (two units).
inline double tensor_core_dot(int64_t n, double sum_of_magnitudes) {
  return 4.0 * dot(n, sum_of_magnitudes);
}

// A result that was within `error` of `wanted` before it was stored in `dtype`. The bounds here count the rounding to
// f32 themselves.
inline double stored(DType dtype, double wanted, double error) {
  if (dtype == DType::kF32) return error;
  const double unit = dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
  const double subnormal = dtype == DType::kF16 ? 0x1p-25 : 0x1p-134;  // half their spacing
  return error + unit * (std::abs(wanted) + error) + subnormal;
}

// x * scale * weight: the mean of n squares (all positive, so its relative error is that of the sum), halved by the
// root; then root, division, two products.
inline double rms_norm(int64_t n, double result) {
  return (0.5 * static_cast<double>(n + 3) + 5.0) * kUnit * std::abs(result) + 1e-37;
}

// (x - m) * scale + bias: as above, and m is off by a sum's error of its terms, whose mean magnitude is given, 0 where
// there is no mean; `scale` is weight over deviation.
inline double norm(int64_t n, double mean_magnitude, double scale, double bias, double result) {
  const double mean_error = static_cast<double>(n + 2) * kUnit * mean_magnitude;
  return rms_norm(n, result - bias) + std::abs(scale) * 2.0 * mean_error +
         2.0 * kUnit * (std::abs(bias) + std::abs(result));
}

// cap * tanh(x / cap): tanh to 8 units, which is what libraries promise of it, a division and a product.
inline double soft_cap(double result) {
  return 12.0 * kUnit * std::abs(result) + 1e-37;
}

// a cos - b sin: two products, a sum, and cos and sin of the same f32 angle to two units in the last place each.
inline double rope(double a, double b) {
  return 7.0 * kUnit * (std::abs(a) + std::abs(b)) + 1e-37;
}

// Sums of sums, as many as it takes to double from 1 to `block`; a product with a factor that is a root's inverse.
inline double hadamard(int block, double sum_of_magnitudes) {
  return dot(std::bit_width(static_cast<unsigned>(block)) + 1,
             sum_of_magnitudes / std::sqrt(static_cast<double>(block)));
}

// x / (1 + exp(-v)) * up. exp to 1 ulp (2 units) of an argument that carries up to 4 roundings of its own size (GELU's
// polynomial), then a sum, a division and a product. The exact GELU is one of these too: its erfc falls as exp(-x^2/2),
// is known to 5 units, and its argument is rounded twice.
inline double gate(double exponent, double result) {
  return (8.0 + 4.0 * std::abs(exponent)) * kUnit * std::abs(result) + 1e-35;
}

}  // namespace kivi::tolerance
