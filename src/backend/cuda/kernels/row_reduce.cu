// Reductions of rows. Grid: a block takes one row; its threads go over the row, `Width` neighbours at a time (16 bytes
// where views allow it), and meet in a reduction through registers and one word of shared memory a warp. norm has a row
// for every head of a token; it reads it twice, or with its mean three times, from the cache but for the first.
#include <algorithm>

#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/row_reduce.h"
#include "backend/cuda/kernels/vector.cuh"
#include "backend/norm_args.h"

namespace kivi::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr int kWide = 4;

// The values of all threads joined, in every thread. Once a kernel for each Use; the block is whole warps.
template <int Use = 0, typename T, typename Join>
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

// What a norm works on: x and out [tokens, heads, columns], weight and bias [heads, columns].
template <typename From, typename To>
struct NormRows {
  const From* x;
  int64_t x_stride, x_head_stride;
  const float* weight;
  const float* bias;  // or nullptr
  int64_t weight_stride;
  To* out;
  int64_t out_stride, out_head_stride;
  int n_columns;
  float epsilon;
};

// Grid: (token, head). Accumulates into the f32 residual stream if asked to.
template <int Width, NormKind Kind, bool Accumulate, typename From, typename To>
__global__ void __launch_bounds__(kMostThreads) normalise(NormRows<From, To> rows) {
  const From* x = rows.x + blockIdx.x * rows.x_stride + blockIdx.y * rows.x_head_stride;
  To* out = rows.out + blockIdx.x * rows.out_stride + blockIdx.y * rows.out_head_stride;
  const float* weight = rows.weight + blockIdx.y * rows.weight_stride;
  const int first = threadIdx.x * Width;
  const int step = blockDim.x * Width;
  const auto sum_of = [&](auto value_of) {
    float sum = 0.0F;
    for (int column = first; column < rows.n_columns; column += step) {
      float values[Width];
      load(x + column, values);
      for (const float value : values) sum += value_of(value);
    }
    return sum;
  };
  const auto add = [](float a, float b) { return a + b; };
  const auto n = static_cast<float>(rows.n_columns);
  float mean = 0.0F;
  if constexpr (Kind == NormKind::kLayer) {
    mean = block_reduce<1>(sum_of([](float value) { return value; }), 0.0F, add) / n;
  }
  const float squares = sum_of([&](float value) { return (value - mean) * (value - mean); });
  const float scale = 1.0F / sqrtf(block_reduce(squares, 0.0F, add) / n + rows.epsilon);
  for (int column = first; column < rows.n_columns; column += step) {
    float values[Width];
    float operand[Width];
    load(x + column, values);
    load(weight + column, operand);
    for (int i = 0; i < Width; ++i) values[i] = (values[i] - mean) * scale * operand[i];
    if (rows.bias != nullptr) {
      load(rows.bias + blockIdx.y * rows.weight_stride + column, operand);
      for (int i = 0; i < Width; ++i) values[i] += operand[i];
    }
    if constexpr (Accumulate) {
      load(out + column, operand);
      for (int i = 0; i < Width; ++i) values[i] += operand[i];
    }
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

// Shapes checked: the kernel of two dtypes.
template <bool Accumulate, typename From, typename To>
void launch_norm(const NormArgs& args, cudaStream_t stream) {
  const NormRows<From, To> rows{.x = args.x.as<const From, 3>().data,
                                .x_stride = args.x.stride[0],
                                .x_head_stride = args.x.stride[1],
                                .weight = static_cast<const float*>(args.weight.data),
                                .bias = static_cast<const float*>(args.bias.data),
                                .weight_stride = args.weight.stride[0],
                                .out = args.out.as<To, 3>().data,
                                .out_stride = args.out.stride[0],
                                .out_head_stride = args.out.stride[1],
                                .n_columns = static_cast<int>(args.x.shape[2]),
                                .epsilon = args.epsilon};
  const bool wide =
      are_words(kWide, {args.x, args.weight, args.out}) && (args.bias.empty() || are_words(kWide, {args.bias}));
  const auto kernel = [&]<NormKind Kind>() {
    return wide ? normalise<kWide, Kind, Accumulate, From, To> : normalise<1, Kind, Accumulate, From, To>;
  };
  constexpr int kThreads = 512;  // of a row, half the threads of a multiprocessor's limit: two rows at a time
  const dim3 grid(static_cast<unsigned>(args.x.shape[0]), static_cast<unsigned>(args.x.shape[1]));
  launch("norm",
         args.kind == NormKind::kRms ? kernel.template operator()<NormKind::kRms>()
                                     : kernel.template operator()<NormKind::kLayer>(),
         grid, threads_for(args.x.shape[2], wide ? kWide : 1, kThreads), 0, stream, rows);
}

}  // namespace

void norm(const NormArgs& any, cudaStream_t stream) {
  const NormArgs args = with_heads(any);
  if (args.x.shape[0] == 0) return;
  if (args.accumulate) return launch_norm<true, float, float>(args, stream);
  with_16_bits(args.out.dtype, "norm", [&](auto element) {
    using T = decltype(element);
    if (args.x.dtype == DType::kF32) return launch_norm<false, float, T>(args, stream);
    return launch_norm<false, T, T>(args, stream);
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
