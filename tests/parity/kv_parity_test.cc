// The cache on every device of the host, the reference included, against Algorithm 1: the same tokens go, in the same
// steps, through the paper's listing (plain rows), and through pages, block tables and kernels. What a query sees must
// be equal to the bit, what comes out of the attention equal within rounding on the same dequantised values. Layers
// that slide forget; what they give must be what plain attention over everything gives with a mask.
// device_parity_test.cc compares all devices with the reference.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/reference/paged.h"
#include "backend/tensor.h"
#include "cache/kv_cache.h"
#include "reference/algorithm1.h"

namespace kivi {
namespace {

using reference::Algorithm1;
using reference::Row;

// Largest |difference| of an attention output: f32 sums against double. Loud channels bring scores to about 64, so each
// of the D roundings on the way is up to 2^-18, and they add up like a random walk; a probability is off by as much
// relatively, on values up to 30.
float attend_tolerance(int head_dim) {
  return 30.0F * 0x1p-18F * std::sqrt(static_cast<float>(head_dim));
}

std::vector<std::string> host_devices() {
  std::vector<std::string> devices = available_devices();
  std::erase_if(devices, [](const std::string& device) { return device.starts_with("cuda"); });
  return devices;
}

struct Case {
  const char* kv;
  int head_dim;
  int n_kv_heads;
  int heads_per_kv;
  int sliding_window = 0;  // of the first of the two layers
  float score_cap = 0.0F;  // of that one too
};

// Two sequences of different lengths; each step gives their numbers of new tokens.
struct Step {
  int n_new[2];
};

std::vector<Step> steps() {
  std::vector<Step> steps = {{{1, 127}}, {{31, 1}}, {{1, 1}}, {{94, 3}}};
  for (int i = 0; i < 5; ++i) steps.push_back({{1, 1}});  // past a flush and a page edge, token by token
  steps.push_back({{1, 300}});                            // decoding beside a long chunk
  for (int i = 0; i < 20; ++i) steps.push_back({{1, 1}});
  steps.push_back({{129, 17}});
  steps.push_back({{1, 1}});
  return steps;
}

class Numbers {
 public:
  explicit Numbers(uint32_t seed) : random_(seed) {}
  // Binary16 numbers with a few loud channels, as keys have, and now and then a constant stretch.
  Row row(int head_dim) {
    Row out(head_dim);
    const bool constant = random_() % 16 == 0;
    for (int c = 0; c < head_dim; ++c) {
      const float loud = c % 13 == 5 ? 8.0F : 1.0F;
      out[c] = to_float(to_half(constant ? 0.75F : loud * normal_(random_)));
    }
    return out;
  }

 private:
  std::mt19937 random_;
  std::normal_distribution<float> normal_{0.0F, 1.0F};
};

// [tokens][heads] rows.
using Rows = std::vector<std::vector<Row>>;
using LayerRows = std::array<Rows, 2>;
Rows random_rows(Numbers& numbers, int n, int heads, int head_dim) {
  Rows rows(n);
  for (auto& token : rows) {
    for (int h = 0; h < heads; ++h) token.push_back(numbers.row(head_dim));
  }
  return rows;
}

// A device with the cache of the case, driven step by step.
class Device {
 public:
  Device(const std::string& name, const Case& which, int n_threads = 2)
      : backend(make_backend({.device = name, .n_threads = n_threads})),
        cache(*backend,
              {.n_layers = 2,
               .n_kv_heads = which.n_kv_heads,
               .head_dim = which.head_dim,
               .sliding_window = which.sliding_window,
               .slides = {which.sliding_window > 0, false}},
              parse_kv_config(which.kv), {.max_tokens = 1024, .max_sequences = 3}),
        score_cap_(which.score_cap) {
    // Neither the first place in the tables nor the first pages.
    const SequenceId other = cache.create();
    ids = {cache.create(), cache.create()};
    cache.release(other);
  }

