// How far an attention kernel may be from the reference on the same stored numbers. Derived from what it rounds; for
// tests.
//
// Written for one output: probabilities p_i (of n tokens), values v_i, output o, scores s_i = scale * q . k_i. Stored
// numbers are code * scale + zero; what is rounded on the way (the number itself, or q * scale and q * zero apart) is
// at most |code * scale| + |zero| in size: K_i and V_i below.
//
//   score      a rounding of each product and of each operand, independent: sqrt(sum (q_c K_ic)^2); the products' sum
//              is cut at each step of 16, always towards zero. A relative error of a probability is its score's error
//              and that of the exponential; it moves o by p_i |v_i - o|. Tokens of a group share roundings of q *
//              scale: their errors add up.
//              A cap never widens a score's error; its tanh adds one of its own, relative to the cap.
//   sum        a rounding of p_i and of v_i, independent: sqrt(sum (p_i V_i)^2); beside the largest one, 1, a 16-bit
//   p_i
//              has no bits below 2^-24.
//   output     one rounding.
#pragma once

#include <cmath>
#include <span>

#include "core/dtype.h"

namespace kivi::parity {

inline constexpr double kDeviations = 6.0;  // of a sum of independent roundings

struct Precision {
  double operand;     // relative error of one rounding of what goes into a product
  double accumulate;  // of a sum, for each term
  double output;
  double smallest;  // half the distance of the smallest probabilities
};

// Activations of f32 are computed with in f32, of 16 bits on tensor cores that sum in f32.
inline Precision precision_of(DType activation) {
  switch (activation) {
    case DType::kF16:
      return {0x1p-11, 0x1p-26, 0x1p-11, 0x1p-25};
    case DType::kBF16:
      return {0x1p-8, 0x1p-26, 0x1p-8, 0.0};
    default:
      return {0x1p-24, 0x1p-24, 0x1p-24, 0.0};
  }
}

// Error of a score. products: |q_c| K_ic times the softmax scale.
inline double score_error(const Precision& precision, std::span<const double> products, double score_cap) {
  double sum = 0;
  double squares = 0;
  for (const double x : products) {
    sum += x;
    squares += x * x;
  }
  constexpr double kExponential = 0x1p-20;
  constexpr double kTanh = 0x1p-21;
  return kDeviations * 2 * precision.operand * std::sqrt(squares) +
         precision.accumulate * static_cast<double>(products.size()) * sum + kExponential + kTanh * score_cap;
}

// What is summed over the tokens for the bound of one output.
class OutputError {
 public:
  // p: probability; v, magnitude: the value and V_i; score_error: of this token.
  void add(double p, double v, double magnitude, double out, double score_error) {
    from_scores_ += p * std::abs(v - out) * score_error;
    squares_ += p * magnitude * p * magnitude;
    sum_ += p * magnitude;
    ++n_;
  }
  // total: sum of the probabilities when the largest is 1.
  double bound(const Precision& precision, double out, double total) const {
    constexpr double kLargestCode = 4.0;  // p_i * scale is what a kernel may round, and a code then multiplies it
    return from_scores_ + kDeviations * 2 * precision.operand * std::sqrt(squares_) +
           precision.accumulate * static_cast<double>(n_) * sum_ +
           static_cast<double>(n_) * precision.smallest * kLargestCode / total + precision.output * std::abs(out) +
           0x1p-24;
  }

 private:
  double from_scores_ = 0;
  double squares_ = 0;
  double sum_ = 0;
  int64_t n_ = 0;
};

}  // namespace kivi::parity
