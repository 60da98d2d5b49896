// Reductions of rows. Grid: a block takes one row; its threads go over the row, `Width` neighbours at a time (16 bytes
// where views allow it), and meet in a reduction through registers and one word of shared memory a warp. rms_norm reads
// its row twice, the second time from the cache.
#include <algorithm>

#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/row_reduce.h"
#include "backend/cuda/kernels/vector.cuh"
#include "backend/require.h"

namespace kivi::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr int kWide = 4;

// The values of all threads joined, in every thread. Once a kernel; the block is whole warps.
template <typename T, typename Join>
__device__ T block_reduce(T value, T neutral, Join join) {
  __shared__ T of_warp[kMostThreads / kWarp];
  const auto over_warp = [&](T v) {
    for (int step = kWarp / 2; step > 0; step /= 2) v = join(v, __shfl_xor_sync(0xFFFFFFFFU, v, step));
    return v;
  };
  const unsigned lane = threadIdx.x % kWarp;
  value = over_warp(value);
  if (lane == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  return over_warp(lane < blockDim.x / kWarp ? of_warp[lane] : neutral);
}

template <int Width, typename T>
__global__ void __launch_bounds__(kMostThreads) normalise(const float* x, int64_t x_stride, const float* weight,
                                                          float epsilon, T* out, int64_t out_stride, int n_columns) {
  x += blockIdx.x * x_stride;
  out += blockIdx.x * out_stride;
  const int first = threadIdx.x * Width;
  const int step = blockDim.x * Width;
  float squares = 0.0F;
  for (int column = first; column < n_columns; column += step) {
    float values[Width];
    load(x + column, values);
    for (const float value : values) squares += value * value;
  }
  squares = block_reduce(squares, 0.0F, [](float a, float b) { return a + b; });
  const float scale = 1.0F / sqrtf(squares / static_cast<float>(n_columns) + epsilon);
  for (int column = first; column < n_columns; column += step) {
    float values[Width];
    float weights[Width];
    load(x + column, values);
    load(weight + column, weights);
    for (int i = 0; i < Width; ++i) values[i] = values[i] * scale * weights[i];
    store(values, out + column);
  }
}

// Orders (value, column) as argmax wants it: the larger key has the larger value or, of equal ones, the lower column.
// NaN is below everything.
__device__ uint64_t argmax_key(float value, int column) {
  const uint32_t bits = __float_as_uint(value + 0.0F);  // -0 becomes 0, which it equals
  const uint32_t ordered = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  const uint32_t rank = isnan(value) ? 0U : ordered;
  return uint64_t{rank} << 32 | ~static_cast<uint32_t>(column);
}

template <int Width>
__global__ void __launch_bounds__(kMostThreads)
    find_largest(const float* x, int64_t x_stride, int32_t* out, int n_columns) {
  x += blockIdx.x * x_stride;
  uint64_t best = 0;
  for (int column = threadIdx.x * Width; column < n_columns; column += blockDim.x * Width) {
    float values[Width];
    load(x + column, values);
    for (int i = 0; i < Width; ++i) {
      const uint64_t key = argmax_key(values[i], column + i);
      best = key > best ? key : best;
    }
  }
  best = block_reduce(best, uint64_t{0}, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  if (threadIdx.x == 0) out[blockIdx.x] = static_cast<int32_t>(~static_cast<uint32_t>(best));
}

// Whole warps, enough for one turn through the row if that many there are.
unsigned threads_for(int64_t n_columns, int width, int most) {
  const int64_t n = (n_columns + width - 1) / width;
  return static_cast<unsigned>(std::clamp<int64_t>((n + kWarp - 1) / kWarp * kWarp, kWarp, most));
}

}  // namespace

void rms_norm(const RmsNormArgs& args, cudaStream_t stream) {
  const auto x = args.x.as<const float, 2>();
  const auto weight = args.weight.as<const float, 1>();
  require_same_shape("rms_norm: shape of out", args.out, args.x);
  require_extent("rms_norm: channels of weight", weight.shape[0], x.shape[1]);
  if (x.shape[0] == 0) return;
  with_16_bits(args.out.dtype, "rms_norm", [&](auto element) {
    using T = decltype(element);
    const bool wide = are_words(kWide, {args.x, args.weight, args.out});
    const auto kernel = wide ? normalise<kWide, T> : normalise<1, T>;
    constexpr int kThreads = 512;  // of a row, half the threads of a multiprocessor's limit: two rows at a time
    launch("rms_norm", kernel, static_cast<unsigned>(x.shape[0]), threads_for(x.shape[1], wide ? kWide : 1, kThreads),
           0, stream, x.data, x.stride[0], weight.data, args.epsilon, static_cast<T*>(args.out.data),
           args.out.stride[0], static_cast<int>(x.shape[1]));
  });
}

void argmax(const ArgmaxArgs& args, cudaStream_t stream) {
  const auto x = args.x.as<const float, 2>();
  const auto out = args.out.as<int32_t, 1>();
  require_extent("argmax: length of out", out.shape[0], x.shape[0]);
  if (x.shape[1] < 1) fail(ErrorCode::kInternal, "argmax of no columns");
  if (x.shape[0] == 0) return;
  const bool wide = are_words(kWide, {args.x});
  const auto kernel = wide ? find_largest<kWide> : find_largest<1>;
  launch("argmax", kernel, static_cast<unsigned>(x.shape[0]), threads_for(x.shape[1], wide ? kWide : 1, kMostThreads),
         0, stream, x.data, x.stride[0], out.data, static_cast<int>(x.shape[1]));
}

}  // namespace kivi::cuda
