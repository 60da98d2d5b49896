#include "eval/attention_bench.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "backend/fake_device.h"
#include "engine/tiny_session.h"
#include "eval/read_bandwidth.h"

namespace kivi {
namespace {

AttentionBenchOptions tiny_options() {
  return {.kv = {small_kivi2(), parse_kv_config("f16")},
          .shapes = {{3, 70, 4, 2, 32}, {1, 40, 2, 2, 32}},
          .ragged = true,
          .stores = true,
          .sample_seconds = 1e-6,
          .n_samples = 1,
          .cold_bytes = 50'000,
          .read_bytes = 4'000};
}

// Counted token by token, in bits.
int64_t bytes_of(const KvConfig& config, const AttentionShape& shape, int64_t n) {
  int64_t bits = 0;
  const auto add_side = [&](const format::WindowPolicy& policy, int bits_each) {
    for (int64_t t = 0; t <= n; ++t) {  // the new one too
      const bool is_packed = t >= policy.sinks && t < policy.window_begin(n);
      const int64_t params = is_packed ? int64_t{2} * 16 * shape.head_dim / config.group_size : 0;
      bits += shape.kv_heads * (shape.head_dim * (is_packed ? bits_each : 16) + params);
    }
  };
  add_side(config.key_policy(), config.key_bits);
  add_side(config.value_policy(), config.value_bits);
  return bits / 8;
}

TEST(AttentionBench, CountsTheBytesThatAreRead) {
  const AttentionShape shape{1, 0, 8, 2, 64};
  for (const char* kv : {"f16", "kivi2", "kivi4:residual=32:sinks=5", "kivi2:key-bits=16", "kivi2:value-bits=8"}) {
    const KvConfig config = parse_kv_config(kv);
    for (const int64_t n : {0, 1, 31, 33, 127, 128, 129, 300, 1000}) {
      EXPECT_EQ(attend_bytes(config, shape, {{n}}), bytes_of(config, shape, n)) << kv << ", " << n;
    }
    EXPECT_EQ(attend_bytes(config, shape, {{7, 200}}), bytes_of(config, shape, 7) + bytes_of(config, shape, 200));
  }
  // Of 4096 tokens all keys are packed and all values but 128, at 3 bits; the rest and the new token have 16.
  const AttentionShape large{64, 4096, 32, 32, 128};
  const std::vector<int64_t> lengths(64, 4096);
  EXPECT_EQ(attend_bytes(parse_kv_config("kivi2"), large, lengths),
            int64_t{64} * 32 * 128 * ((4096 + 3968) * 3 + 130 * 16) / 8);
}

TEST(AttentionBench, ShapesAreThoseOfTheTable) {
  ASSERT_EQ(attention_shapes().size(), 8U);
  EXPECT_EQ(to_string(attention_shapes()[6]), "64x4096x32x8x128");
  for (const AttentionShape& shape : attention_shapes()) EXPECT_EQ(parse_attention_shape(to_string(shape)), shape);
  for (const char* text : {"", "1x2x3x4", "1x2x4x2x64x1", "1x2x3x2x64", "0x2x2x2x64", "ax2x2x2x64", "1x2x2x2x64 "}) {
    EXPECT_THROW(parse_attention_shape(text), Error) << text;
  }
}

void expect_results(const AttentionReport& report, const AttentionBenchOptions& options) {
  EXPECT_GT(report.read_bandwidth, 0);
  ASSERT_EQ(report.results.size(), 5U);  // one is ragged
  const std::vector<int64_t> equal(3, 70);
  for (const AttentionResult& r : report.results) {
    EXPECT_GT(r.microseconds, 0);
    EXPECT_GE(r.plan_microseconds, 0);
    EXPECT_EQ(r.n_layers, (options.cold_bytes + r.bytes - 1) / r.bytes);
    EXPECT_EQ(r.group_size, r.kv == "f16" ? 0 : 16);
  }
  EXPECT_EQ(report.results[0].bytes, attend_bytes(options.kv[0], options.shapes[0], equal));
  EXPECT_EQ(report.results[2].bytes, attend_bytes(options.kv[1], options.shapes[0], equal));
  EXPECT_TRUE(report.results[1].is_ragged);
  EXPECT_NE(report.results[1].bytes, report.results[0].bytes);
  EXPECT_EQ(report.results[4].shape, options.shapes[1]);
  ASSERT_EQ(report.stores.size(), 4U);
  for (const StoreResult& r : report.stores) {
    EXPECT_GT(r.microseconds, 0);
    EXPECT_GE(r.microseconds_longest, r.microseconds);
    EXPECT_EQ(r.n_steps, 16);
  }
}

TEST(AttentionBench, MeasuresOnAnyDevice) {
  for (const char* device : {"reference", "cpu"}) {
    const auto backend = make_backend({.device = device, .n_threads = 2});
    double last = 0;
    int n_told = 0;
    AttentionBenchOptions options = tiny_options();
    options.progress = [&](double part) { last = part; };
    options.on_result = [&](const AttentionResult&) { ++n_told; };
    const AttentionReport report = bench_attention(*backend, options);
    expect_results(report, options);
    EXPECT_EQ(last, 1.0);
    EXPECT_EQ(n_told, 5);
  }
}

// Activations have 16 bits; what is timed is recorded, and planned.
TEST(AttentionBench, MeasuresWhatADeviceRecords) {
  for (const DType activation : {DType::kF16, DType::kBF16}) {
    FakeDevice device({.activation = activation});
    const AttentionBenchOptions options = tiny_options();
    expect_results(bench_attention(device, options), options);
    EXPECT_EQ(device.counts().recordings, 1 + 2 * 5 + 4);
  }
}

TEST(AttentionBench, WritesTheKeysThatScriptsRead) {
  const AttentionResult result{.kv = "kivi2",
                               .group_size = 32,
                               .shape = {8, 100, 4, 2, 64},
                               .microseconds = 50,
                               .bytes = 1'000'000,
                               .read_bandwidth = 40e9};
  const auto json = to_json(AttentionReport{.read_bandwidth = 40e9, .results = {result}, .stores = {{}}});
  EXPECT_DOUBLE_EQ(json["read_bandwidth_gb_s"], 40);
  std::vector<std::string> keys;
  for (const auto& [key, value] : json["results"][0].items()) keys.push_back(key);
  ASSERT_GE(keys.size(), 11U);
  keys.resize(11);
  EXPECT_EQ(keys, (std::vector<std::string>{"kv", "group_size", "batch", "tokens", "q_heads", "kv_heads", "head_dim",
                                            "microseconds", "bytes", "gb_s", "fraction_of_read_bandwidth"}));
  EXPECT_DOUBLE_EQ(json["results"][0]["gb_s"], 20);
  EXPECT_DOUBLE_EQ(json["results"][0]["fraction_of_read_bandwidth"], 0.5);
  EXPECT_EQ(json["stores"].size(), 1U);
}

TEST(AttentionBench, NoRoomIsAnErrorThatNamesTheShape) {
  FakeDevice device({.memory_bytes = 3'000'000});
  AttentionBenchOptions options = tiny_options();
  options.shapes = {{3, 7000, 4, 2, 32}};
  try {
    bench_attention(device, options);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_NE(std::string(error.what()).find("3x7000x4x2x32"), std::string::npos) << error.what();
  }
}

TEST(ReadBandwidth, FailsWhereNotAllWasRead) {
  struct Lazy : FakeDevice {
    void sum_words(const SumWordsArgs& args) override {
      AnyView half = args.x;
      half.shape[0] /= 2;
      FakeDevice::sum_words({half, args.out});
    }
  } lazy;
  EXPECT_THROW(measure_read_bandwidth(lazy, 4000), Error);
  FakeDevice device;
  EXPECT_GT(measure_read_bandwidth(device, 4000), 0);
}

}  // namespace
}  // namespace kivi