  // Runs one step of both sequences.
  LayerRows step(const Step& step, const Rows& q, const Rows& keys, const Rows& values) {
    const StepSequence both[] = {{ids[0], step.n_new[0]}, {ids[1], step.n_new[1]}};
    return run(both, q, keys, values);
  }

  // Runs one step on both layers with the same rows.
  LayerRows run(std::span<const StepSequence> sequences, const Rows& q, const Rows& keys, const Rows& values) {
    EXPECT_TRUE(cache.reserve(sequences));
    const Tensor q_tensor = upload<float>(q);
    const Tensor key_tensor = upload<Half>(keys);
    const Tensor value_tensor = upload<Half>(values);
    LayerRows out;
    for (int layer = 0; layer < 2; ++layer) {
      out[layer] = run_layer(layer, q_tensor.view(), key_tensor.view(), value_tensor.view());
    }
    cache.commit();
    return out;
  }

  std::unique_ptr<Backend> backend;
  KvCache cache;
  std::vector<SequenceId> ids;

 private:
  // Returns the attention's output, [tokens][H] rows.
  Rows run_layer(int layer, const AnyView& q, const AnyView& keys, const AnyView& values) {
    const int64_t n = q.shape[0];
    const int64_t heads = q.shape[1];
    const int64_t head_dim = q.shape[2];
    const Tensor out(*backend, DType::kF32, {n, heads, head_dim});
    std::vector<float> host(n * heads * head_dim, NAN);
    backend->copy_to_device(out.view().data, host.data(), host.size() * 4);
    const format::KvBatchView view = cache.view(layer);
    backend->attend({.q = q,
                     .new_keys = keys,
                     .new_values = values,
                     .seq_begin = cache.seq_begin(),
                     .cache = view,
                     .softmax_scale = 1.0F / std::sqrt(static_cast<float>(head_dim)),
                     .score_cap = layer == 0 ? score_cap_ : 0.0F,
                     .out = out.view()});
    backend->store_kv({.new_keys = keys, .new_values = values, .seq_begin = cache.seq_begin(), .cache = view});
    backend->copy_to_host(host.data(), out.view().data, host.size() * 4);
    Rows rows(n, std::vector<Row>(heads));
    for (int64_t i = 0; i < n * heads; ++i) {
      rows[i / heads][i % heads].assign(host.begin() + i * head_dim, host.begin() + (i + 1) * head_dim);
    }
    return rows;
  }

  template <typename T>
  Tensor upload(const Rows& rows) {
    Tensor tensor(*backend, kDTypeOf<T>,
                  {static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size()),
                   static_cast<int64_t>(rows[0][0].size())});
    std::vector<T> host;
    for (const auto& token : rows) {
      for (const Row& row : token) {
        for (const float x : row) {
          if constexpr (std::is_same_v<T, float>) host.push_back(x);
          if constexpr (std::is_same_v<T, Half>) host.push_back(to_half(x));
        }
      }
    }
    backend->copy_to_device(tensor.view().data, host.data(), host.size() * sizeof(T));
    return tensor;
  }

