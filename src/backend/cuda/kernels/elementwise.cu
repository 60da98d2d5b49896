// Element by element. A thread takes `Width` neighbours of a row (one 16-byte word where views allow it, else one
// element): grid (row, block of columns), block kThreads. rope and hadamard have their own mappings, below. No shared
// memory; every byte of the operands is read once, every byte of the result written once.
#include <algorithm>
#include <cmath>

#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/elementwise.h"
#include "backend/cuda/kernels/vector.cuh"
#include "backend/cuda/weight.h"
#include "backend/require.h"

namespace kivi::cuda {
namespace {

constexpr int kThreads = 256;

// Rows of elements in memory.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;

  explicit Rows(const AnyView& view) : data(static_cast<T*>(view.data)), stride(view.stride[0]) {}
  Rows(T* data_, int64_t stride_) : data(data_), stride(stride_) {}
  __device__ T* at(int64_t row, int64_t column) const { return data + row * stride + column; }
};

template <int Width, typename Operation>
__global__ void __launch_bounds__(kThreads) for_each_element(Operation operation, int64_t n_columns) {
  const int64_t column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * Width;
  if (column < n_columns) operation.template run<Width>(blockIdx.x, column);
}

// Runs the operation on [n_rows, n_columns], Wide elements a thread if all `views` allow it.
template <int Wide, typename Operation>
void run_for_each(const Operation& operation, std::initializer_list<AnyView> views, std::string_view what,
                  cudaStream_t stream) {
  const int64_t n_rows = views.begin()->shape[0];
  const int64_t n_columns = views.begin()->shape[1];
  if (n_rows == 0 || n_columns == 0) return;
  const bool wide = are_words(Wide, views);
  const int64_t block_columns = kThreads * (wide ? Wide : 1);
  const dim3 grid(static_cast<unsigned>(n_rows),
                  static_cast<unsigned>((n_columns + block_columns - 1) / block_columns));
  const auto kernel = wide ? for_each_element<Wide, Operation> : for_each_element<1, Operation>;
  launch(what, kernel, grid, kThreads, 0, stream, operation, n_columns);
}

// ---- Rows of a table ----

// out[row] = scale * table[ids[row]].
template <typename T>
struct TakeRows {
  Rows<const T> table;
  int64_t n_table_rows;
  const int32_t* ids;
  Rows<float> out;
  float scale = 1.0F;

  template <int Width>
  __device__ void run(int64_t row, int64_t column) const {
    const int64_t id = ids[row];
    float values[Width];
    if (id >= 0 && id < n_table_rows) {
      load(table.at(id, column), values);
      if (scale != 1.0F) {
        for (float& value : values) value *= scale;
      }
    } else {
      for (float& value : values) value = NAN;
    }
    store(values, out.at(row, column));
  }
};

// ---- One element from one or two ----

template <typename From, typename To>
struct Convert {
  Rows<const From> x;
  Rows<To> out;

  template <int Width>
  __device__ void run(int64_t row, int64_t column) const {
    float values[Width];
    load(x.at(row, column), values);
    store(values, out.at(row, column));
  }
};

template <typename T>
struct AddBias {
  Rows<T> out;
  const float* bias;

  template <int Width>
  __device__ void run(int64_t row, int64_t column) const {
    float values[Width];
    float added[Width];
    load(out.at(row, column), values);
    load(bias + column, added);
    for (int i = 0; i < Width; ++i) values[i] += added[i];
    store(values, out.at(row, column));
  }
};

// Where exp(-x) overflows the result is a zero.
__device__ float logistic_product(float x, float exponent) {
  return x / (1.0F + expf(-exponent));
}

struct Silu {
  __device__ float operator()(float x) const { return logistic_product(x, x); }
};

struct Gelu {
  __device__ float operator()(float x) const { return x * normcdff(x); }
};

// x/2 (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
struct GeluTanh {
  __device__ float operator()(float x) const {
    constexpr float kTwoRoot = 1.5957691216F;  // 2 sqrt(2/pi)
    return logistic_product(x, kTwoRoot * (x + 0.044715F * (x * x * x)));
  }
};

template <typename T, typename Activate>
struct Gate {
  Rows<const T> gate;
  Rows<const T> up;
  Rows<T> out;

