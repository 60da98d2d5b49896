// Every operation but those of weights and of the cache, on every device of this machine, against the reference: on
// fresh inputs in the device's dtypes, into poisoned outputs, rows dense and strided.
#include "backend/backend.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <span>

#include "backend/backend_tester.h"
#include "backend/tolerance.h"
#include "backend/weight_samples.h"

namespace kivi {
namespace {

class BackendTest : public BackendTester {
 protected:
  // The argument of exp in an activation of x.
  static double exponent_of(Activation activation, double x) {
    switch (activation) {
      case Activation::kSilu:
        return x;
      case Activation::kGelu:
        return x * x / 2.0;
      case Activation::kGeluTanh:
        return 1.6 * (x + 0.0448 * x * x * x);
    }
    return 0.0;
  }
  // What a norm's tolerance needs to know of a row.
  struct RowFacts {
    double mean_magnitude = 0.0;  // 0 where no mean is taken
    double scale = 0.0;           // 1 / deviation
  };
  static RowFacts facts_of(NormKind kind, std::span<const float> x) {
    const auto n = static_cast<double>(x.size());
    RowFacts facts;
    double mean = 0.0;
    if (kind == NormKind::kLayer) {
      for (const float value : x) mean += value / n;
      for (const float value : x) facts.mean_magnitude += std::abs(value) / n;
    }
    double variance = 0.0;
    for (const float value : x) variance += (value - mean) * (value - mean) / n;
    facts.scale = 1.0 / std::sqrt(variance + 1e-5);
    return facts;
  }
};
INSTANTIATE_TEST_SUITE_P(Device, BackendTest, testing::ValuesIn(devices_under_test()), test_name);

TEST_P(BackendTest, GatherCopiesRows) {
  const OnDevice rows = upload(std::vector<int32_t>{5, 0, 0});
  for (const int64_t pad : kPads) {
    for (const int64_t channels : {13, 64}) {
      const auto width = static_cast<size_t>(channels);
      const std::vector<float> x = random_values(6 * channels);
      const OnDevice x_device = upload(x, DType::kF32, {6, channels}, pad);
      const OnDevice out = poisoned(DType::kF32, {3, channels}, pad);
      backend_->gather({x_device.view, rows.view, out.view});
      const std::vector<float> got = download(out);
      for (size_t c = 0; c < width; ++c) {
        EXPECT_EQ(got[c], x[5 * width + c]);
        EXPECT_EQ(got[width + c], x[c]);
        EXPECT_EQ(got[2 * width + c], x[c]);
      }
    }
  }
}

TEST_P(BackendTest, SumWordsReadsEveryWord) {
  std::vector<int32_t> words(3'000'003);
  for (int32_t& word : words) word = static_cast<int32_t>(random_());
  const OnDevice x = upload(words);
  const OnDevice out = poisoned(DType::kI32, {1});
  const int64_t all = std::ssize(words);
  for (const auto& [begin, end] : {std::pair{int64_t{0}, all}, {1, all}, {4, 5}, {8, 32'776}, {4, 3'000'000}, {7, 7}}) {
    const TensorView<const int32_t, 1> part(static_cast<const int32_t*>(x.view.data) + begin, {end - begin});
    backend_->sum_words({part, out.view});
    uint32_t wanted = 0;
    for (int64_t i = begin; i < end; ++i) wanted += static_cast<uint32_t>(words[static_cast<size_t>(i)]);
    EXPECT_EQ(download_ints(out).front(), static_cast<int32_t>(wanted)) << begin << " to " << end;
  }
}

// ---- Rows reduced ----

// With a mean beside the deviations, which a LayerNorm takes out.
TEST_P(BackendTest, NormAgreesWithTheReference) {
  for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
    for (const int64_t n : {1, 2, 200}) {
      for (const int64_t channels : {1, 3, 16, 31, 576, 1001, 8192}) {
        const int64_t pad = kPads[(n + channels) % 3];
        const bool has_bias = channels % 2 == 0;
        std::vector<float> x = random_values(n * channels);
        for (float& value : x) value += 1.0F;
        std::vector<float> weight = random_values(channels);
        std::vector<float> bias = random_values(channels);
        std::vector<float> wanted(x.size());
        reference_->norm({.x = on_host<float, 2>(x, {n, channels}),
                          .weight = on_host<float, 1>(weight, {channels}),
                          .bias = has_bias ? AnyView(on_host<float, 1>(bias, {channels})) : AnyView(),
                          .kind = kind,
                          .out = on_host<float, 2>(wanted, {n, channels})});
        const OnDevice x_device = upload(x, DType::kF32, {n, channels}, pad);
        const OnDevice weight_device = upload(weight, DType::kF32, {channels});
        const OnDevice bias_device = upload(bias, DType::kF32, {channels});
        const OnDevice out = poisoned(act_, {n, channels}, pad);
        backend_->norm({.x = x_device.view,
                        .weight = weight_device.view,
                        .bias = has_bias ? bias_device.view : AnyView(),
                        .kind = kind,
                        .out = out.view});
        const std::vector<float> got = download(out);
        const auto width = static_cast<size_t>(channels);
        RowFacts row;
        for (size_t i = 0; i < got.size(); ++i) {
          const size_t c = i % width;
          if (c == 0) row = facts_of(kind, std::span(x).subspan(i, width));
          const double error =
              tolerance::norm(channels, row.mean_magnitude, row.scale * weight[c], has_bias ? bias[c] : 0.0, wanted[i]);
          ASSERT_NEAR(got[i], wanted[i], tolerance::stored(act_, wanted[i], error)) << channels;
        }
      }
    }
  }
}

// What lies between the last heads and the next row, values in a model, stays as it was.
TEST_P(BackendTest, NormOfEachHeadIsInPlace) {
  for (const int64_t head_dim : {6, 64, 256}) {
    for (const int64_t pad : kPads) {
      const std::vector<float> x = random_values(3 * 5 * head_dim, 2.0F, act_);
      std::vector<float> weight = random_values(5 * head_dim);
      std::vector<float> wanted = x;
      const AnyView wanted_view = on_host<float, 3>(wanted, {3, 5, head_dim});
      reference_->norm({.x = wanted_view, .weight = on_host<float, 2>(weight, {5, head_dim}), .out = wanted_view});
      const OnDevice out = upload(x, act_, {3, 5, head_dim}, pad);
      const OnDevice weight_device = upload(weight, DType::kF32, {5, head_dim});
      backend_->norm({.x = out.view, .weight = weight_device.view, .out = out.view});
      const std::vector<float> got = download(out);
      for (size_t i = 0; i < got.size(); ++i) {
        const double error = tolerance::rms_norm(head_dim, wanted[i]);
        ASSERT_NEAR(got[i], wanted[i], tolerance::stored(act_, wanted[i], error)) << head_dim;
      }
    }
  }
}

TEST_P(BackendTest, NormAccumulates) {
  for (const int64_t channels : {5, 1024}) {
    std::vector<float> x = random_values(4 * channels);
    std::vector<float> weight = random_values(channels);
    const std::vector<float> before = random_values(4 * channels);
    std::vector<float> wanted = before;
    reference_->norm({.x = on_host<float, 2>(x, {4, channels}),
                      .weight = on_host<float, 1>(weight, {channels}),
                      .out = on_host<float, 2>(wanted, {4, channels}),
                      .accumulate = true});
    const OnDevice x_device = upload(x, DType::kF32, {4, channels});
    const OnDevice weight_device = upload(weight, DType::kF32, {channels});
    const OnDevice out = upload(before, DType::kF32, {4, channels}, 3);
    backend_->norm({.x = x_device.view, .weight = weight_device.view, .out = out.view, .accumulate = true});
    const std::vector<float> got = download(out);
    for (size_t i = 0; i < got.size(); ++i) {
      const double added = double{wanted[i]} - before[i];
      ASSERT_NEAR(got[i], wanted[i], tolerance::rms_norm(channels, added) + 3 * tolerance::kUnit * std::abs(wanted[i]));
    }
  }
}

TEST_P(BackendTest, ArgmaxIsTheFirstOfTheLargest) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const int64_t channels : {1, 5, 64, 1001, 32003, 152064}) {
    for (const int64_t pad : kPads) {
      const auto width = static_cast<size_t>(channels);
      std::vector<float> x = random_values(6 * channels);
      const auto fill = [&](size_t row, float value) { std::fill_n(x.begin() + row * width, width, value); };
      x[width - 1] = 3.0F;  // the last
      x[width] = 3.0F;      // the first of two
      x[2 * width - 1] = 3.0F;
      fill(2, -1.0F);  // all equal
      fill(3, -kInfinity);
      fill(4, -0.0F);  // zeros are equal, whatever their sign
      x[4 * width + width / 2] = 0.0F;
      std::vector<int32_t> wanted(6);
      reference_->argmax({on_host<float, 2>(x, {6, channels}), on_host<int32_t, 1>(wanted, {6})});
      const OnDevice x_device = upload(x, DType::kF32, {6, channels}, pad);
      const OnDevice out = poisoned(DType::kI32, {6});
      backend_->argmax({x_device.view, out.view});
      EXPECT_EQ(download_ints(out), wanted) << channels << " columns";
    }
  }
}

// ---- Elements ----

TEST_P(BackendTest, RopeAgreesWithTheReference) {
  std::vector<int32_t> positions{0, 1, 77, 8191, 131071};
  const OnDevice positions_device = upload(positions);
  for (const RopePairing pairing : {RopePairing::kInterleaved, RopePairing::kHalfSplit}) {
    for (const int64_t head_dim : {2, 6, 64, 128, 134}) {
      for (const int64_t n_pairs : {head_dim / 2, head_dim / 4}) {
        const int64_t pad = kPads[(head_dim + n_pairs) % 3];
        std::vector<float> frequency;
        for (int64_t i = 0; i < n_pairs; ++i) {
          frequency.push_back(std::pow(10000.0F, -static_cast<float>(i) / static_cast<float>(head_dim / 2)));
        }
        frequency.push_back(0.0F);  // not used; there may be no other
        const OnDevice frequency_device = upload(frequency, DType::kF32, {n_pairs + 1});
        AnyView frequencies = frequency_device.view;
        frequencies.shape[0] = n_pairs;
        const std::vector<float> x = random_values(5 * 3 * head_dim, 2.0F, act_);
        const OnDevice out = upload(x, act_, {5, 3, head_dim}, pad);
        std::vector<float> wanted = x;
        const float scale = n_pairs % 2 == 0 ? 1.0F : 1.19F;
        backend_->rope({out.view, positions_device.view, frequencies, pairing, scale});
        reference_->rope({on_host<float, 3>(wanted, {5, 3, head_dim}), on_host<int32_t, 1>(positions, {5}),
                          on_host<float, 1>(frequency, {n_pairs}), pairing, scale});
        const std::vector<float> got = download(out);
        for (size_t i = 0; i < got.size(); ++i) {
          ASSERT_NEAR(got[i], wanted[i], tolerance::stored(act_, wanted[i], tolerance::rope(2.0 * scale, 2.0 * scale)))
              << "head_dim " << head_dim << " pairs " << n_pairs << " element " << i;
        }
      }
    }
  }
}

// Of heads that lie apart only their first channels, so that what lies between must stay.
TEST_P(BackendTest, HadamardAgreesWithTheReference) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kHeads = 3;
  for (const int block : {4, 16, 32, 64, 128}) {
    for (const int64_t head_dim : {int64_t{block}, int64_t{3} * block, int64_t{256}}) {
      for (const int64_t apart : {0, 8}) {
        const int64_t stride = head_dim + apart;
        const std::vector<float> x = random_values(kRows * kHeads * stride, 2.0F, act_);
        const OnDevice out = upload(x, act_, {kRows, kHeads, stride}, apart / 2);
        std::vector<float> wanted = x;
        AnyView view = out.view;
        AnyView host_view = on_host<float, 3>(wanted, {kRows, kHeads, stride});
        view.shape[2] = host_view.shape[2] = head_dim;
        backend_->hadamard({view, block});
        reference_->hadamard({host_view, block});
        const std::vector<float> got = download(out);
        for (int64_t i = 0; i < std::ssize(got); ++i) {
          double magnitudes = 0.0;
          const int64_t first = i / stride * stride + i % stride / block * block;
          for (int64_t j = first; j < std::min(first + block, std::ssize(x)); ++j) magnitudes += std::abs(double{x[j]});
          const double error = i % stride < head_dim ? tolerance::hadamard(block, magnitudes) : 0.0;
          ASSERT_NEAR(got[i], wanted[i], error == 0.0 ? 0.0 : tolerance::stored(act_, wanted[i], error))
              << "head_dim " << head_dim << " block " << block << " apart " << apart << " element " << i;
        }
      }
    }
  }
}