  float score_cap_;
};

// Algorithm 1 for every sequence and KV head.
std::vector<Algorithm1> make_listing(const Case& which) {
  const KvConfig config = parse_kv_config(which.kv);
  const format::PageLayout layout =
      config.layout({.n_layers = 1, .n_kv_heads = which.n_kv_heads, .head_dim = which.head_dim});
  const reference::Algorithm1Config listing{.key_bits = layout.key_bits,
                                            .value_bits = layout.value_bits,
                                            .key_group = layout.key_group,
                                            .value_group = layout.value_group,
                                            .key_policy = config.key_policy(),
                                            .value_policy = config.value_policy(),
                                            .params = layout.params};
  return std::vector<Algorithm1>(2 * which.n_kv_heads, Algorithm1(listing));
}

// One column of [tokens][heads] rows: head h of tokens begin .. begin + n - 1.
std::vector<Row> column(const Rows& rows, int begin, int n, int h) {
  std::vector<Row> out;
  for (int i = 0; i < n; ++i) out.push_back(rows[begin + i][h]);
  return out;
}

// Attention of the token at `position` over all tokens that ever were, but for those that a mask hides.
Row attend_masked(const Row& query, std::span<const Row> keys, std::span<const Row> values, int64_t position,
                  int64_t sliding_window, float scale, float score_cap) {
  std::vector<double> p(keys.size());
  double total = 0;
  for (int64_t t = 0; t < std::ssize(keys); ++t) {
    if (t > position || (sliding_window > 0 && t <= position - sliding_window)) continue;
    double score = std::inner_product(query.begin(), query.end(), keys[t].begin(), 0.0) * scale;
    if (score_cap > 0) score = score_cap * std::tanh(score / score_cap);
    total += p[t] = std::exp(score);
  }
  Row out(query.size());
  for (size_t c = 0; c < out.size(); ++c) {
    double sum = 0;
    for (size_t t = 0; t < keys.size(); ++t) sum += p[t] / total * values[t][c];
    out[c] = static_cast<float>(sum);
  }
  return out;
}

// The rows of one sequence and KV head in a step.
struct StepColumn {
  std::vector<Row> keys;
  std::vector<Row> values;
};

// What the new tokens of one query head get from the first layer; the listing is as it was before the step.
std::vector<Row> masked_outputs(const Case& which, const Algorithm1& listing, const StepColumn& rows,
                                const std::vector<Row>& queries, float scale) {
  StepColumn all{listing.keys(), listing.values()};
  const auto n_past = std::ssize(all.keys);
  all.keys.insert(all.keys.end(), rows.keys.begin(), rows.keys.end());
  all.values.insert(all.values.end(), rows.values.begin(), rows.values.end());
  std::vector<Row> out;
  for (const Row& query : queries) {
    out.push_back(attend_masked(query, all.keys, all.values, n_past + std::ssize(out), which.sliding_window, scale,
                                which.score_cap));
  }
  return out;
}

void expect_equal_outputs(const Case& which, const std::string& device, const Step& step,
                          const std::vector<Algorithm1>& listing, const Rows& q, const Rows& keys, const Rows& values,
                          const LayerRows& out) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(which.head_dim));
  const bool is_masked = which.sliding_window > 0 || which.score_cap > 0;
  for (int s = 0; s < 2; ++s) {
    const int begin = s * step.n_new[0];
    for (int h = 0; h < which.n_kv_heads * which.heads_per_kv; ++h) {
      const int kv = h / which.heads_per_kv;
      Algorithm1 copy = listing[s * which.n_kv_heads + kv];
      const StepColumn rows{column(keys, begin, step.n_new[s], kv), column(values, begin, step.n_new[s], kv)};
      const std::vector<Row> queries = column(q, begin, step.n_new[s], h);
      std::array<std::vector<Row>, 2> wanted;
      if (is_masked) wanted[0] = masked_outputs(which, copy, rows, queries, scale);
      wanted[1] = copy.step(queries, rows.keys, rows.values, scale);
      if (!is_masked) wanted[0] = wanted[1];
      for (int layer = 0; layer < 2; ++layer) {
        for (int i = 0; i < step.n_new[s]; ++i) {
          for (int c = 0; c < which.head_dim; ++c) {
            ASSERT_NEAR(out[layer][begin + i][h][c], wanted[layer][i][c], attend_tolerance(which.head_dim))
                << device << " layer " << layer << " sequence " << s << " head " << h << " token " << i << " channel "
                << c;
          }
        }
      }
    }
  }
}