  template <int Width>
  __device__ void run(int64_t row, int64_t column) const {
    float values[Width];
    float factors[Width];
    load(gate.at(row, column), values);
    load(up.at(row, column), factors);
    for (int i = 0; i < Width; ++i) values[i] = Activate()(values[i]) * factors[i];
    store(values, out.at(row, column));
  }
};

// Without a second operand.
template <typename T, typename Activate>
struct Apply {
  Rows<const T> x;
  Rows<T> out;
  Activate activate;

  template <int Width>
  __device__ void run(int64_t row, int64_t column) const {
    float values[Width];
    load(x.at(row, column), values);
    for (float& value : values) value = activate(value);
    store(values, out.at(row, column));
  }
};

struct SoftCap {
  float cap;
  __device__ float operator()(float x) const { return cap * tanhf(x / cap); }
};

// ---- Rope ----

// The channels a, b of pairs `pair` .. pair + Width - 1 of a head. In half-split order the two are n_pairs apart;
// beside each other they are one word, if words are aligned at all.
template <RopePairing Pairing, int Width, typename T>
__device__ void load_pairs(const T* head, int pair, int n_pairs, float (&a)[Width], float (&b)[Width]) {
  if constexpr (Pairing == RopePairing::kHalfSplit) {
    load(head + pair, a);
    load(head + pair + n_pairs, b);
  } else if constexpr (Width == 1) {
    load(head + 2 * pair, a);
    load(head + 2 * pair + 1, b);
  } else {
    float both[2 * Width];
    load(head + 2 * pair, both);
    for (int i = 0; i < Width; ++i) {
      a[i] = both[2 * i];
      b[i] = both[2 * i + 1];
    }
  }
}

template <RopePairing Pairing, int Width, typename T>
__device__ void store_pairs(const float (&a)[Width], const float (&b)[Width], T* head, int pair, int n_pairs) {
  if constexpr (Pairing == RopePairing::kHalfSplit) {
    store(a, head + pair);
    store(b, head + pair + n_pairs);
  } else if constexpr (Width == 1) {
    store(a, head + 2 * pair);
    store(b, head + 2 * pair + 1);
  } else {
    float both[2 * Width];
    for (int i = 0; i < Width; ++i) {
      both[2 * i] = a[i];
      both[2 * i + 1] = b[i];
    }
    store(both, head + 2 * pair);
  }
}

// Grid: a block takes one token. Block (x, y): x goes over the pairs, Width at a time, y over the heads; so a thread
// computes its angles once for all its heads.
template <int Width, RopePairing Pairing, typename T>
__global__ void __launch_bounds__(kThreads)
    rotate(T* x, int64_t row_stride, int64_t head_stride, int n_heads, const int32_t* positions,
           const float* inverse_frequency, float scale, int n_pairs) {
  T* token = x + blockIdx.x * row_stride;
  const auto position = static_cast<float>(positions[blockIdx.x]);
  for (int pair = threadIdx.x * Width; pair < n_pairs; pair += blockDim.x * Width) {
    float sine[Width];
    float cosine[Width];
    for (int i = 0; i < Width; ++i) {
      sincosf(position * inverse_frequency[pair + i], &sine[i], &cosine[i]);
      sine[i] *= scale;
      cosine[i] *= scale;
    }
    for (int head = threadIdx.y; head < n_heads; head += blockDim.y) {
      T* channels = token + head * head_stride;
      float a[Width];
      float b[Width];
      load_pairs<Pairing>(channels, pair, n_pairs, a, b);
      for (int i = 0; i < Width; ++i) {
        const float rotated = a[i] * cosine[i] - b[i] * sine[i];
        b[i] = a[i] * sine[i] + b[i] * cosine[i];
        a[i] = rotated;
      }
      store_pairs<Pairing>(a, b, channels, pair, n_pairs);
    }
  }
}

template <int Width, RopePairing Pairing, typename T>
void launch_rotate(const RopeArgs& args, cudaStream_t stream) {
  const auto n_heads = static_cast<int>(args.x.shape[1]);
  const auto n_pairs = static_cast<int>(args.inverse_frequency.shape[0]);
  const int threads_x = std::min((n_pairs + Width - 1) / Width, kThreads);
  const int threads_y = std::min(kThreads / threads_x, n_heads);
  launch("rope", rotate<Width, Pairing, T>, static_cast<unsigned>(args.x.shape[0]), dim3(threads_x, threads_y), 0,
         stream, static_cast<T*>(args.x.data), args.x.stride[0], args.x.stride[1], n_heads,
         static_cast<const int32_t*>(args.positions.data), static_cast<const float*>(args.inverse_frequency.data),
         args.scale, n_pairs);
}

template <RopePairing Pairing, typename T>
void launch_rotate(const RopeArgs& args, cudaStream_t stream) {
  constexpr int kWide = 4;
  if (are_words(2 * kWide, {args.x}) && args.inverse_frequency.shape[0] % kWide == 0) {
    launch_rotate<kWide, Pairing, T>(args, stream);
  } else {
    launch_rotate<1, Pairing, T>(args, stream);
  }
}

// ---- Walsh-Hadamard transform ----

// Grid (row, block of channels): a thread has 4 channels of a row's heads, a warp 128, in which blocks of channels lie
// whole.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    transform(T* x, int64_t row_stride, int64_t head_stride, int head_dim, int n_channels, int block, float factor) {
  const int channel = (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) * 4;
  T* at = x + blockIdx.x * row_stride + channel / head_dim * head_stride + channel % head_dim;
  float v[4] = {};
  if (channel < n_channels) load(at, v);
#pragma unroll
  for (int half = 1; half < 4; half *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & half) != 0) continue;
      const float a = v[i];
      v[i] = a + v[i + half];
      v[i + half] = a - v[i + half];
    }
  }
