// The engine on devices that record and that have an end, and with many sequences.
#include <algorithm>
#include <chrono>

#include "backend/fake_device.h"
#include "backend/null_device.h"
#include "engine/engine_fixture.h"

namespace kivi {
namespace {

using EngineOnADevice = EngineTest;

TEST_F(EngineOnADevice, ADeviceThatRecordsAnswersTheSame) {
  // Requests come and go, so that batches have all sizes up to 9.
  std::vector<std::map<RequestId, Outcome>> outcomes;
  for (const bool records : {true, false}) {
    // Whose memory has an end, so that activations have all their room before the first step and nothing is recorded
    // again.
    TinySession other(std::make_unique<FakeDevice>(FakeDeviceOptions{.records = records, .memory_bytes = 8 << 20}));
    Engine engine(*other.backend, other.decoder,
                  {.kv = small_kivi2(), .capacity = {.max_tokens = 80, .max_sequences = 9}, .max_step_tokens = 40});
    for (uint32_t i = 0; i < 20; ++i) engine.submit(request(1 + i * 3 % 50, 1 + i * 7 % 30, i));
    Request sampled = request(6, 12, 7);
    sampled.sampling = {.temperature = 0.8, .seed = 3};
    engine.submit(sampled);
    outcomes.push_back(run(engine));
    const auto& counts = dynamic_cast<FakeDevice&>(*other.backend).counts();
    EXPECT_EQ(counts.replays > 20, records);
    EXPECT_EQ(counts.replays_ahead > 5, records);
    EXPECT_LE(counts.recordings, 2 * 5);  // batches of 1, 2, 4, 8 and 9, with and without argmax
  }
  for (const auto& [id, outcome] : outcomes[0]) EXPECT_EQ(outcome.tokens, outcomes[1][id].tokens) << id;
}

// Steps that are started before the tokens of those before them are known. Sequences end in them as they do otherwise:
// by a token that nobody knew, by their length, because somebody says so, or for want of pages.
TEST_F(EngineOnADevice, StepsThatRunAheadChangeNothing) {
  constexpr uint32_t kRequests = 8;
  const auto make_request = [&](uint32_t i) { return request(5 + i, i % 3 == 0 ? 12 : 30, i); };
  std::vector<TokenId> stops;
  {
    TinySession plain;
    for (uint32_t i = 0; i < kRequests; ++i) {
      stops.push_back(plain.continue_greedily(small_kivi2(), make_request(i).prompt, 10).back());
    }
  }
  for (const int64_t memory_bytes : {0, 40000}) {
    std::vector<std::map<RequestId, Outcome>> outcomes;
    std::vector<int64_t> preemptions;
    for (const bool records : {true, false}) {
      TinySession other(std::make_unique<FakeDevice>(FakeDeviceOptions{.records = records}));
      Engine engine(*other.backend, other.decoder,
                    {.kv = small_kivi2(),
                     .capacity = {.max_tokens = 80, .max_sequences = kRequests, .memory_bytes = memory_bytes},
                     .horizon = 0});
      engine.warm_up();
      for (uint32_t i = 0; i < kRequests; ++i) {
        Request next = make_request(i);
        if (i % 2 == 1) next.stop_ids = {stops[i]};
        engine.submit(std::move(next));
      }
      std::map<RequestId, Outcome> all;
      for (int step = 0; !engine.idle(); ++step) {
        if (step == 4) engine.cancel(2);
        for (const Event& event : engine.step()) take(event, all);
      }
      EXPECT_EQ(engine.cache().allocated_bytes(), 0);
      const int64_t n_ahead = dynamic_cast<FakeDevice&>(*other.backend).counts().replays_ahead;
      EXPECT_EQ(n_ahead, engine.stats().steps_ahead);
      EXPECT_EQ(n_ahead > 10, records);
      preemptions.push_back(engine.stats().preemptions);
      outcomes.push_back(std::move(all));
      // Nothing is left on its way: neither this engine nor another one of the decoder finds a step that nobody wants.
      Engine another(*other.backend, other.decoder, {.kv = small_kivi2(), .capacity = {.max_tokens = 80}});
      for (Engine* one : {&another, &engine}) {
        one->submit(make_request(1));
        EXPECT_EQ(run(*one).rbegin()->second.tokens.size(), 30U);
      }
    }
    EXPECT_EQ(preemptions[0] > 0, memory_bytes > 0);
    ASSERT_EQ(outcomes[0].size(), kRequests);
    for (const auto& [id, outcome] : outcomes[0]) {
      const Outcome& same = outcomes[1][id];
      if (memory_bytes > 0) continue;  // what is computed again may differ, and when is another matter
      const FinishReason otherwise = id % 2 == 1 ? FinishReason::kStop : FinishReason::kLength;
      EXPECT_EQ(outcome.finish.reason, id == 2 ? FinishReason::kCancelled : otherwise) << id;
      EXPECT_EQ(outcome.tokens, same.tokens) << id;
    }
  }
}

TEST_F(EngineOnADevice, TakesItsPartOfWhatIsFree) {
  const auto backend_of = [](size_t n_bytes) {
    return std::make_unique<FakeDevice>(FakeDeviceOptions{.memory_bytes = n_bytes});
  };
  TinySession other(backend_of(8 << 20));
  const size_t n_free = other.backend->free_bytes();
  const EngineOptions options{.kv = small_kivi2(),
                              .capacity = {.max_tokens = 4000, .max_sequences = 100},
                              .memory_fraction = 0.6,
                              .max_step_tokens = 500};
  {
    Engine engine(*other.backend, other.decoder, options);
    const auto pages = static_cast<size_t>(engine.cache().capacity_bytes());
    const auto activations = static_cast<size_t>(other.decoder.activation_bytes());
    EXPECT_GT(activations, size_t{500 * 64 * 4});
    EXPECT_LE(pages + activations, n_free * 6 / 10);
    EXPECT_GT(pages + activations, n_free * 58 / 100);
    EXPECT_LT(other.backend->free_bytes(), n_free - pages - activations);  // and the tables
    const size_t left = other.backend->free_bytes();
    for (uint32_t i = 0; i < 20; ++i) engine.submit(request(100, 8, i));
    EXPECT_EQ(run(engine).size(), 20U);
    EXPECT_EQ(other.backend->free_bytes(), left);  // nothing is allocated on the way
  }
  // A cache that needs less takes less.
  EngineOptions small = options;
  small.capacity = {.max_tokens = 100, .max_sequences = 2};
  EXPECT_LT(Engine(*other.backend, other.decoder, small).cache().capacity_bytes(), 100000);
  small.memory_fraction = 1e-3;
  TinySession third(backend_of(8 << 20));
  EXPECT_THROW(Engine(*third.backend, third.decoder, small), Error);
}

// A device whose error shows when the host waits for it.
class BreakingDevice : public FakeDevice {
 public:
  bool is_broken = false;
  void synchronize() override {
    if (is_broken) fail(ErrorCode::kInternal, "attend, or an operation before it: the GPU reports an error");
    FakeDevice::synchronize();
  }
};

TEST_F(EngineOnADevice, AnErrorOfTheDeviceEndsAllThatRunAndNamesThem) {
  TinySession other(std::make_unique<BreakingDevice>());
  Engine engine(*other.backend, other.decoder,
                {.kv = small_kivi2(), .capacity = {.max_tokens = 80, .max_sequences = 3}});
  for (uint32_t i = 0; i < 3; ++i) engine.submit(request(10 + i, 20, i));
  for (int i = 0; i < 5; ++i) engine.step();
  dynamic_cast<BreakingDevice&>(*other.backend).is_broken = true;
  const auto outcomes = run(engine);
  ASSERT_EQ(outcomes.size(), 3U);
  for (const auto& [id, outcome] : outcomes) {
    EXPECT_TRUE(outcome.tokens.empty());
    EXPECT_EQ(outcome.finish.reason, FinishReason::kFailed);
    const std::string what = outcome.finish.error.value().what();
    for (const std::string& part : {std::string("attend"), fmt::format("request {}, of {} tokens", id, 15 + id),
                                    std::string("3 sequences"), std::string("the GPU reports")}) {
      EXPECT_NE(what.find(part), std::string::npos) << what;
    }
  }
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.cache().allocated_bytes(), 0);
  dynamic_cast<BreakingDevice&>(*other.backend).is_broken = false;
  engine.submit(request(10, 5, 1));
  EXPECT_EQ(run(engine).rbegin()->second.tokens.size(), 5U);
}

TEST_F(EngineOnADevice, WhatHasNoRoomSaysWhatToDo) {
  constexpr size_t kMemory = 8 << 20;
  TinySession other(std::make_unique<FakeDevice>(FakeDeviceOptions{.memory_bytes = kMemory}));
  const auto message = [&](const EngineOptions& options) -> std::string {
    try {
      Engine engine(*other.backend, other.decoder, options);
      return refusal(engine, request(900, 50, 1)).what();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
      return error.what();
    }
  };
  const KvCapacity capacity{.max_tokens = 1000, .max_sequences = 4};
  const EngineOptions options{.kv = parse_kv_config("f16"), .capacity = capacity, .max_step_tokens = 1000};
  EngineOptions little = options;
  little.memory_fraction = 0.01;  // not even activations
  EXPECT_NE(message(little).find("raise --memory-fraction or lower --step-tokens"), std::string::npos);
  little = options;
  little.capacity.memory_bytes = 1000;  // not a page
  EXPECT_NE(message(little).find("--kv-memory"), std::string::npos);
  little.capacity.memory_bytes = 100000;  // not the request
  EXPECT_NE(message(little).find("950 tokens of prompt and output"), std::string::npos);
  little.capacity.memory_bytes = 2 * kMemory;  // more than there is
  little.capacity.max_tokens = 100000;
  EXPECT_NE(message(little).find("are free"), std::string::npos);
}

TEST_F(EngineOnADevice, RunsAThousandSequences) {
  TinySession other(make_backend({.device = "cpu", .n_threads = 2}));
  const KvConfig kv = small_kivi2();
  Engine engine(*other.backend, other.decoder, {.kv = kv, .capacity = {.max_tokens = 48, .max_sequences = 1024}});
  for (uint32_t i = 0; i < 1030; ++i) engine.submit(request(1 + i % 20, 4 + i % 16, i));
  auto outcomes = run(engine);
  EXPECT_EQ(outcomes.size(), 1030U);
  EXPECT_EQ(engine.stats().max_running, 1024);
  EXPECT_EQ(engine.stats().preemptions, 0);
  for (const uint32_t i : {0U, 511U, 1029U}) {
    const Request asked = request(1 + i % 20, 4 + i % 16, i);
    EXPECT_EQ(outcomes[i].tokens, other.continue_greedily(kv, asked.prompt, asked.max_new_tokens)) << i;
  }
}

// What a step of many sequences costs the host: scheduling, tables, inputs, events.
TEST_F(EngineOnADevice, AStepOf1024SequencesTakesTheHostLittleTime) {
  for (const char* kv : {"f16", "kivi2"}) {
    TinySession other(std::make_unique<NullDevice>());
    Engine engine(*other.backend, other.decoder,
                  {.kv = parse_kv_config(kv), .capacity = {.max_tokens = 499, .max_sequences = 1024}});
    for (uint32_t i = 0; i < 1024; ++i) engine.submit(request(1 + i % 161, 338, i));
    while (engine.stats().decode_tokens < 2048) engine.step();
    double best = 1.0;
    for (int i = 0; i < 150; ++i) {
      const auto start = std::chrono::steady_clock::now();
      engine.step();
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    EXPECT_EQ(engine.stats().max_running, 1024);
    RecordProperty(std::string(kv) + "_microseconds", static_cast<int>(1e6 * best));
    EXPECT_LT(best, 2e-3) << kv;
  }
}

}  // namespace
}  // namespace kivi
