#include "backend/cpu/elementwise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>

#include "backend/cpu/scratch.h"
#include "backend/cpu/targets.h"
#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/elementwise.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After foreach_target.h.
#include <hwy/contrib/math/math-inl.h>

#ifndef KIVI_BACKEND_CPU_ELEMENTWISE_KERNELS_
#define KIVI_BACKEND_CPU_ELEMENTWISE_KERNELS_
namespace kivi::cpu {

struct NormRow {
  const float* x;
  const float* weight;
  const float* bias;  // or nullptr
  float* out;
  size_t n;
  NormKind kind;
  float epsilon;
  bool accumulate;
};

// Kernels of one row of n elements.
struct ElementwiseKernels {
  void (*norm)(const NormRow& row);
  void (*silu)(const float* gate, const float* up, size_t n, float* out);  // `up` may be nullptr
  void (*gelu_tanh)(const float* gate, const float* up, size_t n, float* out);
  void (*soft_cap)(float* x, float cap, size_t n);
  // n pairs; pair i by the angle of cosine[i], sine[i].
  void (*rotate_interleaved)(float* x, const float* cosine, const float* sine, size_t n);
  void (*rotate_half_split)(float* x, const float* cosine, const float* sine, size_t n);
  void (*to_half)(const float* x, size_t n, Half* out);
  void (*to_bfloat16)(const float* x, size_t n, BFloat16* out);
};

}  // namespace kivi::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace kivi::cpu {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F32Tag = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32Tag>;
constexpr size_t kLanes = HWY_LANES(float);

// A vector of which the first `count` lanes are in memory.
HWY_INLINE F32Vec load(const float* p, size_t count) {
  const F32Tag d;
  if (count >= kLanes) return hn::LoadU(d, p);
  // Not a MaskedLoad: the portable one of Highway 1.0 reads the whole vector.
  HWY_ALIGN float lanes[kLanes] = {};
  std::copy_n(p, count, lanes);
  return hn::Load(d, lanes);
}
HWY_INLINE void store(F32Vec v, float* p, size_t count) {
  const F32Tag d;
  if (count >= kLanes) {
    hn::StoreU(v, d, p);
  } else {
    hn::BlendedStore(v, hn::FirstN(d, count), d, p);
  }
}

void norm(const NormRow& row) {
  const F32Tag d;
  F32Vec mean = hn::Zero(d);
  if (row.kind == NormKind::kLayer) {
    F32Vec sum = hn::Zero(d);
    for (size_t i = 0; i < row.n; i += kLanes) sum = hn::Add(sum, load(row.x + i, row.n - i));
    mean = hn::Div(hn::SumOfLanes(d, sum), hn::Set(d, static_cast<float>(row.n)));
  }
  const auto deviation = [&](size_t i) HWY_ATTR {
    const F32Vec v = hn::Sub(load(row.x + i, row.n - i), mean);
    return row.n - i >= kLanes ? v : hn::IfThenElseZero(hn::FirstN(d, row.n - i), v);
  };
  F32Vec squares = hn::Zero(d);
  for (size_t i = 0; i < row.n; i += kLanes) {
    const F32Vec v = deviation(i);
    squares = hn::MulAdd(v, v, squares);
  }
  const float sum = hn::GetLane(hn::SumOfLanes(d, squares));
  const F32Vec scale = hn::Set(d, 1.0F / std::sqrt(sum / static_cast<float>(row.n) + row.epsilon));
  for (size_t i = 0; i < row.n; i += kLanes) {
    const size_t count = row.n - i;
    F32Vec v = hn::Mul(hn::Mul(deviation(i), scale), load(row.weight + i, count));
    if (row.bias != nullptr) v = hn::Add(v, load(row.bias + i, count));
    if (row.accumulate) v = hn::Add(v, load(row.out + i, count));
    store(v, row.out + i, count);
  }
}