TEST_P(BackendTest, GateAgreesWithTheReference) {
  constexpr int64_t kRows = 40;
  for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    for (const float magnitude : {1.0F, 20.0F, 1e4F}) {
      for (const int64_t channels : {1, 15, 64, 1537}) {
        const int64_t pad = kPads[channels % 3];
        const bool has_up = channels != 15;
        std::vector<float> gate = random_values(kRows * channels, magnitude, act_);
        std::vector<float> up = random_values(kRows * channels, 2.0F, act_);
        std::vector<float> wanted(gate.size());
        reference_->gate({on_host<float, 2>(gate, {kRows, channels}),
                          has_up ? AnyView(on_host<float, 2>(up, {kRows, channels})) : AnyView(), activation,
                          on_host<float, 2>(wanted, {kRows, channels})});
        const OnDevice gate_device = upload(gate, act_, {kRows, channels}, pad);
        const OnDevice up_device = upload(up, act_, {kRows, channels}, 8);
        const AnyView up_view = has_up ? up_device.view : AnyView();
        const OnDevice out = poisoned(act_, {kRows, channels}, pad);
        backend_->gate({gate_device.view, up_view, activation, out.view});
        backend_->gate({gate_device.view, up_view, activation, gate_device.view});
        const std::vector<float> got = download(out);
        EXPECT_EQ(download(gate_device), got) << "in place";
        for (size_t i = 0; i < got.size(); ++i) {
          const double error = tolerance::gate(exponent_of(activation, gate[i]), wanted[i]);
          ASSERT_NEAR(got[i], wanted[i], tolerance::stored(act_, wanted[i], error)) << gate[i];
        }
      }
    }
  }
}