// The host can read the pages of CPU devices directly.
void expect_equal_cache(const Case& which, Device& device, const std::vector<Algorithm1>& listing) {
  const StepSequence sequences[] = {{device.ids[0], 1}, {device.ids[1], 1}};
  ASSERT_TRUE(device.cache.reserve(sequences));
  for (int layer = 0; layer < 2; ++layer) {
    const format::KvBatchView view = device.cache.view(layer);
    for (int s = 0; s < 2; ++s) {
      for (int kv = 0; kv < which.n_kv_heads; ++kv) {
        const Algorithm1& all = listing[s * which.n_kv_heads + kv];
        const auto seen = [&](const std::vector<Row>& rows) {
          const int64_t n_unseen = layer == 1 || which.sliding_window == 0
                                       ? 0
                                       : std::max<int64_t>(0, std::ssize(rows) + 1 - which.sliding_window);
          return std::vector<Row>(rows.begin() + n_unseen, rows.end());
        };
        ASSERT_EQ(reference::stored_keys(view, s, kv), seen(all.keys())) << "sequence " << s << " head " << kv;
        ASSERT_EQ(reference::stored_values(view, s, kv), seen(all.values())) << "sequence " << s << " head " << kv;
      }
    }
  }
  device.cache.commit();
}

class KvParity : public testing::TestWithParam<std::tuple<std::string, Case>> {};

TEST_P(KvParity, EqualsAlgorithm1) {
  const auto& [name, which] = GetParam();
  Device device(name, which);
  ASSERT_EQ(device.backend->info().device, name);
  std::vector<Algorithm1> listing = make_listing(which);
  Numbers numbers(7);
  for (const Step& step : steps()) {
    const int n = step.n_new[0] + step.n_new[1];
    const Rows q = random_rows(numbers, n, which.n_kv_heads * which.heads_per_kv, which.head_dim);
    const Rows keys = random_rows(numbers, n, which.n_kv_heads, which.head_dim);
    const Rows values = random_rows(numbers, n, which.n_kv_heads, which.head_dim);
    const LayerRows out = device.step(step, q, keys, values);
    expect_equal_outputs(which, name, step, listing, q, keys, values, out);
    if (HasFatalFailure()) return;
    for (int s = 0; s < 2; ++s) {
      const int begin = s * step.n_new[0];
      for (int kv = 0; kv < which.n_kv_heads; ++kv) {
        const std::vector<Row> k = column(keys, begin, step.n_new[s], kv);
        listing[s * which.n_kv_heads + kv].step(k, k, column(values, begin, step.n_new[s], kv), 1.0F);
      }
    }
    ASSERT_EQ(device.cache.allocated_bytes(), device.cache.memory().allocated_bytes());
  }
  expect_equal_cache(which, device, listing);
  const bool forgets = which.sliding_window > 0 && which.sliding_window < device.cache.n_tokens(device.ids[0]);
  EXPECT_EQ(device.cache.memory().dropped_bytes > 0, forgets);
}