#pragma unroll 1
  for (int distance = 1; 4 * distance < block; distance *= 2) {
    const bool is_second = (static_cast<int>(threadIdx.x) & distance) != 0;
#pragma unroll
    for (float& number : v) {
      const float other = __shfl_xor_sync(~0U, number, distance);
      number = is_second ? other - number : number + other;
    }
  }
  for (float& number : v) number *= factor;
  if (channel < n_channels) store(v, at);
}

}  // namespace

// ---- Shapes checked, kernel chosen ----

void embed(const EmbedArgs& args, cudaStream_t stream) {
  const Matrix& table = matrix_of(args.table);
  const auto tokens = args.tokens.as<const int32_t, 1>();
  const auto out = args.out.as<float, 2>();
  require_extent("embed: rows of out", out.shape[0], tokens.shape[0]);
  require_extent("embed: channels of out", out.shape[1], table.cols());
  with_16_bits(table.dtype(), "embed", [&](auto element) {
    using T = decltype(element);
    const TensorView<const T, 2> rows(static_cast<const T*>(table.data()), {table.rows(), table.cols()});
    run_for_each<4>(TakeRows<T>{Rows<const T>(rows), table.rows(), tokens.data, Rows<float>(args.out), args.scale},
                    {args.out, rows}, "embed", stream);
  });
}

void gather(const GatherArgs& args, cudaStream_t stream) {
  const auto x = args.x.as<const float, 2>();
  const auto rows = args.rows.as<const int32_t, 1>();
  const auto out = args.out.as<float, 2>();
  require_extent("gather: rows of out", out.shape[0], rows.shape[0]);
  require_extent("gather: channels of out", out.shape[1], x.shape[1]);
  run_for_each<4>(TakeRows<float>{Rows<const float>(args.x), x.shape[0], rows.data, Rows<float>(args.out)},
                  {args.out, args.x}, "gather", stream);
}

void convert(const ConvertArgs& args, cudaStream_t stream) {
  with_floats(args.x.dtype, "convert", [&](auto from) {
    with_floats(args.out.dtype, "convert", [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      const Rows<const From> x(args.x.as<From, 2>());
      const Rows<To> out(args.out.as<To, 2>());
      require_same_shape("convert: shape of out", args.out, args.x);
      run_for_each<4>(Convert<From, To>{x, out}, {args.x, args.out}, "convert", stream);
    });
  });
}