TEST_P(BackendTest, SoftCapAgreesWithTheReference) {
  for (const float magnitude : {1e-3F, 20.0F, 1e4F}) {
    for (const int64_t channels : {1, 15, 1024}) {
      const int64_t pad = kPads[channels % 3];
      std::vector<float> x = random_values(9 * channels, magnitude);
      const OnDevice out = upload(x, DType::kF32, {9, channels}, pad);
      backend_->soft_cap({out.view, 30.0F});
      reference_->soft_cap({on_host<float, 2>(x, {9, channels}), 30.0F});
      const std::vector<float> got = download(out);
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], x[i], tolerance::soft_cap(x[i])) << x[i];
    }
  }
}

TEST_P(BackendTest, ConvertIsTheReferenceToTheBit) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const int64_t channels : {1001, 1024}) {
    const auto width = static_cast<size_t>(channels);
    std::vector<float> x = random_values(7 * channels, 1e-3F);
    for (uint32_t c = 0; c < width; ++c) {  // every exponent, and ties
      const auto exponent = std::bit_cast<float>(c << 22);
      if (!std::isnan(exponent)) x[width + c] = exponent;  // a NaN stays one, but may be another
      x[2 * width + c] = -std::bit_cast<float>(0x38801000U + (c << 13));
      x[3 * width + c] = std::bit_cast<float>(0x3F808000U + (c << 16));
      x[4 * width + c] = static_cast<float>(c) * 0x1.8p-25F;
    }
    const std::array special{0.0F,   -0.0F,   65504.0F, 65519.0F,  65520.0F,
                             -1e30F, 3.4e38F, -3.4e38F, kInfinity, -kInfinity};
    std::copy(special.begin(), special.end(), x.begin() + 5 * width);
    const OnDevice x_device = upload(x, DType::kF32, {7, channels});
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
      const OnDevice out = poisoned(dtype, {7, channels});
      backend_->convert({x_device.view, out.view});
      Tensor wanted(*reference_, dtype, {7, channels});
      reference_->convert({on_host<float, 2>(x, {7, channels}), wanted.view()});
      const std::vector<std::byte> got = raw(out);
      EXPECT_EQ(std::memcmp(got.data(), wanted.view().data, got.size()), 0) << name(dtype);
    }
    x[6 * width] = std::numeric_limits<float>::quiet_NaN();
    write(x_device, x);
    const OnDevice half = poisoned(DType::kF16, {7, channels}, 3);
    backend_->convert({x_device.view, half.view});
    const std::vector<float> got = download(half);
    EXPECT_EQ(got[5 * width + 4], kHalfMax);
    EXPECT_EQ(got[5 * width + 8], kInfinity);
    EXPECT_TRUE(std::isnan(got[6 * width]));
  }
}

