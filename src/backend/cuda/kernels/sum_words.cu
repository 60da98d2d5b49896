// The sum of a long row of words. Grid: two blocks a multiprocessor, which take tiles in turn. A thread asks for
// kInFlight loads (16 bytes each where the row allows it) before it adds any of them; a warp ends with one addition to
// the result. Reads every word once, past the first-level cache.
#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/sum_words.h"
#include "backend/cuda/kernels/vector.cuh"
#include "backend/require.h"

namespace kivi::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kInFlight = 8;

__device__ uint32_t sum_of(uint32_t word) {
  return word;
}
__device__ uint32_t sum_of(uint4 words) {
  return words.x + words.y + words.z + words.w;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) sum_row(const T* x, int64_t n, uint32_t* out) {
  constexpr int64_t kTile = int64_t{kThreads} * kInFlight;
  const int64_t n_tiled = n / kTile * kTile;
  uint32_t sum = 0;
  for (int64_t tile = blockIdx.x * kTile; tile < n_tiled; tile += gridDim.x * kTile) {
    T words[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) words[i] = __ldcs(x + tile + i * kThreads + threadIdx.x);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) sum += sum_of(words[i]);
  }
  if (blockIdx.x == 0) {
    for (int64_t i = n_tiled + threadIdx.x; i < n; i += kThreads) sum += sum_of(x[i]);
  }
  sum = __reduce_add_sync(0xFFFFFFFFU, sum);
  if (threadIdx.x % 32 == 0) atomicAdd(out, sum);
}

}  // namespace

void sum_words(const SumWordsArgs& args, int device, cudaStream_t stream) {
  const auto x = args.x.as<const int32_t, 1>();
  auto* out = reinterpret_cast<uint32_t*>(args.out.as<int32_t, 1>().data);
  require_extent("sum_words: length of out", args.out.shape[0], 1);
  int n_multiprocessors = 0;
  check(cudaDeviceGetAttribute(&n_multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "asking for the GPU's multiprocessors");
  check(cudaMemsetAsync(out, 0, sizeof(*out), stream), "sum_words");
  const auto n_blocks = static_cast<unsigned>(n_multiprocessors * kBlocksPerMultiprocessor);
  constexpr int kWide = 4;
  if (are_words(kWide, {args.x})) {
    launch("sum_words", sum_row<uint4>, n_blocks, kThreads, 0, stream, reinterpret_cast<const uint4*>(x.data),
           x.shape[0] / kWide, out);
  } else {
    launch("sum_words", sum_row<uint32_t>, n_blocks, kThreads, 0, stream, reinterpret_cast<const uint32_t*>(x.data),
           x.shape[0], out);
  }
}

}  // namespace kivi::cuda
