// Random numbers. A thread makes one at a time, and goes on by the size of the grid. Writes 2 bytes an element.
#include <algorithm>

#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/random.h"
#include "backend/cuda/kernels/vector.cuh"

namespace kivi::cuda {
namespace {

constexpr int kThreads = 256;

// Vigna's SplitMix64: 64 random bits for every counter.
__device__ uint64_t random_bits(uint64_t counter) {
  uint64_t z = counter * 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) random_elements(T* out, int64_t n, float scale, uint64_t seed) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += step) {
    const auto bits = static_cast<int32_t>(random_bits((seed << 40) + static_cast<uint64_t>(i)) >> 40);  // 24 of them
    out[i] = narrow<T>(scale * static_cast<float>(bits - (1 << 23)) * 0x1p-23F);
  }
}

}  // namespace

void fill_random(void* out, DType dtype, int64_t n, float scale, uint64_t seed, cudaStream_t stream) {
  if (n == 0) return;
  constexpr int64_t kMostBlocks = 65536;
  const int64_t n_blocks = std::min((n + kThreads - 1) / kThreads, kMostBlocks);
  with_16_bits(dtype, "random_weight", [&](auto element) {
    using T = decltype(element);
    launch("random_weight", random_elements<T>, static_cast<unsigned>(n_blocks), kThreads, 0, stream,
           static_cast<T*>(out), n, scale, seed);
  });
}

}  // namespace kivi::cuda