// x / (1 + exp(-x)). Where exp(-x) would overflow the result is a zero; Exp takes arguments up to 104.
HWY_INLINE F32Vec activate_silu(F32Vec x) {
  const F32Tag d;
  const F32Vec exponent = hn::Min(hn::Neg(x), hn::Set(d, 104.0F));
  return hn::Div(x, hn::Add(hn::Set(d, 1.0F), hn::Exp(d, exponent)));
}

// x/2 (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
HWY_INLINE F32Vec activate_gelu_tanh(F32Vec x) {
  const F32Tag d;
  constexpr float kMinusTwoRoot = -1.5957691216F;  // -2 sqrt(2/pi)
  const F32Vec cubic = hn::MulAdd(hn::Mul(hn::Mul(x, x), x), hn::Set(d, 0.044715F), x);
  const F32Vec exponent = hn::Min(hn::Mul(cubic, hn::Set(d, kMinusTwoRoot)), hn::Set(d, 104.0F));
  return hn::Div(x, hn::Add(hn::Set(d, 1.0F), hn::Exp(d, exponent)));
}

template <typename Activate>
HWY_INLINE void gate_row(const float* gate, const float* up, size_t n, float* out, Activate activate) {
  for (size_t i = 0; i < n; i += kLanes) {
    const F32Vec v = activate(load(gate + i, n - i));
    store(up != nullptr ? hn::Mul(v, load(up + i, n - i)) : v, out + i, n - i);
  }
}

void silu(const float* gate, const float* up, size_t n, float* out) {
  gate_row(gate, up, n, out, [](F32Vec x) HWY_ATTR { return activate_silu(x); });
}

void gelu_tanh(const float* gate, const float* up, size_t n, float* out) {
  gate_row(gate, up, n, out, [](F32Vec x) HWY_ATTR { return activate_gelu_tanh(x); });
}

void soft_cap(float* x, float cap, size_t n) {
  const F32Tag d;
  for (size_t i = 0; i < n; i += kLanes) {
    const F32Vec v = hn::Div(load(x + i, n - i), hn::Set(d, cap));
    store(hn::Mul(hn::Tanh(d, v), hn::Set(d, cap)), x + i, n - i);
  }
}

void rotate_half_split(float* x, const float* cosine, const float* sine, size_t n) {
  float* y = x + n;
  for (size_t i = 0; i < n; i += kLanes) {
    const F32Vec a = load(x + i, n - i);
    const F32Vec b = load(y + i, n - i);
    const F32Vec c = load(cosine + i, n - i);
    const F32Vec s = load(sine + i, n - i);
    store(hn::NegMulAdd(b, s, hn::Mul(a, c)), x + i, n - i);
    store(hn::MulAdd(a, s, hn::Mul(b, c)), y + i, n - i);
  }
}

void rotate_interleaved(float* x, const float* cosine, const float* sine, size_t n) {
  const F32Tag d;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    F32Vec a;
    F32Vec b;
    hn::LoadInterleaved2(d, x + 2 * i, a, b);
    const F32Vec c = hn::LoadU(d, cosine + i);
    const F32Vec s = hn::LoadU(d, sine + i);
    hn::StoreInterleaved2(hn::NegMulAdd(b, s, hn::Mul(a, c)), hn::MulAdd(a, s, hn::Mul(b, c)), d, x + 2 * i);
  }
  for (; i < n; ++i) {
    const float a = x[2 * i];
    const float b = x[2 * i + 1];
    x[2 * i] = a * cosine[i] - b * sine[i];
    x[2 * i + 1] = a * sine[i] + b * cosine[i];
  }
}

// Finite values beyond +-max become +-max; infinities and NaN stay.
HWY_INLINE F32Vec saturate(F32Vec v, float max) {
  const F32Tag d;
  const F32Vec clamped = hn::Max(hn::Min(v, hn::Set(d, max)), hn::Set(d, -max));
  return hn::IfThenElse(hn::IsFinite(v), clamped, v);
}

