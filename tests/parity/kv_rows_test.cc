// The rows that attention and storing take: columns of wider matrices, sequences without rows, rows of no sequence. On
// every device of the host, the same bits as on dense rows without any of that.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "backend/reference/paged.h"
#include "backend/tensor.h"
#include "cache/kv_cache.h"

namespace kivi {
namespace {

constexpr int kHeads = 6;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 64;
constexpr KvShape kShape{.n_layers = 1, .n_kv_heads = kKvHeads, .head_dim = kHeadDim};

// Numbers of a row by the row's name, so that both devices see the same.
float number(int row, int column) {
  std::minstd_rand random(static_cast<unsigned>(row * 10007 + column + 1));
  random.discard(3);
  return static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
}

// q | k | v of rows in one matrix, as a decoder has them, or each by itself.
struct Rows {
  Rows(Backend& backend, const std::vector<int>& names, bool stacked) {
    const auto n = std::ssize(names);
    const auto part = [&](DType dtype, int64_t heads, int64_t first_head) {
      const int64_t width = stacked ? kHeads + 2 * kKvHeads : heads;
      const Tensor& all = tensors.emplace_back(backend, dtype, std::initializer_list<int64_t>{n, width, kHeadDim});
      AnyView view = all.view();
      const int64_t skipped = stacked ? first_head : 0;
      view.data = static_cast<std::byte*>(view.data) + skipped * kHeadDim * static_cast<int64_t>(size_bytes(dtype));
      view.shape[1] = heads;
      for (int64_t row = 0; row < n; ++row) {
        for (int64_t i = 0; i < heads * kHeadDim; ++i) {
          const float value = number(names[row], static_cast<int>(first_head * kHeadDim + i));
          const int64_t offset = row * view.stride[0] + i;
          if (dtype == DType::kF32) static_cast<float*>(view.data)[offset] = value;
          if (dtype == DType::kF16) static_cast<Half*>(view.data)[offset] = to_half(value);
        }
      }
      return view;
    };
    tensors.reserve(4);
    q = part(DType::kF32, kHeads, 0);
    keys = part(DType::kF16, kKvHeads, kHeads);
    values = part(DType::kF16, kKvHeads, kHeads + kKvHeads);
    out = part(DType::kF32, kHeads, kHeads);
  }
  std::vector<float> output(int64_t row) const {
    const float* begin = &out.as<float, 3>()(row, 0, 0);
    return {begin, begin + kHeads * kHeadDim};
  }
  std::vector<Tensor> tensors;
  AnyView q, keys, values, out;
};

class KvRows : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  // Runs a step on rows of these names, with the borders given.
  Rows run(KvCache& cache, const std::vector<int>& names, const AnyView& seq_begin, int64_t n_sequences, bool stacked) {
    Rows rows(*backend_, names, stacked);
    const format::KvBatchView view = cache.view(0, n_sequences);
    backend_->plan_attend({seq_begin, view, std::ssize(names), kHeads});
    backend_->attend({.q = rows.q,
                      .new_keys = rows.keys,
                      .new_values = rows.values,
                      .seq_begin = seq_begin,
                      .cache = view,
                      .softmax_scale = 0.125F,
                      .out = rows.out});
    backend_->store_kv({rows.keys, rows.values, seq_begin, view});
    return rows;
  }

