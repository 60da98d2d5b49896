// Products of the CPU have one fixed arithmetic: the same bits alone and in a batch, on every instruction set.
#include <gtest/gtest.h>

#include <bit>

#include "backend/backend_tester.h"
#include "backend/weight_samples.h"

namespace kivi {
namespace {

class CpuLinearTest : public BackendTester {
 protected:
  void SetUp() override { ASSERT_EQ(backend_->info().n_threads, 2); }

  Tensor random_tensor(std::initializer_list<int64_t> shape) {
    Tensor tensor(*backend_, DType::kF32, shape);
    const std::vector<float> values = random_values(static_cast<int64_t>(tensor.size_bytes() / sizeof(float)));
    std::memcpy(tensor.view().data, values.data(), tensor.size_bytes());
    return tensor;
  }
};

INSTANTIATE_TEST_SUITE_P(Isa, CpuLinearTest, testing::ValuesIn(cpu_devices()), test_name);

TEST_P(CpuLinearTest, SameBitsAloneAndInABatch) {
  constexpr int64_t kTokens = 64;
  constexpr int64_t kRows = 133;
  for (const WeightFormat format : kWeightFormats) {
    const int64_t block = block_elements(format);
    const std::vector<int64_t> columns = block == 1 ? std::vector<int64_t>{1, 5, 16, 31, 32, 33, 100, 1055}
                                                    : std::vector<int64_t>{block, 3 * block, 1024 + 2 * block};
    for (const int64_t cols : columns) {
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

TEST_P(CpuLinearTest, SameBitsInBlocksOfTokens) {
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

}  // namespace
}  // namespace kivi