// The conversion itself is core/half.h's where there is no instruction for it: Highway's own truncates there.
void to_half(const float* x, size_t n, Half* out) {
  for (size_t i = 0; i < n; i += kLanes) {
    const F32Vec v = saturate(load(x + i, n - i), kHalfMax);
    const size_t count = std::min(kLanes, n - i);
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
    const hn::Rebind<hwy::float16_t, F32Tag> f16;
    alignas(64) hwy::float16_t halves[kLanes];
    hn::Store(hn::DemoteTo(f16, v), f16, halves);
    std::memcpy(out + i, halves, count * sizeof(Half));
#else
    alignas(64) float values[kLanes];
    hn::Store(v, F32Tag(), values);
    for (size_t j = 0; j < count; ++j) out[i + j] = kivi::to_half(values[j]);
#endif
  }
}

void to_bfloat16(const float* x, size_t n, BFloat16* out) {
  constexpr float kMax = to_float(BFloat16{0x7F7F});
  for (size_t i = 0; i < n; i += kLanes) {
    alignas(64) float values[kLanes];
    hn::Store(saturate(load(x + i, n - i), kMax), F32Tag(), values);
    for (size_t j = 0; j < std::min(kLanes, n - i); ++j) out[i + j] = kivi::to_bfloat16(values[j]);
  }
}

}  // namespace

constexpr ElementwiseKernels kElementwiseKernels{
    &norm, &silu, &gelu_tanh, &soft_cap, &rotate_interleaved, &rotate_half_split, &to_half, &to_bfloat16,
};

}  // namespace HWY_NAMESPACE
}  // namespace kivi::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi::cpu {
namespace {

const ElementwiseKernels& kernels(Isa isa) {
  KIVI_RETURN_FOR_ISA(isa, kElementwiseKernels);
}

// No vectors: erfc is none of Highway's, and the models that have it spend their time elsewhere.
void gelu(const float* gate, const float* up, size_t n, float* out) {
  for (size_t i = 0; i < n; ++i) {
    const float factor = up != nullptr ? up[i] : 1.0F;
    out[i] = 0.5F * gate[i] * std::erfc(-gate[i] / std::numbers::sqrt2_v<float>) * factor;
  }
}

auto gate_kernel(Activation activation, Isa isa) {
  switch (activation) {
    case Activation::kSilu:
      return kernels(isa).silu;
    case Activation::kGelu:
      return &gelu;
    case Activation::kGeluTanh:
      return kernels(isa).gelu_tanh;
  }
  fail(ErrorCode::kInternal, "activation {} is not in the table", static_cast<int>(activation));
}

// Calls body(n) for every row of a [N, C] operation; threads share them where there is work for more than one.
template <typename Body>
void for_each_row(int n_threads, int64_t n_rows, int64_t row_elements, const Body& body) {
  constexpr int64_t kChunkElements = 32768;  // some ten microseconds
  const int64_t grain = std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, row_elements));
  parallel_for(n_threads, n_rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) body(n);
  });
}

template <typename T>
void convert_rows(const F32Convert& args, int n_threads, void (*convert_row)(const float*, size_t, T*)) {
  const TensorView<T, 2> out = args.out.as<T, 2>();
  for_each_row(n_threads, args.x.shape[0], args.x.shape[1],
               [&](int64_t n) { convert_row(args.x[n].data, static_cast<size_t>(args.x.shape[1]), out[n].data); });
}

}  // namespace

void norm(const F32Norm& args, Isa isa, int n_threads) {
  const auto n_heads = args.x.shape[1];
  const auto n_channels = args.x.shape[2];
  const auto kernel = kernels(isa).norm;
  for_each_row(n_threads, args.x.shape[0], n_heads * n_channels, [&](int64_t n) {
    for (int64_t head = 0; head < n_heads; ++head) {
      kernel({args.x[n][head].data, args.weight[head].data, args.bias.data != nullptr ? args.bias[head].data : nullptr,
              args.out[n][head].data, static_cast<size_t>(n_channels), args.kind, args.epsilon, args.accumulate});
    }
  });
}