// ---- Arguments ----

TEST_P(BackendTest, NoRowsAreNoWork) {
  const WeightSample sample(WeightFormat::kQ8_0, 6, 64, 3);
  const auto weight = backend_->load_weight(sample.view());
  const auto none = [&](DType dtype, int64_t cols) {
    OnDevice tensor = poisoned(dtype, {1, cols});
    tensor.view.shape[0] = 0;
    return tensor;
  };
  const OnDevice x = none(act_, 64);
  const OnDevice x32 = none(DType::kF32, 64);
  const OnDevice out = none(DType::kF32, 6);
  const OnDevice norm = upload(random_values(64), DType::kF32, {64});
  OnDevice ids = upload(std::vector<int32_t>{0});
  ids.view.shape[0] = 0;
  backend_->embed({weight.get(), ids.view, x32.view});
  backend_->norm({.x = x32.view, .weight = norm.view, .epsilon = 1e-5F, .out = x.view});
  backend_->linear({x.view, weight.get(), {}, out.view});
  backend_->gate({x.view, x.view, Activation::kSilu, x.view});
  backend_->soft_cap({x32.view, 1.0F});
  backend_->gather({x32.view, ids.view, x32.view});
  backend_->argmax({x32.view, ids.view});
  backend_->convert({x32.view, x.view});
  for (const OnDevice* tensor : {&x, &x32, &out}) {
    for (const std::byte byte : raw(*tensor)) ASSERT_EQ(byte, std::byte{0xFF});
  }
}