void add_bias(const AnyView& out, const AnyView& bias, cudaStream_t stream) {
  with_floats(out.dtype, "linear: bias", [&](auto element) {
    using T = decltype(element);
    const Rows<T> rows(out.as<T, 2>());
    run_for_each<4>(AddBias<T>{rows, static_cast<const float*>(bias.data)}, {out, bias}, "linear: bias", stream);
  });
}

void gate(const GateArgs& args, cudaStream_t stream) {
  const bool has_up = !args.up.empty();
  require_same_shape("gate: shape of out", args.out, args.gate);
  if (has_up) require_same_shape("gate: shape of up", args.up, args.gate);
  with_16_bits(args.gate.dtype, "gate", [&](auto element) {
    using T = decltype(element);
    const Rows<const T> gate(args.gate.as<T, 2>());
    const Rows<T> out(args.out.as<T, 2>());
    const auto run = [&](auto activate) {
      using Activate = decltype(activate);
      if (has_up) {
        const Gate<T, Activate> operation{gate, Rows<const T>(args.up.as<T, 2>()), out};
        run_for_each<8>(operation, {args.gate, args.up, args.out}, "gate", stream);
      } else {
        run_for_each<8>(Apply<T, Activate>{gate, out, activate}, {args.gate, args.out}, "gate", stream);
      }
    };
    switch (args.activation) {
      case Activation::kSilu:
        return run(Silu());
      case Activation::kGelu:
        return run(Gelu());
      case Activation::kGeluTanh:
        return run(GeluTanh());
    }
  });
}

void soft_cap(const SoftCapArgs& args, cudaStream_t stream) {
  if (!(args.cap > 0)) fail(ErrorCode::kInternal, "soft_cap: {}, must be above 0", args.cap);
  const Rows<float> x(args.x.as<float, 2>());
  run_for_each<4>(Apply<float, SoftCap>{Rows<const float>(x.data, x.stride), x, {args.cap}}, {args.x}, "soft_cap",
                  stream);
}

void rope(const RopeArgs& args, cudaStream_t stream) {
  require_extent("rope: rank of x", args.x.rank, 3);
  const auto positions = args.positions.as<const int32_t, 1>();
  const auto frequency = args.inverse_frequency.as<const float, 1>();
  require_extent("rope: number of positions", positions.shape[0], args.x.shape[0]);
  if (2 * frequency.shape[0] > args.x.shape[2]) {
    fail(ErrorCode::kInternal, "rope: {} frequencies, at most {} fit head_dim {}", frequency.shape[0],
         args.x.shape[2] / 2, args.x.shape[2]);
  }
  if (args.x.shape[0] == 0 || args.x.shape[1] == 0 || frequency.shape[0] == 0) return;
  with_16_bits(args.x.dtype, "rope", [&](auto element) {
    using T = decltype(element);
    if (args.pairing == RopePairing::kHalfSplit) {
      launch_rotate<RopePairing::kHalfSplit, T>(args, stream);
    } else {
      launch_rotate<RopePairing::kInterleaved, T>(args, stream);
    }
  });
}

void hadamard(const HadamardArgs& args, cudaStream_t stream) {
  require_extent("hadamard: rank of x", args.x.rank, 3);
  require_hadamard_block(args.block, args.x.shape[2]);
  if (!are_words(4, {args.x})) fail(ErrorCode::kInternal, "hadamard: rows must begin at multiples of 8 bytes");
  const auto n_channels = static_cast<int>(args.x.shape[1] * args.x.shape[2]);
  if (args.x.shape[0] == 0 || n_channels == 0) return;
  const dim3 grid(static_cast<unsigned>(args.x.shape[0]),
                  static_cast<unsigned>((n_channels + 4 * kThreads - 1) / (4 * kThreads)));
  with_16_bits(args.x.dtype, "hadamard", [&](auto element) {
    using T = decltype(element);
    launch("hadamard", transform<T>, grid, kThreads, 0, stream, static_cast<T*>(args.x.data), args.x.stride[0],
           args.x.stride[1], static_cast<int>(args.x.shape[2]), n_channels, args.block,
           1.0F / std::sqrt(static_cast<float>(args.block)));
  });
}

}  // namespace kivi::cuda
