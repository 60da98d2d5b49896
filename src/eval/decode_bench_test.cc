#include "eval/decode_bench.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "engine/tiny_session.h"

namespace kivi {
namespace {

TEST(DecodeBench, MeasuresEveryDepthAndConfiguration) {
  TinySession session;
  const std::vector<KvConfig> kv = {parse_kv_config("f16"), small_kivi2()};
  double last = 0;
  const auto progress = [&last](double part) { last = part; };
  // 300 tokens pass the model's context of 256.
  const auto results =
      bench_decode(*session.backend, session.decoder,
                   {.kv = kv, .depths = {0, 300}, .n_decode = 2, .repetitions = 2, .progress = progress});
  ASSERT_EQ(results.size(), 4U);
  for (size_t i = 0; i < results.size(); ++i) {
    const DecodeBenchResult& r = results[i];
    EXPECT_EQ(r.kv, kv[i % 2].name);
    EXPECT_EQ(r.depth, i < 2 ? 0 : 300);
    EXPECT_GT(r.decode_tokens_per_s, 0);
    EXPECT_GE(r.decode_tokens_per_s_best, r.decode_tokens_per_s);
    EXPECT_EQ(r.prefill_tokens_per_s > 0, r.depth > 0);
    const KvMemory expected = memory_of(session.decoder.kv_shape(), kv[i % 2], r.depth);
    EXPECT_EQ(r.kv_memory.allocated_bytes(), expected.allocated_bytes());
  }
  EXPECT_NEAR(last, 1.0, 1e-12);
  const auto json = to_json(std::span<const DecodeBenchResult>(results));
  for (const char* key : {"kv", "depth", "decode_tokens_per_s", "prefill_tokens_per_s", "kv_bytes"}) {
    EXPECT_TRUE(json[3].contains(key)) << key;
  }
}

TEST(DecodeBench, RefusesNonsense) {
  TinySession session;
  const std::vector<KvConfig> kv = {parse_kv_config("f16")};
  const auto bench = [&](const DecodeBenchOptions& options) {
    return bench_decode(*session.backend, session.decoder, options);
  };
  EXPECT_THROW(bench({.kv = kv, .depths = {-1}}), Error);
  EXPECT_THROW(bench({.kv = kv, .depths = {0}, .n_decode = 0}), Error);
  EXPECT_THROW(bench({.kv = kv, .depths = {0}, .repetitions = 0}), Error);
}

}  // namespace
}  // namespace kivi
