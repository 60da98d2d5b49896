#include "eval/step_bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "backend/fake_device.h"
#include "core/error.h"
#include "engine/tiny_session.h"

namespace kivi {
namespace {

StepOptions quick(std::vector<KvConfig> kv) {
  return {.kv = std::move(kv), .batch = 5, .tokens = 60, .n_steps = 4, .n_samples = 1, .sample_seconds = 1e-4};
}

std::map<std::string, int64_t> calls_of(const StepResult& result) {
  std::map<std::string, int64_t> calls;
  for (const StepResult::Part& part : result.parts) calls[part.operation] = part.n_calls;
  return calls;
}

TEST(StepBench, TimesEveryOperationOfAStep) {
  for (const bool records : {true, false}) {
    TinySession session(std::make_unique<FakeDevice>(FakeDeviceOptions{.records = records}));
    const auto results = bench_step(*session.backend, session.decoder, quick({parse_kv_config("f16"), small_kivi2()}));
    ASSERT_EQ(results.size(), 2U);
    for (const StepResult& r : results) {
      // Two layers of four products, and the head.
      const std::map<std::string, int64_t> calls = {{"argmax", 1}, {"attend", 2},   {"embed", 1},
                                                    {"gate", 2},   {"linear", 9},   {"rope", 2},
                                                    {"norm", 5},   {"store_kv", 2}, {"plan_attend", 1}};
      EXPECT_EQ(calls_of(r), calls) << r.kv;
      EXPECT_EQ(r.n_launches, 25);
      EXPECT_NEAR(static_cast<double>(r.tokens), 60, 8);
      EXPECT_GT(r.step_microseconds, 0);
      EXPECT_GT(r.device_microseconds, 0);
      EXPECT_TRUE(std::ranges::is_sorted(r.parts, std::greater(), &StepResult::Part::microseconds));
      EXPECT_GT(r.parts.back().microseconds, 0);
    }
    const auto json = to_json(std::span<const StepResult>(results));
    EXPECT_EQ(json[1]["operations"].size(), 9U);
    EXPECT_EQ(json[1]["batch"], 5);
    for (const char* key : {"step_us", "device_us", "launch_us", "outside_us", "outside_share"}) {
      EXPECT_TRUE(json[1].contains(key)) << key;
    }
  }
}

TEST(StepBench, WhatLiesOutsideIsWhatIsNotOnTheDeviceAndTheLaunches) {
  const StepResult result{
      .kv = "f16", .step_microseconds = 1000, .device_microseconds = 950, .launch_microseconds = 0.5, .n_launches = 40};
  EXPECT_DOUBLE_EQ(result.outside_microseconds(), 50 + 20);
}

TEST(StepBench, RefusesNonsenseAndWhatHasNoRoom) {
  TinySession session;
  StepOptions options = quick({parse_kv_config("f16")});
  options.batch = 0;
  EXPECT_THROW(bench_step(*session.backend, session.decoder, options), Error);
  options.batch = 5;
  options.engine.capacity.memory_bytes = 30 * window_page_bytes(session.decoder.kv_shape());
  try {
    bench_step(*session.backend, session.decoder, options);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_NE(std::string(error.what()).find("--batch"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace kivi