  std::unique_ptr<Backend> backend_ = make_backend({.device = std::get<0>(GetParam()), .n_threads = 2});
  KvConfig config_ = parse_kv_config(std::get<1>(GetParam()));
};

TEST_P(KvRows, StackedAndPaddedRowsGiveTheSameBits) {
  const KvCapacity capacity{.max_tokens = 400, .max_sequences = 5};
  KvCache plain(*backend_, kShape, config_, capacity);
  KvCache padded(*backend_, kShape, config_, capacity);
  const SequenceId ids[] = {plain.create(), plain.create()};
  ASSERT_EQ(padded.create(), ids[0]);
  ASSERT_EQ(padded.create(), ids[1]);
  int next_row = 0;
  for (const auto& [a, b] : {std::pair{70, 130}, {1, 1}, {60, 1}, {1, 1}, {1, 1}, {3, 40}, {1, 1}}) {
    const StepSequence step[] = {{ids[0], a}, {ids[1], b}};
    ASSERT_TRUE(plain.reserve(step));
    ASSERT_TRUE(padded.reserve(step));
    std::vector<int> names;
    for (int i = 0; i < a + b; ++i) names.push_back(next_row++);
    const Rows wanted = run(plain, names, plain.seq_begin(), 2, false);
    // Three sequences more than there are, and two rows of nobody.
    const std::vector<int> longer = [&] {
      std::vector<int> all = names;
      all.insert(all.end(), {-1, -2});
      return all;
    }();
    const Rows got = run(padded, longer, padded.seq_begin(5), 5, true);
    for (int64_t row = 0; row < a + b; ++row) ASSERT_EQ(got.output(row), wanted.output(row)) << "row " << row;
    const Rows untouched(*backend_, longer, true);
    for (int64_t row = a + b; row < a + b + 2; ++row) ASSERT_EQ(got.output(row), untouched.output(row));
    plain.commit();
    padded.commit();
  }
  const StepSequence last[] = {{ids[0], 1}, {ids[1], 1}};
  ASSERT_TRUE(plain.reserve(last));
  ASSERT_TRUE(padded.reserve(last));
  for (int b = 0; b < 2; ++b) {
    for (int head = 0; head < kKvHeads; ++head) {
      EXPECT_EQ(reference::stored_keys(padded.view(0), b, head), reference::stored_keys(plain.view(0), b, head));
      EXPECT_EQ(reference::stored_values(padded.view(0), b, head), reference::stored_values(plain.view(0), b, head));
    }
  }
}

// A sequence without rows between others: as if it were not there.
TEST_P(KvRows, ASequenceWithoutRowsChangesNothing) {
  const KvCapacity capacity{.max_tokens = 400, .max_sequences = 3};
  KvCache cache(*backend_, kShape, config_, capacity);
  KvCache alone(*backend_, kShape, config_, capacity);
  const SequenceId ids[] = {cache.create(), cache.create(), cache.create()};
  const SequenceId only = alone.create();
  const StepSequence prompts[] = {{ids[0], 5}, {ids[1], 150}, {ids[2], 150}};
  const StepSequence prompt{only, 150};
  ASSERT_TRUE(cache.reserve(prompts));
  ASSERT_TRUE(alone.reserve({&prompt, 1}));
  const Tensor borders(*backend_, DType::kI32, {4});
  const int32_t values[] = {0, 0, 150, 150};  // the first and the last one have no rows
  backend_->copy_to_device(borders.view().data, values, sizeof(values));
  std::vector<int> names(150);
  for (int i = 0; i < 150; ++i) names[i] = i;
  const Rows got = run(cache, names, borders.view(), 3, true);
  const Rows wanted = run(alone, names, alone.seq_begin(), 1, false);
  for (int64_t row = 0; row < 150; ++row) ASSERT_EQ(got.output(row), wanted.output(row)) << "row " << row;
}

std::vector<std::string> host_devices() {
  std::vector<std::string> devices = available_devices();
  std::erase_if(devices, [](const std::string& device) { return device.starts_with("cuda"); });
  return devices;
}

std::string case_name(const testing::TestParamInfo<std::tuple<std::string, std::string>>& info) {
  std::string name = std::get<0>(info.param) + "_" + std::get<1>(info.param);
  std::ranges::replace_if(
      name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(HostDevices, KvRows,
                         testing::Combine(testing::ValuesIn(host_devices()),
                                          testing::Values("f16", "kivi2:residual=32", "kivi4:sinks=4", "kivi-s",
                                                          "kivi-l")),
                         case_name);

}  // namespace
}  // namespace kivi