constexpr Case kCases[] = {
    {"f16", 64, 1, 1},
    {"f16:sinks=5", 128, 2, 3},
    {"kivi2", 64, 3, 3},
    {"kivi2", 128, 1, 8},
    {"kivi4", 64, 2, 7},
    {"kivi4:sinks=4:residual=32", 128, 2, 4},
    {"kivi2:sinks=17:residual=64", 256, 1, 5},
    {"kivi2:group-size=64:residual=64", 64, 1, 2},
    {"kivi2:group-size=128", 64, 1, 6},
    {"kivi2:group-size=16:residual=16", 96, 2, 1},
    {"kivi2:residual=0", 64, 1, 1},
    {"kivi2:key-bits=4:sinks=1", 64, 1, 4},
    {"kivi2:value-bits=8", 64, 1, 1},
    {"kivi2:key-bits=8:value-bits=4:group-size=16", 80, 1, 3},
    {"kivi2:key-bits=16", 64, 1, 2},
    {"kivi2:value-bits=16:sinks=3", 64, 1, 2},
    {"kivi2:key-bits=3:value-bits=3", 96, 1, 2},
    {"kivi-s", 64, 2, 4},
    {"kivi-m", 128, 1, 8},
    {"kivi-l", 256, 1, 2},
    {"kivi-l:group-size=32:residual=32", 96, 2, 1},
    {"kivi-s:key-bits=8:value-bits=8:group-size=64", 64, 1, 1},
    {"kivi-s:key-bits=16", 64, 1, 2},
    {"kivi-s:value-bits=16", 64, 1, 2},
    // Windows of one token, of less than R, of R, of no multiple of anything, longer than every sequence; scores
    // capped.
    {"f16", 64, 1, 2, 1},
    {"f16:sinks=5", 64, 2, 3, 77, 20.0F},
    {"f16:sinks=20", 64, 1, 1, 16},
    {"f16", 128, 1, 1, 900},
    {"kivi2", 64, 1, 3, 1},
    {"kivi2", 64, 2, 2, 33},
    {"kivi2", 128, 1, 4, 128, 30.0F},
    {"kivi2", 64, 1, 1, 200},
    {"kivi2", 64, 1, 1, 900, 5.0F},
    {"kivi4:sinks=4", 64, 1, 2, 129},
    {"kivi4:sinks=20:residual=32", 96, 1, 8, 50},
    {"kivi2:residual=256", 64, 1, 1, 150},
    {"kivi2:group-size=128:residual=128", 64, 1, 5, 255},
    {"kivi2:residual=0", 64, 1, 1, 257},
    {"kivi2:key-bits=16:sinks=3", 64, 1, 2, 100},
    {"kivi4:value-bits=16", 64, 1, 2, 100},
    {"kivi-s", 128, 1, 4, 200},
    {"kivi-l", 64, 2, 2, 33},
};

std::string case_name(const testing::TestParamInfo<std::tuple<std::string, Case>>& info) {
  const auto& [device, which] = info.param;
  std::string name = device + "_" + which.kv + "_d" + std::to_string(which.head_dim) + "_h" +
                     std::to_string(which.n_kv_heads * which.heads_per_kv) + "_kv" + std::to_string(which.n_kv_heads) +
                     (which.sliding_window > 0 ? "_w" + std::to_string(which.sliding_window) : "");
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(EveryDevice, KvParity,
                         testing::Combine(testing::ValuesIn(host_devices()), testing::ValuesIn(kCases)), case_name);

// A row's result must depend neither on what else is in the batch nor on the number of threads.
TEST(KvBatchInvariance, DecodingAloneEqualsDecodingInABatch) {
  const Case which{"kivi2", 64, 2, 3, 300};
  for (const std::string& name : host_devices()) {
    Device together(name, which, 2);
    Device apart(name, which, 1);
    Numbers numbers(11);
    for (const Step& step : {Step{{700, 90}}, Step{{1, 1}}, Step{{1, 5}}, Step{{1, 1}}}) {
      const int n = step.n_new[0] + step.n_new[1];
      const Rows q = random_rows(numbers, n, 6, 64);
      const Rows keys = random_rows(numbers, n, 2, 64);
      const Rows values = random_rows(numbers, n, 2, 64);
      const LayerRows wanted = together.step(step, q, keys, values);
      LayerRows got;
      for (int s = 0; s < 2; ++s) {
        const auto part = [&](const Rows& rows) {
          return s == 0 ? Rows(rows.begin(), rows.begin() + step.n_new[0])
                        : Rows(rows.begin() + step.n_new[0], rows.end());
        };
        const StepSequence alone[] = {{apart.ids[s], step.n_new[s]}};
        const LayerRows out = apart.run(alone, part(q), part(keys), part(values));
        for (int layer = 0; layer < 2; ++layer) {
          got[layer].insert(got[layer].end(), out[layer].begin(), out[layer].end());
        }
      }
      ASSERT_EQ(wanted, got) << name;
    }
  }
}

}  // namespace
}  // namespace kivi