void gate(const F32Gate& args, Isa isa, int n_threads) {
  const auto n_channels = args.gate.shape[1];
  const auto kernel = gate_kernel(args.activation, isa);
  for_each_row(n_threads, args.gate.shape[0], n_channels, [&](int64_t n) {
    const float* up = args.up.data != nullptr ? args.up[n].data : nullptr;
    kernel(args.gate[n].data, up, static_cast<size_t>(n_channels), args.out[n].data);
  });
}

void soft_cap(const F32SoftCap& args, Isa isa, int n_threads) {
  const auto kernel = kernels(isa).soft_cap;
  for_each_row(n_threads, args.x.shape[0], args.x.shape[1],
               [&](int64_t n) { kernel(args.x[n].data, args.cap, static_cast<size_t>(args.x.shape[1])); });
}

void rope(const F32Rope& args, Isa isa, int n_threads) {
  const auto n_pairs = static_cast<size_t>(args.inverse_frequency.shape[0]);
  const bool interleaved = args.pairing == RopePairing::kInterleaved;
  const auto kernel = interleaved ? kernels(isa).rotate_interleaved : kernels(isa).rotate_half_split;
  for_each_row(n_threads, args.x.shape[0], args.x.shape[1] * args.x.shape[2], [&](int64_t n) {
    float* cosine = thread_scratch(2 * n_pairs);
    float* sine = cosine + n_pairs;
    for (size_t i = 0; i < n_pairs; ++i) {
      const float angle = static_cast<float>(args.positions[n]) * args.inverse_frequency.data[i];
      cosine[i] = args.scale * std::cos(angle);
      sine[i] = args.scale * std::sin(angle);
    }
    for (int64_t head = 0; head < args.x.shape[1]; ++head) kernel(args.x[n][head].data, cosine, sine, n_pairs);
  });
}

void hadamard(const F32Hadamard& args, int n_threads) {
  const float factor = 1.0F / std::sqrt(static_cast<float>(args.block));
  for_each_row(n_threads, args.x.shape[0], args.x.shape[1] * args.x.shape[2], [&](int64_t n) {
    for (int64_t head = 0; head < args.x.shape[1]; ++head) {
      float* x = args.x[n][head].data;
      for (int64_t half = 1; half < args.block; half *= 2) {
        for (int64_t first = 0; first < args.x.shape[2]; first += 2 * half) {
          for (int64_t i = first; i < first + half; ++i) {
            const float a = x[i];
            const float b = x[i + half];
            x[i] = a + b;
            x[i + half] = a - b;
          }
        }
      }
      for (int64_t i = 0; i < args.x.shape[2]; ++i) x[i] *= factor;
    }
  });
}

void gather(const F32Gather& args) {
  for (int64_t m = 0; m < args.rows.shape[0]; ++m) {
    std::copy_n(args.x[args.rows[m]].data, args.x.shape[1], args.out[m].data);
  }
}

void argmax(const F32Argmax& args, int n_threads) {
  for_each_row(n_threads, args.x.shape[0], args.x.shape[1], [&](int64_t n) {
    const TensorView<const float, 1> row = args.x[n];
    args.out(n) = static_cast<int32_t>(std::max_element(row.data, row.data + row.shape[0]) - row.data);
  });
}

void convert(const F32Convert& args, Isa isa, int n_threads) {
  switch (args.out.dtype) {
    case DType::kF32:
      return convert_rows<float>(args, n_threads, [](const float* x, size_t n, float* out) { std::copy_n(x, n, out); });
    case DType::kF16:
      return convert_rows(args, n_threads, kernels(isa).to_half);
    case DType::kBF16:
      return convert_rows(args, n_threads, kernels(isa).to_bfloat16);
    case DType::kI32:
      break;
  }
  fail(ErrorCode::kUnsupported, "convert: no kernel to {}", name(args.out.dtype));
}

}  // namespace kivi::cpu
#endif  // HWY_ONCE
