// The operations that read weights (linear, embed) and the loading of weights, on every device of this machine, against
// the reference with the same values.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <numeric>

#include "backend/backend_tester.h"
#include "backend/tolerance.h"
#include "backend/weight_samples.h"

namespace kivi {
namespace {

class WeightTest : public BackendTester {
 protected:
  // A weight as the backend holds it: the blocks of the file on a CPU, rounded to its activations' type elsewhere.
  class Held {
   public:
    Held(std::span<const WeightView> parts, DType act) : parts_(parts.begin(), parts.end()) {
      if (act == DType::kF32) return;
      rounded_.resize(parts_.size());
      for (size_t i = 0; i < parts_.size(); ++i) round(parts_[i], act, rounded_[i]);
    }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

    std::span<const WeightView> parts() const { return parts_; }
    std::vector<float> row(int64_t r) const {
      size_t part = 0;
      for (; r >= parts_[part].rows; ++part) r -= parts_[part].rows;
      std::vector<float> values(static_cast<size_t>(parts_[part].cols));
      decode_row(parts_[part], r, values);
      return values;
    }

   private:
    static void round(WeightView& part, DType act, std::vector<uint16_t>& numbers) {
      const bool to_half = act == DType::kF16;
      std::vector<float> values(static_cast<size_t>(part.cols));
      for (int64_t r = 0; r < part.rows; ++r) {
        decode_row(part, r, values);
        for (const float value : values) {
          numbers.push_back(to_half ? reference::to_half_saturating(value).bits
                                    : reference::to_bfloat16_saturating(value).bits);
        }
      }
      part.format = to_half ? WeightFormat::kF16 : WeightFormat::kBF16;
      part.data = reinterpret_cast<const std::byte*>(numbers.data());
    }
    std::vector<WeightView> parts_;
    std::vector<std::vector<uint16_t>> rounded_;
  };

