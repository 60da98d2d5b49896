// Operations on columns of wider matrices, as stacked products leave them: on every device of the host the same bits as
// on dense ones, and nothing beside them is touched.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "backend/backend.h"
#include "backend/tensor.h"
#include "backend/weight_samples.h"

namespace kivi {
namespace {

constexpr int64_t kRows = 7;
constexpr int64_t kBefore = 5;  // columns beside the view
constexpr int64_t kAfter = 3;

class StridedTest : public testing::TestWithParam<std::string> {
 protected:
  // The same random numbers twice: dense, and as columns of a wider matrix.
  struct Pair {
    AnyView dense;
    AnyView wide;
  };
  Pair random(int64_t cols, DType dtype = DType::kF32) {
    const Tensor& dense = keep({*backend_, dtype, {kRows, cols}});
    const Tensor& wide = keep({*backend_, dtype, {kRows, kBefore + cols + kAfter}});
    fill(dense);
    fill(wide);
    AnyView columns = wide.view();
    columns.data = static_cast<std::byte*>(columns.data) + kBefore * size_bytes(dtype);
    columns.shape[1] = cols;
    for (int64_t n = 0; n < kRows; ++n) std::memcpy(row(columns, n), row(dense.view(), n), row_bytes(dense.view()));
    before_.emplace_back(static_cast<std::byte*>(wide.view().data),
                         static_cast<std::byte*>(wide.view().data) + wide.size_bytes());
    wide_.push_back({wide.view(), columns});
    return {dense.view(), columns};
  }
  Tensor vector(int64_t n) {
    Tensor tensor(*backend_, DType::kF32, {n});
    fill(tensor);
    return tensor;
  }
  Tensor ints(const std::vector<int32_t>& values) {
    Tensor tensor(*backend_, DType::kI32, {std::ssize(values)});
    std::memcpy(tensor.view().data, values.data(), values.size() * sizeof(int32_t));
    return tensor;
  }

  static void expect_equal(const Pair& pair) {
    for (int64_t n = 0; n < kRows; ++n) {
      EXPECT_EQ(std::memcmp(row(pair.wide, n), row(pair.dense, n), row_bytes(pair.dense)), 0) << "row " << n;
    }
  }
  void TearDown() override {
    for (size_t i = 0; i < wide_.size(); ++i) {
      const auto& [all, columns] = wide_[i];
      for (int64_t n = 0; n < kRows; ++n) {  // put back what was in the columns: then all is as before
        const auto offset = static_cast<std::byte*>(row(columns, n)) - static_cast<std::byte*>(all.data);
        std::memcpy(row(columns, n), before_[i].data() + offset, row_bytes(columns));
      }
      EXPECT_EQ(std::memcmp(all.data, before_[i].data(), before_[i].size()), 0) << "matrix " << i;
    }
  }

  static void* row(const AnyView& view, int64_t n) {
    return static_cast<std::byte*>(view.data) + n * view.stride[0] * static_cast<int64_t>(size_bytes(view.dtype));
  }
  static size_t row_bytes(const AnyView& view) { return static_cast<size_t>(view.shape[1]) * size_bytes(view.dtype); }
  static AnyView heads(AnyView view, int64_t head_dim) {
    view.rank = 3;
    view.shape = {view.shape[0], view.shape[1] / head_dim, head_dim};
    view.stride = {view.stride[0], head_dim, 1};
    return view;
  }

  std::unique_ptr<Backend> backend_ = make_backend({.device = GetParam(), .n_threads = 2});

 private:
  const Tensor& keep(Tensor tensor) { return *tensors_.emplace_back(std::make_unique<Tensor>(std::move(tensor))); }
  void fill(const Tensor& tensor) {
    std::uniform_real_distribution<float> distribution(-2.0F, 2.0F);
    const DType dtype = tensor.view().dtype;
    auto* bytes = static_cast<std::byte*>(tensor.view().data);
    for (size_t i = 0; i < tensor.size_bytes(); i += size_bytes(dtype)) {
      const float value = distribution(random_);
      const Half half = to_half(value);
      if (dtype == DType::kF32) std::memcpy(bytes + i, &value, sizeof(value));
      if (dtype != DType::kF32) std::memcpy(bytes + i, &half, sizeof(half));
    }
  }

