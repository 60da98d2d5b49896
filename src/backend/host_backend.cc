#include "backend/host_backend.h"

namespace kivi {
namespace {

// Vigna's SplitMix64: 64 random bits for every counter.
uint64_t random_bits(uint64_t counter) {
  uint64_t z = counter * 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

}  // namespace

std::unique_ptr<Weight> HostBackend::random_weight(int64_t rows, int64_t cols, float scale, uint64_t seed) {
  const int64_t n = rows * cols;
  std::unique_ptr<Buffer> memory = allocate(static_cast<size_t>(n) * sizeof(Half));
  auto* out = reinterpret_cast<Half*>(memory->data());
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = static_cast<int64_t>(random_bits((seed << 40) + static_cast<uint64_t>(i)) >> 40);  // 24 of them
    out[i] = to_half(scale * static_cast<float>(bits - (1 << 23)) * 0x1p-23F);
  }
  const WeightView view{WeightFormat::kF16, rows, cols, memory->data()};
  return std::make_unique<MappedWeight>(std::span(&view, 1), std::move(memory));
}

}  // namespace kivi
