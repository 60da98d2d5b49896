// Every operation of the CPU backend on every instruction set of this machine against the reference.
#include "backend/backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <limits>
#include <optional>
#include <random>

#include "backend/cpu/isa.h"
#include "backend/null_device.h"
#include "backend/tensor.h"
#include "backend/tolerance.h"
#include "backend/weight_samples.h"
#include "core/error.h"

namespace kivi {
namespace {

class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_EQ(backend_->info().device, GetParam());
    ASSERT_EQ(backend_->info().n_threads, 2);
  }

  Tensor random_tensor(std::initializer_list<int64_t> shape, float magnitude = 2.0F) {
    Tensor tensor(*reference_, DType::kF32, shape);
    std::uniform_real_distribution<float> distribution(-magnitude, magnitude);
    auto* data = static_cast<float*>(tensor.view().data);
    for (size_t i = 0; i < tensor.size_bytes() / sizeof(float); ++i) data[i] = distribution(random_);
    return tensor;
  }
  Tensor int_tensor(const std::vector<int32_t>& values) {
    Tensor tensor(*reference_, DType::kI32, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), static_cast<int32_t*>(tensor.view().data));
    return tensor;
  }
  Tensor copy(const Tensor& from, std::initializer_list<int64_t> shape) {
    Tensor tensor(*reference_, DType::kF32, shape);
    std::memcpy(tensor.view().data, from.view().data, from.size_bytes());
    return tensor;
  }

  std::unique_ptr<Backend> backend_ = make_backend({GetParam(), 2});
  std::unique_ptr<Backend> reference_ = make_backend({"reference", {}});
  std::mt19937 random_{20240613};
};

std::vector<std::string> cpu_devices() {
  std::vector<std::string> devices;
  for (const cpu::Isa isa : cpu::available_isas()) devices.push_back("cpu:" + std::string(name(isa)));
  return devices;
}

INSTANTIATE_TEST_SUITE_P(Isa, BackendTest, testing::ValuesIn(cpu_devices()),
                         [](const auto& device) { return device.param.substr(4); });

// Columns: one block, several, more than one piece of a strip; for formats without blocks also odd numbers.
std::vector<int64_t> columns_of(WeightFormat format) {
  const int64_t block = block_elements(format);
  if (block == 1) return {1, 5, 16, 31, 32, 33, 100, 1055};
  return {block, 3 * block, 1024 + 2 * block};
}

TEST_P(BackendTest, LinearAgreesWithTheReference) {
  for (const WeightFormat format : kWeightFormats) {
    for (const int64_t cols : columns_of(format)) {
      for (const int64_t rows : {1, 4, 7, 67}) {
        const WeightSample sample(format, rows, cols, static_cast<uint32_t>(rows + cols), rows % 2);
        const auto weight = backend_->load_weight(sample.view());
        const auto reference_weight = reference_->load_weight(sample.view());
        for (const int64_t n : {1, 2, 3, 4, 5, 7, 64}) {
          SCOPED_TRACE(testing::Message() << name(format) << " " << n << " x " << cols << " -> " << rows);
          const Tensor x = random_tensor({n, cols});
          const Tensor bias = random_tensor({rows});
          Tensor out = random_tensor({n, rows});
          Tensor wanted = copy(out, {n, rows});
          const bool accumulate = n % 2 == 0;
          const AnyView bias_view = n % 3 == 0 ? AnyView() : bias.view();
          backend_->linear({x.view(), weight.get(), bias_view, out.view(), accumulate});
          reference_->linear({x.view(), reference_weight.get(), bias_view, wanted.view(), accumulate});
          std::vector<float> row(static_cast<size_t>(cols));
          for (int64_t r = 0; r < rows; ++r) {
            decode_row(sample.view(), r, row);
            for (int64_t i = 0; i < n; ++i) {
              double magnitude = 4.0 + std::abs(wanted.as<float, 2>()(i, r));
              for (int64_t c = 0; c < cols; ++c) {
                magnitude += std::abs(double{row[static_cast<size_t>(c)]} * x.as<float, 2>()(i, c));
              }
              ASSERT_NEAR((out.as<float, 2>()(i, r)), (wanted.as<float, 2>()(i, r)),
                          tolerance::dot(cols + 2, magnitude));
            }
          }
        }
      }
    }
  }
}

