#include "reference/ops.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <span>
#include <vector>

namespace kivi::reference {
namespace {

double logistic(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x * logistic(x);
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x / std::numbers::sqrt2);
    case Activation::kGeluTanh:  // (1 + tanh(u)) / 2 is logistic(2u), and does not cancel
      return x * logistic(2.0 * std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x));
  }
  fail(ErrorCode::kInternal, "activation {} is not in the table", static_cast<int>(activation));
}

template <typename T>
void convert_to(const TensorView<const float, 2>& x, const TensorView<T, 2>& out, T (*round)(float)) {
  for (int64_t n = 0; n < x.shape[0]; ++n) {
    for (int64_t c = 0; c < x.shape[1]; ++c) out(n, c) = round(x(n, c));
  }
}

}  // namespace

void embed(const F32Embed& args) {
  for (int64_t n = 0; n < args.tokens.shape[0]; ++n) {
    const std::span<float> row{args.out[n].data, static_cast<size_t>(args.table.cols)};
    decode_row(args.table, args.tokens[n], row);
    for (float& value : row) value *= args.scale;
  }
}

void norm(const F32Norm& args) {
  const int64_t n_channels = args.x.shape[2];
  const auto mean_over = [&](const auto& value_of) {
    double sum = 0.0;
    for (int64_t c = 0; c < n_channels; ++c) sum += value_of(c);
    return sum / static_cast<double>(n_channels);
  };
  for (int64_t n = 0; n < args.x.shape[0]; ++n) {
    for (int64_t head = 0; head < args.x.shape[1]; ++head) {
      const TensorView<const float, 1> x = args.x[n][head];
      const double mean = args.kind == NormKind::kLayer ? mean_over([&](int64_t c) { return double{x[c]}; }) : 0.0;
      const double variance = mean_over([&](int64_t c) { return (x[c] - mean) * (x[c] - mean); });
      const double scale = 1.0 / std::sqrt(variance + args.epsilon);
      for (int64_t c = 0; c < n_channels; ++c) {
        double result = (x[c] - mean) * scale * args.weight(head, c);
        if (args.bias.data != nullptr) result += args.bias(head, c);
        if (args.accumulate) result += args.out(n, head, c);
        args.out(n, head, c) = static_cast<float>(result);
      }
    }
  }
}

void linear(const F32Linear& args) {
  std::vector<float> row(static_cast<size_t>(args.weight.cols));
  for (int64_t r = 0; r < args.weight.rows; ++r) {
    decode_row(args.weight, r, row);
    for (int64_t n = 0; n < args.x.shape[0]; ++n) {
      double sum = args.bias.data != nullptr ? double{args.bias[r]} : 0.0;
      if (args.accumulate) sum += args.out(n, r);
      for (int64_t c = 0; c < args.weight.cols; ++c) sum += double{row[static_cast<size_t>(c)]} * args.x(n, c);
      args.out(n, r) = static_cast<float>(sum);
    }
  }
}

void hadamard(const F32Hadamard& args) {
  const int64_t n = args.block;
  std::vector<double> out(static_cast<size_t>(n));
  for (int64_t row = 0; row < args.x.shape[0]; ++row) {
    for (int64_t head = 0; head < args.x.shape[1]; ++head) {
      for (int64_t first = 0; first < args.x.shape[2]; first += n) {
        float* x = &args.x(row, head, first);
        for (int64_t i = 0; i < n; ++i) {
          out[i] = 0;
          for (int64_t j = 0; j < n; ++j) out[i] += std::popcount(static_cast<uint64_t>(i & j)) % 2 == 0 ? x[j] : -x[j];
        }
        for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(out[i] / std::sqrt(static_cast<double>(n)));
      }
    }
  }
}

void rope(const F32Rope& args) {
  const int64_t n_pairs = args.inverse_frequency.shape[0];
  const bool interleaved = args.pairing == RopePairing::kInterleaved;
  for (int64_t n = 0; n < args.x.shape[0]; ++n) {
    for (int64_t head = 0; head < args.x.shape[1]; ++head) {
      for (int64_t i = 0; i < n_pairs; ++i) {
        const float angle = static_cast<float>(args.positions[n]) * args.inverse_frequency[i];
        const double cosine = args.scale * std::cos(double{angle});
        const double sine = args.scale * std::sin(double{angle});
        float& a = args.x(n, head, interleaved ? 2 * i : i);
        float& b = args.x(n, head, interleaved ? 2 * i + 1 : i + n_pairs);
        const double rotated_a = a * cosine - b * sine;
        const double rotated_b = a * sine + b * cosine;
        a = static_cast<float>(rotated_a);
        b = static_cast<float>(rotated_b);
      }
    }
  }
}

void gate(const F32Gate& args) {
  for (int64_t n = 0; n < args.gate.shape[0]; ++n) {
    for (int64_t c = 0; c < args.gate.shape[1]; ++c) {
      const double factor = args.up.data != nullptr ? args.up(n, c) : 1.0;
      args.out(n, c) = static_cast<float>(activate(args.activation, args.gate(n, c)) * factor);
    }
  }
}

void soft_cap(const F32SoftCap& args) {
  for (int64_t n = 0; n < args.x.shape[0]; ++n) {
    for (int64_t c = 0; c < args.x.shape[1]; ++c) {
      args.x(n, c) = static_cast<float>(args.cap * std::tanh(double{args.x(n, c)} / args.cap));
    }
  }
}

void gather(const F32Gather& args) {
  for (int64_t m = 0; m < args.rows.shape[0]; ++m) {
    for (int64_t c = 0; c < args.x.shape[1]; ++c) args.out(m, c) = args.x(args.rows[m], c);
  }
}

void argmax(const F32Argmax& args) {
  for (int64_t n = 0; n < args.x.shape[0]; ++n) {
    const TensorView<const float, 1> row = args.x[n];
    args.out(n) = static_cast<int32_t>(std::max_element(row.data, row.data + row.shape[0]) - row.data);
  }
}

void convert(const F32Convert& args) {
  switch (args.out.dtype) {
    case DType::kF32:
      return convert_to<float>(args.x, args.out.as<float, 2>(), [](float value) { return value; });
    case DType::kF16:
      return convert_to(args.x, args.out.as<Half, 2>(), to_half_saturating);
    case DType::kBF16:
      return convert_to(args.x, args.out.as<BFloat16, 2>(), to_bfloat16_saturating);
    case DType::kI32:
      break;
  }
  fail(ErrorCode::kUnsupported, "convert: no kernel to {}", name(args.out.dtype));
}

Half to_half_saturating(float value) {
  return to_half(std::isfinite(value) ? std::clamp(value, -kHalfMax, kHalfMax) : value);
}

BFloat16 to_bfloat16_saturating(float value) {
  constexpr float kMax = to_float(BFloat16{0x7F7F});
  return to_bfloat16(std::isfinite(value) ? std::clamp(value, -kMax, kMax) : value);
}

}  // namespace kivi::reference
