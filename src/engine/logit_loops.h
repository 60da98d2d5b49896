// What is done with all logits of a vocabulary, in forms that compilers turn into SIMD.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <span>

namespace kivi {

// NaN counts for nothing; of nothing it is minus infinity.
inline float highest_of(std::span<const float> logits) {
  const float* x = logits.data();
  float highest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : highest)
  for (size_t i = 0; i < logits.size(); ++i) highest = x[i] > highest ? x[i] : highest;
  return highest;
}

// e^x for x <= 0 with a relative error of about 1e-7. Below e^-87 it stays there.
inline float fast_exp(float x) {
  constexpr float kLog2e = 1.44269504F;
  constexpr float kLn2High = 0.693359375F;
  constexpr float kLn2Low = -2.12194440e-4F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  x = x < -87.0F ? -87.0F : x;
  const float shifted = x * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= ln 2 / 2
  const float p = 1.0F + r * (1.0F + r * (0.5F + r * (1.0F / 6 + r * (1.0F / 24 + r * (1.0F / 120 + r / 720)))));
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 127) << 23;
  return p * std::bit_cast<float>(exponent);
}

}  // namespace kivi
