// Prompts that begin alike, and choices of one prompt: shared in the cache, and the same outputs as if they were not.
#include <gtest/gtest.h>

#include <tuple>

#include "backend/test_device.h"
#include "engine/engine_fixture.h"

namespace kivi {
namespace {

constexpr int64_t kStep = 128;

std::vector<TokenId> join(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<std::byte> sliding_model() {
  return TinyModel{.architecture = "gemma2", .context_length = 1024}
      .build()
      .set("gemma2.attention.sliding_window", 150)
      .build();
}

// Runs a model of its own on a device.
class Sharing {
 public:
  Sharing(const std::string& device, bool slides)
      : session_(make_backend({.device = device, .n_threads = 2}),
                 slides ? sliding_model() : TinyModel{.context_length = 1024}.build().build()) {}

  TinySession& session() { return session_; }
  Engine make_engine(const KvConfig& kv, bool reuses, int max_sequences = 8, int64_t memory_bytes = 0,
                     int64_t horizon = 512) {
    return Engine(*session_.backend, session_.decoder,
                  {.kv = kv,
                   .capacity = {.max_tokens = 640, .max_sequences = max_sequences, .memory_bytes = memory_bytes},
                   .max_step_tokens = kStep,
                   .horizon = horizon,
                   .reuse_prefixes = reuses});
  }

 private:
  TinySession session_;
};

struct Case {
  std::string device;
  bool slides = false;
  KvConfig kv{};

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.device << " " << c.kv.name << (c.slides ? " sliding" : "");
  }
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const TestDevice& device : test_devices()) {
    if (device.dtype || (device.name != "reference" && device.name.find("cpu:") == std::string::npos)) continue;
    for (const bool slides : {false, true}) {
      for (const KvConfig& preset : kv_presets()) {
        all.push_back({device.name, slides, preset});
        all.push_back({device.name, slides, parse_kv_config(preset.name + ":sinks=20")});
      }
      all.push_back({device.name, slides, small_kivi2()});
    }
  }
  return all;
}

class PrefixTest : public EngineTest, public testing::WithParamInterface<Case> {
 protected:
  // A chat's system prompt, questions about it, a question that is cut off elsewhere, and a next turn, in three waves.
  std::vector<std::vector<TokenId>> converse(Sharing& sharing, bool reuses, EngineStats& stats) {
    Engine engine = sharing.make_engine(GetParam().kv, reuses);
    const auto random = [&](int64_t n, uint32_t seed) { return sharing.session().random_tokens(n, seed); };
    const std::vector<TokenId> system = random(300, 1);
    const auto ask = [&](std::vector<TokenId> prompt, std::vector<int64_t> cuts, double temperature) {
      engine.submit({.prompt = std::move(prompt),
                     .max_new_tokens = 12,
                     .sampling = {.temperature = static_cast<float>(temperature), .seed = 3},
                     .cuts = std::move(cuts)});
    };
    std::map<RequestId, Outcome> all;
    const auto run_wave = [&] {
      all.merge(run(engine));
      EXPECT_EQ(engine.cache().allocated_bytes(), 0);
      EXPECT_EQ(engine.cache().memory().elements, 0);
      EXPECT_EQ(engine.cache().arena().bytes_held() > 0, reuses);
    };
    const std::vector<TokenId> first = join(system, random(43, 2));
    ask(first, {300, 340}, 0);
    run_wave();
    ask(join(system, random(17, 3)), {300}, 0);
    ask(join(system, random(150, 4)), {300}, 0.8);
    ask(join(system, random(9, 5)), {}, 0);
    run_wave();
    ask(join(join(first, all[0].tokens), random(40, 6)), {300, 340, 355}, 0);
    run_wave();
    stats = engine.stats();
    std::vector<std::vector<TokenId>> tokens;
    for (const auto& [id, outcome] : all) tokens.push_back(outcome.tokens);
    const std::vector<int64_t> n_reused = {0, 300, 300, 256, 340};
    for (size_t i = 0; i < n_reused.size(); ++i) {
      EXPECT_EQ(all[static_cast<RequestId>(i)].n_reused, reuses ? n_reused[i] : 0) << i;
    }
    return tokens;
  }
};

TEST_P(PrefixTest, OutputsAreThoseOfARunWithoutReuse) {
  Sharing sharing(GetParam().device, GetParam().slides);
  EngineStats without;
  EngineStats with;
  const auto wanted = converse(sharing, false, without);
  EXPECT_EQ(converse(sharing, true, with), wanted);
  EXPECT_EQ(with.prefix_hits, 0 + 300 + 300 + 256 + 340);
  EXPECT_EQ(with.prefix_queries, 343 + 317 + 450 + 309 + 395);
  EXPECT_EQ(without.prefix_queries, 0);
  EXPECT_EQ(with.prefill_tokens + with.decode_tokens,
            without.prefill_tokens + without.decode_tokens - with.prefix_hits);
}

TEST_P(PrefixTest, ChoicesOfAPromptShareIt) {
  Sharing sharing(GetParam().device, GetParam().slides);
  Request asked{.prompt = sharing.session().random_tokens(333, 1), .max_new_tokens = 20, .cuts = {200}};
  std::map<RequestId, std::vector<TokenId>> outputs[2];
  int64_t most_bytes[2] = {};
  for (const bool share : {false, true}) {
    Engine engine = sharing.make_engine(GetParam().kv, false);
    for (int64_t i = 0; i < 4; ++i) {
      asked.sampling = {.temperature = 0.9, .seed = static_cast<uint64_t>(i)};
      if (share && i > 0) asked.twin = 0;
      engine.submit(asked);
    }
    EXPECT_EQ(engine.n_waiting(), 4);
    while (!engine.idle()) {
      for (const Event& event : engine.step()) {
        if (event.token) outputs[share][event.id].push_back(*event.token);
      }
      ASSERT_EQ(engine.cache().allocated_bytes(), engine.cache().memory().allocated_bytes());
      most_bytes[share] = std::max(most_bytes[share], engine.cache().allocated_bytes());
    }
    EXPECT_EQ(engine.stats().prefill_tokens, share ? 333 : 4 * 333);
    EXPECT_EQ(engine.stats().max_running, 4);
    EXPECT_EQ(engine.cache().arena().bytes_held(), 0);
  }
  EXPECT_EQ(outputs[true], outputs[false]);
  EXPECT_LT(most_bytes[true], most_bytes[false]);
}

INSTANTIATE_TEST_SUITE_P(Caches, PrefixTest, testing::ValuesIn(cases()));

class PrefixesTest : public EngineTest {
 protected:
  Request asking(const std::vector<TokenId>& system, uint32_t seed, int64_t n_output = 4) {
    Request asked{.prompt = join(system, session.random_tokens(10, seed)), .max_new_tokens = n_output};
    asked.cuts = {std::ssize(system)};
    return asked;
  }
  Sharing sharing{"reference", false};
  KvConfig f16 = parse_kv_config("f16");
};

TEST_F(PrefixesTest, ThoseOfOtherCutsAreOthers) {
  Engine engine = sharing.make_engine(small_kivi2(), true);
  const std::vector<TokenId> system = session.random_tokens(100, 1);
  engine.submit(asking(system, 1));
  run(engine);
  Request other = asking(system, 2);
  other.cuts = {90};
  engine.submit(other);
  run(engine);
  EXPECT_EQ(engine.stats().prefix_hits, 0);
  other.cuts = {20, 100};  // too early to cut: a chunk is a quarter of a step at least
  engine.submit(other);
  run(engine);
  EXPECT_EQ(engine.stats().prefix_hits, 100);
}

TEST_F(PrefixesTest, APromptIsNeverReusedWhole) {
  Engine engine = sharing.make_engine(f16, true);
  const Request asked{.prompt = session.random_tokens(2 * kStep, 1), .max_new_tokens = 5};
  const RequestId first = engine.submit(asked);
  auto outcomes = run(engine);
  const RequestId again = engine.submit(asked);
  outcomes.merge(run(engine));
  EXPECT_EQ(outcomes[again].tokens, outcomes[first].tokens);
  EXPECT_EQ(outcomes[again].n_reused, kStep);
}

TEST_F(PrefixesTest, ScoresOfAPromptAreComputed) {
  Engine engine = sharing.make_engine(f16, true);
  const std::vector<TokenId> system = session.random_tokens(100, 1);
  engine.submit(asking(system, 1));
  run(engine);
  Request scored = asking(system, 1);
  scored.n_logprobs = 0;
  scored.scores_prompt = true;
  engine.submit(scored);
  size_t n_scores = 0;
  while (!engine.idle()) {
    for (const Event& event : engine.step()) n_scores += event.prompt_scores.size();
  }
  EXPECT_EQ(n_scores, 109U);
  EXPECT_EQ(engine.stats().prefix_hits, 0);
}

// Pages of prefixes are had back before anybody waits or is preempted; what is used stays longest.
TEST_F(PrefixesTest, PrefixesGiveWay) {
  for (const KvConfig& kv : {f16, small_kivi2()}) {
    const KvShape shape = sharing.session().decoder.kv_shape();
    const SlabLayout layout = slab_layout(shape, kv);
    const int64_t room = layout.n_slabs(2 * most_pages_of(shape, kv, 320)) * layout.slab_bytes;
    Engine engine = sharing.make_engine(kv, true, 2, room);
    const std::vector<TokenId> system = session.random_tokens(100, 1000);
    for (uint32_t i = 0; i < 30; ++i) {
      engine.submit(asking(session.random_tokens(100, i), i));
      engine.submit(asking(system, i));
      for (const auto& [id, outcome] : run(engine)) EXPECT_EQ(outcome.tokens.size(), 4U);
    }
    EXPECT_EQ(engine.stats().prefix_hits, 29 * 100) << kv.name;
    // One that needs all there is.
    const RequestId large = engine.submit({.prompt = session.random_tokens(500, 5), .max_new_tokens = 20});
    EXPECT_EQ(run(engine)[large].tokens.size(), 20U);
    EXPECT_EQ(engine.stats().preemptions, 0);
    EXPECT_EQ(engine.cache().allocated_bytes(), 0);
  }
}

TEST_F(PrefixesTest, SharedPagesMakeRoomForMore) {
  const KvShape shape = sharing.session().decoder.kv_shape();
  const SlabLayout layout = slab_layout(shape, f16);
  const int64_t room = layout.n_slabs(3 * most_pages_of(shape, f16, 450)) * layout.slab_bytes;
  const std::vector<TokenId> system = session.random_tokens(400, 1);
  std::map<bool, int64_t> max_running;
  for (const bool reuses : {false, true}) {
    Engine engine = sharing.make_engine(f16, reuses, 12, room);
    engine.submit(asking(system, 0, 2));
    run(engine);
    for (uint32_t i = 0; i < 12; ++i) engine.submit(asking(system, i, 30));
    for (const auto& [id, outcome] : run(engine)) EXPECT_EQ(outcome.tokens.size(), 30U) << id;
    EXPECT_EQ(engine.stats().preemptions, 0);
    max_running[reuses] = engine.stats().max_running;
  }
  EXPECT_EQ(max_running[false], 3);
  EXPECT_GE(max_running[true], 6);
}

TEST_F(PrefixesTest, PreemptedSequencesGoOnFromTheirPrefix) {
  const KvShape shape = sharing.session().decoder.kv_shape();
  const SlabLayout layout = slab_layout(shape, f16);
  const int64_t room = layout.n_slabs(2 * most_pages_of(shape, f16, 200)) * layout.slab_bytes;
  const std::vector<TokenId> system = session.random_tokens(64, 1);
  std::map<bool, std::map<RequestId, Outcome>> outcomes;
  for (const bool reuses : {false, true}) {
    Engine engine = sharing.make_engine(f16, reuses, 6, room, 0);  // nobody looks ahead
    for (uint32_t i = 0; i < 6; ++i) engine.submit(asking(system, i, 90));
    outcomes[reuses] = run(engine);
    EXPECT_GT(engine.stats().preemptions, 0);
    EXPECT_EQ(engine.cache().allocated_bytes(), 0);
  }
  for (const auto& [id, outcome] : outcomes[false]) EXPECT_EQ(outcomes[true][id].tokens, outcome.tokens) << id;
}

class TwinsTest : public PrefixesTest {
 protected:
  // A request and three that share its prompt of three chunks.
  void submit_four(Engine& engine) {
    Request asked{.prompt = session.random_tokens(300, 1), .max_new_tokens = 5};
    engine.submit(asked);
    asked.twin = 0;
    for (int i = 0; i < 3; ++i) engine.submit(asked);
  }
};

TEST_F(TwinsTest, TheyWaitForNobodyWhoEnds) {
  Engine engine = sharing.make_engine(small_kivi2(), false);
  submit_four(engine);
  engine.step();
  engine.cancel(2);  // one that waits
  EXPECT_EQ(engine.n_waiting(), 2);
  engine.cancel(0);  // whom they wait for
  const auto outcomes = run(engine);
  for (const RequestId id : {0, 2}) EXPECT_EQ(outcomes.at(id).finish.reason, FinishReason::kCancelled);
  for (const RequestId id : {1, 3}) EXPECT_EQ(outcomes.at(id).tokens.size(), 5U) << id;
  EXPECT_EQ(engine.cache().arena().bytes_held(), 0);
}

TEST_F(TwinsTest, ThoseWithoutAPlaceComeLater) {
  for (const bool reuses : {false, true}) {
    Engine engine = sharing.make_engine(small_kivi2(), reuses, 2);
    submit_four(engine);
    const auto outcomes = run(engine);
    for (const RequestId id : {1, 2, 3}) EXPECT_EQ(outcomes.at(id).tokens, outcomes.at(0).tokens) << id;
    EXPECT_EQ(engine.stats().prefill_tokens, reuses ? 300 + 2 * (300 - 2 * kStep) : 3 * 300);
    EXPECT_EQ(engine.stats().prefix_hits, reuses ? 300 + 2 * 2 * kStep : 0);
  }
}

TEST_F(TwinsTest, OfOtherPromptsOrTooLateAreRequestsLikeAnyOther) {
  Engine engine = sharing.make_engine(small_kivi2(), false);
  const RequestId first = engine.submit({.prompt = session.random_tokens(50, 1), .max_new_tokens = 3});
  engine.submit({.prompt = session.random_tokens(50, 2), .max_new_tokens = 3, .twin = first});
  EXPECT_EQ(engine.step().size(), 2U);
  engine.submit({.prompt = session.random_tokens(50, 1), .max_new_tokens = 3, .twin = first});
  engine.submit({.prompt = session.random_tokens(50, 1), .max_new_tokens = 3, .twin = 77});
  EXPECT_EQ(run(engine).size(), 4U);
  EXPECT_EQ(engine.stats().prefill_tokens, 200);
}

}  // namespace
}  // namespace kivi