  struct LinearCase {
    int64_t n;
    bool with_bias = false;
    bool accumulate = false;
    DType out = DType::kF32;
    int64_t x_pad = 0;
    int64_t out_pad = 0;
  };
  // `weight` was loaded from `parts`.
  void check_linear(const Weight& weight, std::span<const WeightView> parts, const LinearCase& c);
  void check_linear(const Weight& weight, const WeightSample& sample, const LinearCase& c) {
    check_linear(weight, {&sample.view(), 1}, c);
  }
};

INSTANTIATE_TEST_SUITE_P(Device, WeightTest, testing::ValuesIn(devices_under_test()), test_name);

// Columns: one block, several, more than one piece of a strip; for formats without blocks also odd numbers.
std::vector<int64_t> columns_of(WeightFormat format) {
  const int64_t block = block_elements(format);
  if (block == 1) return {1, 5, 16, 31, 32, 33, 100, 1055};
  return {block, 3 * block, 1024 + 2 * block};
}

// ---- linear ----

void WeightTest::check_linear(const Weight& weight, std::span<const WeightView> parts, const LinearCase& c) {
  const int64_t rows = weight.rows();
  const int64_t cols = weight.cols();
  SCOPED_TRACE(testing::Message() << name(parts[0].format) << " " << c.n << " x " << cols << " -> " << rows
                                  << (c.with_bias ? ", bias" : "") << (c.accumulate ? ", +=" : "") << ", "
                                  << name(c.out) << ", pads " << c.x_pad << " " << c.out_pad);
  std::vector<float> x = random_values(c.n * cols, 2.0F, act_);
  std::vector<float> bias = random_values(rows);
  std::vector<float> wanted = random_values(c.n * rows);
  const OnDevice x_device = upload(x, act_, {c.n, cols}, c.x_pad);
  const OnDevice bias_device = upload(bias, DType::kF32, {rows});
  const OnDevice out =
      c.accumulate ? upload(wanted, c.out, {c.n, rows}, c.out_pad) : poisoned(c.out, {c.n, rows}, c.out_pad);
  const AnyView no_bias;
  backend_->linear({x_device.view, &weight, c.with_bias ? bias_device.view : no_bias, out.view, c.accumulate});

  const Held held(parts, act_);
  const auto reference_weight = reference_->load_weight(held.parts());
  const AnyView host_bias = c.with_bias ? AnyView(on_host<float, 1>(bias, {rows})) : no_bias;
  reference_->linear({on_host<float, 2>(x, {c.n, cols}), reference_weight.get(), host_bias,
                      on_host<float, 2>(wanted, {c.n, rows}), c.accumulate});

  const std::vector<float> got = download(out);
  const auto dot_error = act_ == DType::kF32 ? tolerance::dot : tolerance::tensor_core_dot;
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<float> row = held.row(r);
    for (int64_t i = 0; i < c.n; ++i) {
      const auto at = static_cast<size_t>(i * rows + r);
      double magnitude = 4.0 + std::abs(wanted[at]);
      for (size_t k = 0; k < row.size(); ++k) {
        magnitude += std::abs(double{row[k]} * x[static_cast<size_t>(i) * row.size() + k]);
      }
      double error = dot_error(cols + 2, magnitude);
      if (c.with_bias) {  // may be added to what is stored already
        error = tolerance::stored(c.out, std::abs(wanted[at]) + std::abs(bias[static_cast<size_t>(r)]), error);
      }
      ASSERT_NEAR(got[at], wanted[at], tolerance::stored(c.out, wanted[at], error)) << "row " << r << " token " << i;
    }
  }
}

TEST_P(WeightTest, LinearAgreesWithTheReference) {
  for (const WeightFormat format : kWeightFormats) {
    for (const int64_t cols : columns_of(format)) {
      for (const int64_t rows : {1, 4, 7, 67}) {
        const WeightSample sample(format, rows, cols, static_cast<uint32_t>(rows + cols), rows % 2);
        const auto weight = backend_->load_weight(sample.view());
        for (const int64_t n : {1, 2, 3, 4, 5, 7, 64}) {
          const bool accumulate = n % 2 == 0;
          check_linear(*weight, sample,
                       {.n = n,
                        .with_bias = n % 3 != 0,
                        .accumulate = accumulate,
                        .out = accumulate || rows == 4 ? DType::kF32 : act_});
        }
      }
    }
  }
}

TEST_P(WeightTest, LinearReadsAndWritesStridedRows) {
  const WeightSample sample(WeightFormat::kQ8_0, 6, 64, 3);
  const auto weight = backend_->load_weight(sample.view());
  for (const int64_t x_pad : kPads) {
    for (const int64_t out_pad : kPads) {
      check_linear(*weight, sample, {.n = 9, .with_bias = true, .out = act_, .x_pad = x_pad, .out_pad = out_pad});
      check_linear(*weight, sample, {.n = 9, .accumulate = true, .x_pad = x_pad, .out_pad = out_pad});
    }
  }
}

TEST_P(WeightTest, LinearOfAModelsSize) {
  const WeightSample sample(WeightFormat::kF16, 1536, 4096, 5);
  const auto weight = backend_->load_weight(sample.view());
  for (const int64_t n : {1, 8, 130}) check_linear(*weight, sample, {.n = n, .out = act_});
}

TEST_P(WeightTest, LinearStacksTheRowsOfItsParts) {
  constexpr int64_t kCols = 256;
  const WeightSample q(WeightFormat::kQ4_K, 5, kCols, 1);
  const WeightSample k(WeightFormat::kQ8_0, 3, kCols, 2);
  const WeightSample v(WeightFormat::kF32, 2, kCols, 3);
  const std::array parts{q.view(), k.view(), v.view()};
  const auto stacked = backend_->load_weight(parts);
  ASSERT_EQ(stacked->rows(), 10);
  check_linear(*stacked, parts, {.n = 4, .with_bias = true});
}

// ---- embed ----

TEST_P(WeightTest, EmbedIsDecodeRowToTheBit) {
  const std::vector<int32_t> tokens{4, 0, 2, 2};
  const OnDevice tokens_device = upload(tokens);
  for (const WeightFormat format : kWeightFormats) {
    for (const int64_t cols : columns_of(format)) {
      const WeightSample sample(format, 5, cols, 11, 1);
      const auto table = backend_->load_weight(sample.view());
      const Held held({&sample.view(), 1}, act_);
      for (const int64_t pad : kPads) {
        const OnDevice out = poisoned(DType::kF32, {4, cols}, pad);
        const float scale = pad == 8 ? 25.3F : 1.0F;
        backend_->embed({table.get(), tokens_device.view, out.view, scale});
        const std::vector<float> got = download(out);
        for (size_t n = 0; n < tokens.size(); ++n) {
          const std::vector<float> row = held.row(tokens[n]);
          for (size_t c = 0; c < row.size(); ++c) {
            ASSERT_EQ(got[n * row.size() + c], scale * row[c]) << name(format) << " column " << c;
          }
        }
      }
    }
  }
}

TEST_P(WeightTest, ATokenOutsideTheTableIsSeen) {
  const WeightSample sample(WeightFormat::kQ8_0, 6, 64, 3);
  const auto table = backend_->load_weight(sample.view());
  const OnDevice tokens = upload(std::vector<int32_t>{0, 6, -1});
  const OnDevice out = upload(random_values(3 * 64), DType::kF32, {3, 64});
  if (on_cpu()) {
    EXPECT_EQ(error_code_of([&] { backend_->embed({table.get(), tokens.view, out.view}); }), ErrorCode::kInternal);
    return;
  }
  backend_->embed({table.get(), tokens.view, out.view});  // where the host does not see the tokens
  const std::vector<float> got = download(out);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i >= 64) << i;
}

// ---- Random weights ----

TEST_P(WeightTest, RandomWeightsAreEvenAndFollowTheirSeed) {
  constexpr int64_t kRows = 33;
  constexpr int64_t kCols = 1001;
  std::vector<int32_t> all(kRows);
  std::iota(all.begin(), all.end(), 0);
  const OnDevice tokens = upload(all);
  const auto values = [&](uint64_t seed) {
    const auto weight = backend_->random_weight(kRows, kCols, 0.5F, seed);
    const OnDevice out = poisoned(DType::kF32, {kRows, kCols});
    backend_->embed({weight.get(), tokens.view, out.view});
    return download(out);
  };
  if (error_code_of([&] { values(7); }) == ErrorCode::kUnsupported) GTEST_SKIP() << "has none";
  const std::vector<float> first = values(7);
  EXPECT_EQ(first, values(7));
  EXPECT_NE(first, values(8));
  double sum = 0.0;
  double squares = 0.0;
  for (const float value : first) {
    ASSERT_LE(std::abs(value), 0.5F);
    sum += value;
    squares += double{value} * value;
  }
  const auto n = static_cast<double>(first.size());  // 33,033: the bounds are more than five standard deviations
  EXPECT_NEAR(sum / n, 0.0, 0.5 * 0.02);
  EXPECT_NEAR(squares / n, 0.25 / 3.0, 0.25 / 3.0 * 0.03);
}

}  // namespace
}  // namespace kivi