  std::mt19937 random_{11};
  std::vector<std::unique_ptr<Tensor>> tensors_;
  std::vector<std::pair<AnyView, AnyView>> wide_;  // the whole, and its columns
  std::vector<std::vector<std::byte>> before_;
};

TEST_P(StridedTest, Embed) {
  const WeightSample sample(WeightFormat::kQ8_0, 9, 64, 1);
  const auto table = backend_->load_weight(sample.view());
  const Tensor tokens = ints({8, 0, 3, 3, 1, 2, 7});
  const Pair out = random(64);
  backend_->embed({table.get(), tokens.view(), out.dense});
  backend_->embed({table.get(), tokens.view(), out.wide});
  expect_equal(out);
}

TEST_P(StridedTest, RmsNorm) {
  const Pair x = random(33);
  const Pair out = random(33);
  const Tensor weight = vector(33);
  backend_->norm({.x = x.dense, .weight = weight.view(), .epsilon = 1e-5F, .out = out.dense});
  backend_->norm({.x = x.wide, .weight = weight.view(), .epsilon = 1e-5F, .out = out.wide});
  expect_equal(out);
}

TEST_P(StridedTest, LinearOfStackedWeights) {
  const WeightSample parts[] = {
      {WeightFormat::kQ4_K, 70, 256, 1}, {WeightFormat::kF16, 5, 256, 2}, {WeightFormat::kQ8_0, 33, 256, 3}};
  const WeightView views[] = {parts[0].view(), parts[1].view(), parts[2].view()};
  const auto stacked = backend_->load_weight(views);
  ASSERT_EQ(stacked->rows(), 108);
  const Tensor bias = vector(108);
  for (const bool accumulate : {false, true}) {
    const Pair x = random(256);
    const Pair out = random(108);
    const Pair apart = random(108);  // each part by itself
    std::memcpy(apart.dense.data, out.dense.data, kRows * row_bytes(out.dense));
    backend_->linear({x.dense, stacked.get(), bias.view(), out.dense, accumulate});
    backend_->linear({x.wide, stacked.get(), bias.view(), out.wide, accumulate});
    expect_equal(out);
    int64_t first = 0;
    for (const WeightView& part : views) {
      AnyView columns = apart.dense;
      columns.data = static_cast<float*>(columns.data) + first;
      columns.shape[1] = part.rows;
      const TensorView<float, 1> part_bias(bias.as<float, 1>().data + first, {part.rows});
      backend_->linear({x.dense, backend_->load_weight(part).get(), part_bias, columns, accumulate});
      first += part.rows;
    }
    EXPECT_EQ(std::memcmp(apart.dense.data, out.dense.data, kRows * row_bytes(out.dense)), 0);
  }
}

TEST_P(StridedTest, Rope) {
  for (const RopePairing pairing : {RopePairing::kInterleaved, RopePairing::kHalfSplit}) {
    const Pair x = random(3 * 24);
    const Tensor positions = ints({0, 1, 2, 3, 100, 101, 5000});
    const Tensor frequencies = vector(12);
    backend_->rope({heads(x.dense, 24), positions.view(), frequencies.view(), pairing});
    backend_->rope({heads(x.wide, 24), positions.view(), frequencies.view(), pairing});
    expect_equal(x);
  }
}

TEST_P(StridedTest, Hadamard) {
  const Pair x = random(3 * 48);
  backend_->hadamard({heads(x.dense, 48), 16});
  backend_->hadamard({heads(x.wide, 48), 16});
  expect_equal(x);
}

TEST_P(StridedTest, GateInPlace) {
  const Pair gate = random(50);
  const Pair up = random(50);
  backend_->gate({gate.dense, up.dense, Activation::kSilu, gate.dense});
  backend_->gate({gate.wide, up.wide, Activation::kSilu, gate.wide});
  expect_equal(gate);
}

TEST_P(StridedTest, Gather) {
  const Pair x = random(19);
  const Pair out = random(19);
  const Tensor rows = ints({6, 0, 0, 1, 2, 6, 5});
  backend_->gather({x.dense, rows.view(), out.dense});
  backend_->gather({x.wide, rows.view(), out.wide});
  expect_equal(out);
}

TEST_P(StridedTest, Argmax) {
  const Pair x = random(40);
  for (void* third_row : {row(x.dense, 2), row(x.wide, 2)}) {
    static_cast<float*>(third_row)[9] = 3.0F;
    static_cast<float*>(third_row)[30] = 3.0F;
  }
  const Tensor dense = ints(std::vector<int32_t>(kRows));
  const Tensor wide = ints(std::vector<int32_t>(kRows));
  backend_->argmax({x.dense, dense.view()});
  backend_->argmax({x.wide, wide.view()});
  EXPECT_EQ(std::memcmp(dense.view().data, wide.view().data, dense.size_bytes()), 0);
  EXPECT_EQ((dense.as<int32_t, 1>()[2]), 9);  // the first of equals
}

TEST_P(StridedTest, Convert) {
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    const Pair x = random(45);
    const Pair out = random(45, dtype);
    backend_->convert({x.dense, out.dense});
    backend_->convert({x.wide, out.wide});
    expect_equal(out);
  }
}

std::vector<std::string> host_devices() {
  std::vector<std::string> devices = available_devices();
  std::erase_if(devices, [](const std::string& device) { return device.starts_with("cuda"); });
  return devices;
}

std::string device_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) c = c == ':' ? '_' : c;
  return name;
}

INSTANTIATE_TEST_SUITE_P(HostDevices, StridedTest, testing::ValuesIn(host_devices()), device_name);

}  // namespace
}  // namespace kivi