TEST_P(BackendTest, LinearGivesTheSameBitsAloneAndInABatch) {
  constexpr int64_t kTokens = 64;
  constexpr int64_t kRows = 133;
  for (const WeightFormat format : kWeightFormats) {
    for (const int64_t cols : columns_of(format)) {
      const WeightSample sample(format, kRows, cols, 7);
      const auto weight = backend_->load_weight(sample.view());
      const Tensor x = random_tensor({kTokens, cols});
      Tensor alone(*backend_, DType::kF32, {kTokens, kRows});
      for (int64_t i = 0; i < kTokens; ++i) {
        const TensorView<float, 2> row(x.as<float, 2>()[i].data, {1, cols});
        backend_->linear({row, weight.get(), {}, TensorView<float, 2>(alone.as<float, 2>()[i].data, {1, kRows})});
      }
      for (const int64_t n : {2, 3, 4, 5, 6, 7, 11, 64}) {
        Tensor batch(*backend_, DType::kF32, {n, kRows});
        backend_->linear({x.rows(n), weight.get(), {}, batch.view()});
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t r = 0; r < kRows; ++r) {
            ASSERT_EQ(std::bit_cast<uint32_t>(batch.as<float, 2>()(i, r)),
                      std::bit_cast<uint32_t>(alone.as<float, 2>()(i, r)))
                << name(format) << " cols " << cols << " batch " << n << " token " << i << " row " << r;
          }
        }
      }
    }
  }
}

TEST_P(BackendTest, LinearGivesTheSameBitsInBlocksOfTokens) {
  constexpr int64_t kTokens = 250;  // more than one block at this many columns
  constexpr int64_t kCols = 16384;
  const WeightSample sample(WeightFormat::kQ4_0, 3, kCols, 7);
  const auto weight = backend_->load_weight(sample.view());
  const Tensor x = random_tensor({kTokens, kCols});
  Tensor batch(*backend_, DType::kF32, {kTokens, 3});
  Tensor alone(*backend_, DType::kF32, {1, 3});
  backend_->linear({x.view(), weight.get(), {}, batch.view()});
  for (int64_t i = 0; i < kTokens; ++i) {
    backend_->linear({TensorView<float, 2>(x.as<float, 2>()[i].data, {1, kCols}), weight.get(), {}, alone.view()});
    for (int64_t r = 0; r < 3; ++r) ASSERT_EQ((batch.as<float, 2>()(i, r)), (alone.as<float, 2>()(0, r))) << i;
  }
}

TEST_P(BackendTest, LinearReadsAndWritesStridedRows) {
  constexpr int64_t kTokens = 9;
  const WeightSample sample(WeightFormat::kQ8_0, 6, 64, 3);
  const auto weight = backend_->load_weight(sample.view());
  const Tensor x = random_tensor({kTokens, 80});
  Tensor out(*backend_, DType::kF32, {kTokens, 10});
  Tensor wanted(*backend_, DType::kF32, {kTokens, 6});
  const TensorView<float, 2> x_part(x.as<float, 2>().data + 8, {kTokens, 64}, {80, 1});
  backend_->linear({x_part, weight.get(), {}, TensorView<float, 2>(out.as<float, 2>().data, {kTokens, 6}, {10, 1})});
  reference_->linear({x_part, reference_->load_weight(sample.view()).get(), {}, wanted.view()});
  for (int64_t n = 0; n < kTokens; ++n) {
    for (int64_t r = 0; r < 6; ++r) {
      EXPECT_NEAR((out.as<float, 2>()(n, r)), (wanted.as<float, 2>()(n, r)), tolerance::dot(64, 64 * 2.0 * 1.28));
    }
    for (int64_t r = 6; r < 10; ++r) EXPECT_EQ((out.as<float, 2>()(n, r)), 0.0F);
  }
}

TEST_P(BackendTest, EmbedIsDecodeRowToTheBit) {
  for (const WeightFormat format : kWeightFormats) {
    for (const int64_t cols : columns_of(format)) {
      const WeightSample sample(format, 5, cols, 11, 1);
      const Tensor tokens = int_tensor({4, 0, 2, 2});
      Tensor out(*backend_, DType::kF32, {4, cols});
      backend_->embed({backend_->load_weight(sample.view()).get(), tokens.view(), out.view()});
      std::vector<float> row(static_cast<size_t>(cols));
      for (int64_t n = 0; n < 4; ++n) {
        decode_row(sample.view(), tokens.as<int32_t, 1>()[n], row);
        for (int64_t c = 0; c < cols; ++c) {
          ASSERT_EQ((out.as<float, 2>()(n, c)), row[static_cast<size_t>(c)]) << name(format) << " column " << c;
        }
      }
    }
  }
}

