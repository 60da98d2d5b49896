// Random weights in every format, for tests and benchmarks.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "weights/format.h"

namespace kivi {

// Owns the blocks of a random matrix whose values are finite and mostly within a few units of zero. `misalignment`
// bytes lie before the first block.
class WeightSample {
 public:
  WeightSample(WeightFormat format, int64_t rows, int64_t cols, uint32_t seed, size_t misalignment = 0)
      : random_(seed), bytes_(misalignment + static_cast<size_t>(rows * row_bytes(format, cols))) {
    view_ = {format, rows, cols, bytes_.data() + misalignment};
    const auto size = static_cast<size_t>(block_bytes(format));
    for (size_t at = misalignment; at < bytes_.size(); at += size) fill(format, bytes_.data() + at, size);
  }
  WeightSample(const WeightSample&) = delete;
  WeightSample& operator=(const WeightSample&) = delete;

  const WeightView& view() const { return view_; }

 private:
  void fill(WeightFormat format, std::byte* block, size_t size) {
    for (size_t i = 0; i < size; ++i) block[i] = static_cast<std::byte>(random_());
    switch (format) {
      case WeightFormat::kF32: {
        const float value = real(1.0F);
        return put(block, &value, sizeof(value));
      }
      case WeightFormat::kF16:
        return put_half(block, 0, 1.0F);
      case WeightFormat::kBF16: {
        const BFloat16 value = to_bfloat16(real(1.0F));
        return put(block, &value, sizeof(value));
      }
      case WeightFormat::kQ8_0:
        return put_half(block, offsetof(BlockQ8_0, d), 0.01F);
      case WeightFormat::kQ4_0:
        return put_half(block, offsetof(BlockQ4_0, d), 0.1F);
      case WeightFormat::kQ4_1:
        put_half(block, offsetof(BlockQ4_1, d), 0.1F);
        return put_half(block, offsetof(BlockQ4_1, m), 1.0F);
      case WeightFormat::kQ5_0:
        return put_half(block, offsetof(BlockQ5_0, d), 0.1F);
      case WeightFormat::kQ4_K:
        put_half(block, offsetof(BlockQ4_K, d), 0.01F);
        return put_half(block, offsetof(BlockQ4_K, dmin), 0.05F);
      case WeightFormat::kQ5_K:
        put_half(block, offsetof(BlockQ5_K, d), 0.01F);
        return put_half(block, offsetof(BlockQ5_K, dmin), 0.05F);
      case WeightFormat::kQ6_K:
        return put_half(block, offsetof(BlockQ6_K, d), 0.001F);
    }
  }

  float real(float magnitude) { return std::uniform_real_distribution<float>(-magnitude, magnitude)(random_); }
  static void put(std::byte* to, const void* from, size_t size) { std::memcpy(to, from, size); }
  void put_half(std::byte* block, size_t offset, float magnitude) {
    const Half value = to_half(real(magnitude));
    put(block + offset, &value, sizeof(value));
  }

  std::mt19937 random_;
  std::vector<std::byte> bytes_;
  WeightView view_;
};

}  // namespace kivi
