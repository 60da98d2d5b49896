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
    TinySession other(std::make_unique<FakeDevice>(FakeDeviceOptions{.records = records}));
    Engine engine(*other.backend, other.decoder,
                  {.kv = small_kivi2(), .capacity = {.max_tokens = 80, .max_sequences = 9}, .max_step_tokens = 40});
    for (uint32_t i = 0; i < 20; ++i) engine.submit(request(1 + i * 3 % 50, 1 + i * 7 % 30, i));
    Request sampled = request(6, 12, 7);
    sampled.sampling = {.temperature = 0.8, .seed = 3};
    engine.submit(sampled);
    outcomes.push_back(run(engine));
    const auto& counts = dynamic_cast<FakeDevice&>(*other.backend).counts();
    EXPECT_EQ(counts.replays > 20, records);
    EXPECT_LE(counts.recordings, 2 * 5);  // batches of 1, 2, 4, 8 and 9, with and without argmax
  }
  for (const auto& [id, outcome] : outcomes[0]) EXPECT_EQ(outcome.tokens, outcomes[1][id].tokens) << id;
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