TEST_P(BackendTest, RmsNormAgreesWithTheReference) {
  for (const int64_t n : {1, 2, 200}) {
    for (const int64_t channels : {1, 3, 16, 31, 576, 1001}) {
      const Tensor x = random_tensor({n, channels});
      const Tensor weight = random_tensor({channels});
      Tensor out(*backend_, DType::kF32, {n, channels});
      Tensor wanted(*backend_, DType::kF32, {n, channels});
      backend_->rms_norm({x.view(), weight.view(), 1e-5F, out.view()});
      reference_->rms_norm({x.view(), weight.view(), 1e-5F, wanted.view()});
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t c = 0; c < channels; ++c) {
          const float w = wanted.as<float, 2>()(i, c);
          ASSERT_NEAR((out.as<float, 2>()(i, c)), w, tolerance::rms_norm(channels, w)) << channels;
        }
      }
    }
  }
}

TEST_P(BackendTest, RmsNormWorksInPlaceAndStaysInItsRow) {
  const Tensor x = random_tensor({3, 21});
  const Tensor weight = random_tensor({19});
  Tensor out(*backend_, DType::kF32, {3, 19});
  const TensorView<float, 2> part(x.as<float, 2>().data, {3, 19}, {21, 1});
  const float beyond = x.as<float, 2>()(0, 19);
  backend_->rms_norm({part, weight.view(), 1e-6F, out.view()});
  backend_->rms_norm({part, weight.view(), 1e-6F, part});
  for (int64_t n = 0; n < 3; ++n) {
    for (int64_t c = 0; c < 19; ++c) EXPECT_EQ(part(n, c), (out.as<float, 2>()(n, c)));
  }
  EXPECT_EQ((x.as<float, 2>()(0, 19)), beyond);
}

TEST_P(BackendTest, RopeAgreesWithTheReference) {
  for (const RopePairing pairing : {RopePairing::kInterleaved, RopePairing::kHalfSplit}) {
    for (const int64_t head_dim : {2, 6, 64, 128, 134}) {
      for (const int64_t n_pairs : {head_dim / 2, head_dim / 4}) {
        const Tensor positions = int_tensor({0, 1, 77, 8191, 131071});
        Tensor frequency(*backend_, DType::kF32, {n_pairs});
        for (int64_t i = 0; i < n_pairs; ++i) {
          frequency.as<float, 1>().data[i] =
              std::pow(10000.0F, -static_cast<float>(i) / static_cast<float>(head_dim / 2));
        }
        const Tensor x = random_tensor({5, 3, head_dim});
        Tensor out = copy(x, {5, 3, head_dim});
        Tensor wanted = copy(x, {5, 3, head_dim});
        backend_->rope({out.view(), positions.view(), frequency.view(), pairing});
        reference_->rope({wanted.view(), positions.view(), frequency.view(), pairing});
        for (int64_t n = 0; n < 5; ++n) {
          for (int64_t h = 0; h < 3; ++h) {
            for (int64_t c = 0; c < head_dim; ++c) {
              ASSERT_NEAR((out.as<float, 3>()(n, h, c)), (wanted.as<float, 3>()(n, h, c)), tolerance::rope(2.0, 2.0))
                  << "head_dim " << head_dim << " pairs " << n_pairs << " token " << n << " channel " << c;
            }
          }
        }
      }
    }
  }
}

TEST_P(BackendTest, GateAgreesWithTheReference) {
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    for (const float magnitude : {1.0F, 20.0F, 1e4F}) {
      for (const int64_t channels : {1, 15, 64, 1537}) {
        const Tensor gate = random_tensor({40, channels}, magnitude);
        const Tensor up = random_tensor({40, channels});
        Tensor out(*backend_, DType::kF32, {40, channels});
        Tensor wanted(*backend_, DType::kF32, {40, channels});
        backend_->gate({gate.view(), up.view(), activation, out.view()});
        reference_->gate({gate.view(), up.view(), activation, wanted.view()});
        for (int64_t n = 0; n < 40; ++n) {
          for (int64_t c = 0; c < channels; ++c) {
            const double x = gate.as<float, 2>()(n, c);
            const double exponent = activation == Activation::kSilu ? x : 1.6 * (x + 0.0448 * x * x * x);
            const float w = wanted.as<float, 2>()(n, c);
            ASSERT_NEAR((out.as<float, 2>()(n, c)), w, tolerance::gate(exponent, w)) << x;
          }
        }
      }
    }
  }
}

