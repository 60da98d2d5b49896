#include "backend/host_backend.h"

#include <atomic>

#include "core/parallel.h"

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

void sum_words_on_host(const SumWordsArgs& args, int n_threads) {
  const auto x = args.x.as<const int32_t, 1>();
  std::atomic<uint32_t> total = 0;
  constexpr int64_t kGrain = 1 << 18;
  parallel_for(n_threads, x.shape[0], kGrain, [&](int64_t begin, int64_t end) {
    uint32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += static_cast<uint32_t>(x.data[i]);
    total += sum;
  });
  args.out.as<int32_t, 1>()(0) = static_cast<int32_t>(total.load());
}

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