TEST_P(BackendTest, ShapesThatContradictAreErrors) {
  const WeightSample sample(WeightFormat::kQ8_0, 6, 64, 3);
  const auto weight = backend_->load_weight(sample.view());
  const OnDevice x = upload(random_values(2 * 64), act_, {2, 64});
  const OnDevice out = upload(random_values(2 * 6), act_, {2, 6});
  const OnDevice other = upload(random_values(3 * 6), act_, {3, 6});
  const OnDevice tokens = upload(std::vector<int32_t>{0, 5});
  EXPECT_EQ(error_code_of([&] { backend_->linear({x.view, weight.get(), {}, other.view}); }), ErrorCode::kInternal);
  EXPECT_EQ(error_code_of([&] { backend_->linear({out.view, weight.get(), {}, out.view}); }), ErrorCode::kInternal);
  EXPECT_EQ(error_code_of([&] {
              backend_->linear({x.view, weight.get(), tokens.view, out.view});
            }),
            ErrorCode::kInternal);
  EXPECT_EQ(error_code_of([&] { backend_->linear({x.view, nullptr, {}, out.view}); }), ErrorCode::kInternal);
  EXPECT_EQ(error_code_of([&] { backend_->embed({weight.get(), tokens.view, out.view}); }), ErrorCode::kInternal);
  EXPECT_EQ(error_code_of([&] {
              backend_->gate({x.view, out.view, Activation::kSilu, x.view});
            }),
            ErrorCode::kInternal);
  EXPECT_EQ(error_code_of([&] { backend_->convert({tokens.view, tokens.view}); }), ErrorCode::kUnsupported);
  const OnDevice x32 = upload(random_values(2 * 64), DType::kF32, {2, 64});
  const OnDevice weights = upload(random_values(2 * 64), DType::kF32, {2, 64});
  EXPECT_EQ(error_code_of([&] { backend_->norm({.x = x32.view, .weight = weights.view, .out = x.view}); }),
            ErrorCode::kInternal);
  EXPECT_EQ(error_code_of([&] { backend_->soft_cap({x32.view, 0.0F}); }), ErrorCode::kInternal);
}

}  // namespace
}  // namespace kivi