TEST_P(BackendTest, GatherCopiesRows) {
  const Tensor x = random_tensor({6, 13});
  const Tensor rows = int_tensor({5, 0, 0});
  Tensor out(*backend_, DType::kF32, {3, 13});
  backend_->gather({x.view(), rows.view(), out.view()});
  for (int64_t m = 0; m < 3; ++m) {
    for (int64_t c = 0; c < 13; ++c) {
      EXPECT_EQ((out.as<float, 2>()(m, c)), (x.as<float, 2>()(rows.as<int32_t, 1>()[m], c)));
    }
  }
}

TEST_P(BackendTest, ConvertIsTheReferenceToTheBit) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Tensor x = random_tensor({7, 1001}, 1e-3F);
  auto view = x.as<float, 2>();
  for (int64_t c = 0; c < 1001; ++c) {  // every exponent, and ties
    view(1, c) = std::bit_cast<float>(static_cast<uint32_t>(c) << 22);
    view(2, c) = -std::bit_cast<float>(0x38801000U + (static_cast<uint32_t>(c) << 13));
    view(3, c) = std::bit_cast<float>(0x3F808000U + (static_cast<uint32_t>(c) << 16));
    view(4, c) = static_cast<float>(c) * 0x1.8p-25F;
  }
  const std::array special{0.0F, -0.0F, 65504.0F, 65519.0F, 65520.0F, -1e30F, 3.4e38F, -3.4e38F, kInfinity, -kInfinity};
  std::copy(special.begin(), special.end(), view[5].data);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    Tensor out(*backend_, dtype, {7, 1001});
    Tensor wanted(*backend_, dtype, {7, 1001});
    backend_->convert({x.view(), out.view()});
    reference_->convert({x.view(), wanted.view()});
    EXPECT_EQ(std::memcmp(out.view().data, wanted.view().data, out.size_bytes()), 0) << name(dtype);
  }
  Tensor half(*backend_, DType::kF16, {7, 1001});
  backend_->convert({x.view(), half.view()});
  EXPECT_EQ((to_float(half.as<Half, 2>()(5, 4))), kHalfMax);
  EXPECT_EQ((to_float(half.as<Half, 2>()(5, 8))), kInfinity);
}

TEST_P(BackendTest, AllocatesZeroedAlignedMemory) {
  const auto buffer = backend_->allocate(1000);
  EXPECT_EQ(buffer->size_bytes(), 1000U);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0U);
  for (size_t i = 0; i < 1000; ++i) ASSERT_EQ(buffer->data()[i], std::byte{0});
  EXPECT_NE(backend_->allocate(0), nullptr);
}

// The code and the message of the error that `body` throws.
template <typename Body>
std::optional<Error> error_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

