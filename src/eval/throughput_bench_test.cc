#include "eval/throughput_bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "backend/fake_device.h"
#include "core/error.h"
#include "engine/tiny_session.h"

namespace kivi {
namespace {

TEST(ThroughputBench, ServesAllRequestsUnderEveryConfiguration) {
  TinySession session;
  const KvShape shape = session.decoder.kv_shape();
  double last = 0;
  int n_results = 0;
  const ThroughputOptions options{.kv = {parse_kv_config("f16"), small_kivi2()},
                                  .n_requests = 6,
                                  .n_prompt = 40,
                                  .n_output = 9,
                                  .max_sequences = 4,
                                  .weight_bytes = 1000,
                                  .progress = [&](double part) { last = part; },
                                  .on_result = [&](const ThroughputResult&) { ++n_results; }};
  const auto results = bench_throughput(*session.backend, session.decoder, options);
  ASSERT_EQ(results.size(), 2U);
  EXPECT_EQ(n_results, 2);
  EXPECT_NEAR(last, 1.0, 1e-12);
  for (size_t i = 0; i < results.size(); ++i) {
    const ThroughputResult& r = results[i];
    EXPECT_EQ(r.kv, options.kv[i].name);
    EXPECT_GT(r.seconds, 0);
    EXPECT_NEAR(r.output_tokens_per_s * r.seconds, 6 * 9, 1e-6);
    EXPECT_GT(r.decode_tokens_per_s, 0);
    EXPECT_GT(r.prefill_tokens_per_s, 0);
    EXPECT_EQ(r.max_running, 4);
    EXPECT_EQ(r.preemptions, 0);
    EXPECT_EQ(r.steps, 2 * 9);  // four requests, then two
    EXPECT_GE(r.step_ms_p99, r.step_ms_p50);
    EXPECT_GE(r.kv_capacity_tokens, 4 * 49);
    EXPECT_LE(r.peak_kv_bytes, r.kv_bytes);
    EXPECT_GE(r.peak_kv_bytes, 4 * memory_of(shape, options.kv[i], 48).allocated_bytes());
    EXPECT_EQ(r.peak_memory_bytes, 1000 + session.decoder.activation_bytes() + r.peak_kv_bytes);
  }
  const auto json = to_json(std::span<const ThroughputResult>(results));
  for (const char* key :
       {"kv", "requests", "prompt", "output", "seconds", "output_tokens_per_s", "decode_only_tokens_per_s",
        "peak_memory_bytes", "weight_bytes", "kv_capacity_tokens", "max_running", "preemptions"}) {
    EXPECT_TRUE(json[1].contains(key)) << key;
  }
}

TEST(ThroughputBench, DecodesAloneWithoutPrompts) {
  TinySession session;
  const auto results =
      bench_throughput(*session.backend, session.decoder,
                       {.kv = {small_kivi2()}, .n_requests = 3, .n_prompt = 100, .n_output = 5, .decode_only = true});
  EXPECT_EQ(results[0].prefill_tokens_per_s, 0);
  EXPECT_EQ(results[0].steps, 5);
  EXPECT_EQ(results[0].max_running, 3);
}

TEST(ThroughputBench, OnADeviceCountsWhatIsNotFree) {
  constexpr size_t kMemory = 16 << 20;
  TinySession session(std::make_unique<FakeDevice>(FakeDeviceOptions{.memory_bytes = kMemory}));
  const auto results = bench_throughput(*session.backend, session.decoder,
                                        {.kv = {parse_kv_config("f16")},
                                         .n_requests = 5,
                                         .n_prompt = 30,
                                         .n_output = 6,
                                         .free_bytes_at_start = kMemory,
                                         .weight_bytes = 1000});
  const ThroughputResult& r = results[0];
  EXPECT_GT(r.peak_memory_bytes, session.decoder.activation_bytes() + r.peak_kv_bytes);
  EXPECT_LT(r.peak_memory_bytes, session.decoder.activation_bytes() + r.peak_kv_bytes + 50000);  // norms and tables
}

TEST(ThroughputBench, SweepsBatchesUntilMemoryEnds) {
  TinySession session;
  const int64_t room = 30 * window_page_bytes(session.decoder.kv_shape());  // of which a sequence needs 6
  ThroughputOptions options{.kv = {parse_kv_config("f16")}, .n_requests = 64, .n_prompt = 40, .n_output = 5};
  options.engine.capacity.memory_bytes = room;
  std::vector<int64_t> batches;
  for (const ThroughputResult& r : sweep_batches(*session.backend, session.decoder, options)) {
    batches.push_back(r.max_running);
    EXPECT_EQ(r.n_requests, r.max_running);
    EXPECT_EQ(r.kv_capacity_tokens, 5 * 45);  // though the cache has only room for the batch
  }
  EXPECT_EQ(batches, (std::vector<int64_t>{1, 2, 4, 5}));
  options.n_requests = 3;
  EXPECT_EQ(sweep_batches(*session.backend, session.decoder, options).size(), 3U);
  options.engine.capacity.memory_bytes = 1000;
  EXPECT_THROW(sweep_batches(*session.backend, session.decoder, options), Error);
}

TEST(ThroughputBench, ASweepComparesTheMemoryOfItsCaches) {
  TinySession session;
  const KvConfig f16 = parse_kv_config("f16");
  const KvShape shape = session.decoder.kv_shape();
  ThroughputOptions options{.kv = {f16, small_kivi2()}, .n_requests = 64, .n_prompt = 310, .n_output = 2};
  options.engine.capacity.memory_bytes = 3 * memory_of(shape, f16, 312).allocated_bytes();
  options.weight_bytes = 1000;
  const auto sweep = sweep_batches(*session.backend, session.decoder, options);
  const auto rows = compare_memory(sweep);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].largest_batch, 3);
  EXPECT_EQ(rows[0].kv_capacity_tokens, 3 * 312);
  EXPECT_EQ(rows[0].peak_memory_ratio, 1.0);
  // Three packed pages, a 16-bit page of keys and one of values.
  const KvPages each = most_pages_of(shape, small_kivi2(), 312);
  EXPECT_EQ(each, (KvPages{3, 2}));
  EXPECT_EQ(rows[1].largest_batch, sequences_that_fit(shape, small_kivi2(), 312, options.engine.capacity.memory_bytes));
  EXPECT_GT(rows[1].batch_ratio, 2.5);
  EXPECT_NEAR(rows[1].capacity_ratio, rows[1].batch_ratio, 0.3);
  const auto at_three = std::ranges::find_if(sweep, [](const auto& r) { return r.kv != "f16" && r.n_requests == 3; });
  ASSERT_NE(at_three, sweep.end());
  EXPECT_EQ(rows[1].peak_memory_bytes, at_three->peak_memory_bytes);
  EXPECT_EQ(rows[1].peak_memory_bytes,
            rows[0].peak_memory_bytes - options.engine.capacity.memory_bytes + at_three->peak_kv_bytes);
  EXPECT_GT(rows[1].peak_memory_ratio, 1.0);
  EXPECT_EQ(to_json(std::span<const MemoryComparison>(rows))[1]["kv_capacity_tokens"], rows[1].kv_capacity_tokens);
}

TEST(ThroughputBench, RefusesNonsenseAndWhatHasNoRoom) {
  TinySession session;
  ThroughputOptions options{.kv = {parse_kv_config("f16")}, .n_requests = 2, .n_prompt = 40, .n_output = 5};
  const auto bench = [&] { return bench_throughput(*session.backend, session.decoder, options); };
  options.n_output = 0;
  EXPECT_THROW(bench(), Error);
  options.n_output = 5;
  options.engine.capacity.memory_bytes = 4 * window_page_bytes(session.decoder.kv_shape());
  EXPECT_THROW(bench(), Error);
}

}  // namespace
}  // namespace kivi