TEST_P(BackendTest, NoRoomIsAnErrorThatNamesTheSize) {
  const auto error = error_of([&] { backend_->allocate(size_t{1} << 60); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kOutOfMemory);
  EXPECT_NE(std::string(error->what()).find("1152921504606846976"), std::string::npos);
}

TEST_P(BackendTest, ShapesThatContradictAreErrors) {
  const WeightSample sample(WeightFormat::kQ8_0, 6, 64, 3);
  const auto weight = backend_->load_weight(sample.view());
  const Tensor x = random_tensor({2, 64});
  const Tensor out = random_tensor({2, 6});
  const Tensor other = random_tensor({3, 6});
  const Tensor tokens = int_tensor({0, 6});
  const auto code = [](const std::optional<Error>& error) { return error ? error->code() : ErrorCode::kNotFound; };
  EXPECT_EQ(code(error_of([&] {
              backend_->linear({x.view(), weight.get(), {}, other.view()});
            })),
            ErrorCode::kInternal);
  EXPECT_EQ(code(error_of([&] {
              backend_->linear({out.view(), weight.get(), {}, out.view()});
            })),
            ErrorCode::kInternal);
  EXPECT_EQ(code(error_of([&] {
              backend_->linear({x.view(), weight.get(), tokens.view(), out.view()});
            })),
            ErrorCode::kInternal);
  EXPECT_EQ(code(error_of([&] { backend_->embed({weight.get(), tokens.view(), x.view()}); })), ErrorCode::kInternal);
  EXPECT_EQ(code(error_of([&] {
              backend_->gate({x.view(), out.view(), Activation::kSilu, x.view()});
            })),
            ErrorCode::kInternal);
  EXPECT_EQ(code(error_of([&] { backend_->convert({tokens.view(), tokens.view()}); })), ErrorCode::kUnsupported);
}

TEST_P(BackendTest, RandomWeightsAreEvenAndTheSameForASeed) {
  const auto numbers = [](Backend& backend, uint64_t seed) {
    Tensor tokens(backend, DType::kI32, {3});
    for (int32_t i = 0; i < 3; ++i) static_cast<int32_t*>(tokens.view().data)[i] = i;
    Tensor out(backend, DType::kF32, {3, 5000});
    const auto weight = backend.random_weight(3, 5000, 0.25F, seed);
    backend.embed({weight.get(), tokens.view(), out.view()});
    const auto* data = static_cast<const float*>(out.view().data);
    return std::vector<float>(data, data + 15000);
  };
  const std::vector<float> values = numbers(*backend_, 1);
  EXPECT_EQ(values, numbers(*reference_, 1));
  EXPECT_NE(values, numbers(*backend_, 2));
  double squares = 0;
  for (const float x : values) squares += double{x} * x / 15000;
  EXPECT_NEAR(squares, 0.25 * 0.25 / 3, 1e-3);
  EXPECT_LE(*std::max_element(values.begin(), values.end()), 0.25F);
  EXPECT_GE(*std::min_element(values.begin(), values.end()), -0.25F);
  EXPECT_EQ(error_of([] { NullDevice().random_weight(3, 4, 1.0F, 1); })->code(), ErrorCode::kUnsupported);
}

// ---- make_backend ----

class ForcedIsa {
 public:
  explicit ForcedIsa(const char* isa) { setenv("KIVI_FORCE_ISA", isa, 1); }
  ~ForcedIsa() { unsetenv("KIVI_FORCE_ISA"); }
};

TEST(MakeBackend, EveryAvailableDeviceIsMade) {
  for (const std::string& device : available_devices()) EXPECT_EQ(make_backend({device, {}})->info().device, device);
}

TEST(MakeBackend, CpuIsTheBestInstructionSet) {
  EXPECT_EQ(make_backend({"cpu", {}})->info().device, cpu_devices().front());
  EXPECT_GE(make_backend({"cpu", {}})->info().n_threads, 1);
}

TEST(MakeBackend, TheEnvironmentForcesAnInstructionSet) {
  const ForcedIsa forced("portable");
  EXPECT_EQ(make_backend({"cpu", {}})->info().device, "cpu:portable");
  EXPECT_EQ(make_backend({})->info().device, "cpu:portable");
  EXPECT_EQ(make_backend({"cpu:portable", {}})->info().device, "cpu:portable");
  const auto error = error_of([] { make_backend({"cpu:avx2", {}}); });
  ASSERT_TRUE(error);
  EXPECT_NE(std::string(error->what()).find("avx2"), std::string::npos);
  EXPECT_NE(std::string(error->what()).find("portable"), std::string::npos);
}

TEST(MakeBackend, WhatIsNotThereIsAnErrorThatListsWhatIs) {
  for (const char* device : {"tpu", "cpu:", "cpu:sse9", "reference:x", "cuda:x", "cpu:avx512:2"}) {
    const auto error = error_of([&] { make_backend({device, {}}); });
    ASSERT_TRUE(error) << device;
    EXPECT_EQ(error->code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(error->what()).find("portable"), std::string::npos) << error->what();
  }
  const ForcedIsa forced("sse9");
  EXPECT_EQ(error_of([] { make_backend({}); })->code(), ErrorCode::kUnsupported);
}

TEST(MakeBackend, ThreadsAreAtLeastOne) {
  EXPECT_EQ(make_backend({"cpu", 3})->info().n_threads, 3);
  EXPECT_EQ(error_of([] { make_backend({"cpu", 0}); })->code(), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace kivi
