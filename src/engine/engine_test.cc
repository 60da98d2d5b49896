#include "engine/engine.h"

#include <gtest/gtest.h>

#include <map>

#include "engine/tiny_session.h"

namespace kivi {
namespace {

struct Outcome {
  std::vector<TokenId> tokens;
  Finish finish;
};

class EngineTest : public ::testing::Test {
 protected:
  Engine make_engine(const KvConfig& kv, const KvCapacity& capacity, int64_t max_step_tokens = 4096) {
    return Engine(*session.backend, session.decoder,
                  {.kv = kv, .capacity = capacity, .max_step_tokens = max_step_tokens});
  }
  Request request(int64_t n_prompt, int64_t n_output, uint32_t seed) const {
    return {.prompt = session.random_tokens(n_prompt, seed), .max_new_tokens = n_output};
  }
  static std::map<RequestId, Outcome> run(Engine& engine) {
    std::map<RequestId, Outcome> outcomes;
    for (int steps = 0; !engine.idle(); ++steps) {
      if (steps > 10000) ADD_FAILURE() << "the engine does not come to an end";
      if (steps > 10000) break;
      for (Event& event : engine.step()) {
        if (event.token) outcomes[event.id].tokens.push_back(*event.token);
        if (event.finish) outcomes[event.id].finish = std::move(*event.finish);
      }
    }
    return outcomes;
  }
  // The output of a request that is refused.
  Error refusal(Engine& engine, Request bad) {
    const RequestId id = engine.submit(std::move(bad));
    const Outcome outcome = run(engine)[id];
    EXPECT_EQ(outcome.finish.reason, FinishReason::kFailed);
    EXPECT_TRUE(outcome.tokens.empty());
    return outcome.finish.error.value_or(Error(ErrorCode::kInternal, "not refused"));
  }

  TinySession session;
};

TEST_F(EngineTest, AnswersAsTheDecoderDoes) {
  for (const KvConfig& kv : {parse_kv_config("f16"), small_kivi2()}) {
    Engine engine = make_engine(kv, {.max_tokens = 100});
    const Request asked = request(37, 20, 1);
    engine.submit(asked);
    const Outcome outcome = run(engine)[0];
    EXPECT_EQ(outcome.tokens, session.continue_greedily(kv, asked.prompt, 20));
    EXPECT_EQ(outcome.finish.reason, FinishReason::kLength);
    EXPECT_EQ(outcome.finish.n_prompt, 37);
    EXPECT_EQ(outcome.finish.n_output, 20);
    EXPECT_EQ(outcome.finish.kv.elements, (37 + 19) * session.decoder.kv_shape().elements_per_token());
    EXPECT_EQ(engine.cache().allocated_bytes(), 0);
  }
}

TEST_F(EngineTest, BatchMatesChangeNothing) {
  const KvConfig kv = small_kivi2();
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 7; ++i) requests.push_back(request(1 + 11 * i, 5 + 3 * i, i));
  Engine together = make_engine(kv, {.max_tokens = 120, .max_sequences = 3});
  for (const Request& asked : requests) together.submit(asked);
  auto outcomes = run(together);
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto alone = session.continue_greedily(kv, requests[i].prompt, requests[i].max_new_tokens);
    EXPECT_EQ(outcomes[static_cast<RequestId>(i)].tokens, alone) << i;
  }
  EXPECT_EQ(together.stats().preemptions, 0);
}

TEST_F(EngineTest, CountsWhatItRuns) {
  Engine engine = make_engine(parse_kv_config("f16"), {.max_tokens = 64, .max_sequences = 2});
  engine.submit(request(10, 4, 1));
  engine.submit(request(1, 3, 2));
  run(engine);
  EXPECT_EQ(engine.stats().prefill_tokens, 11);
  EXPECT_EQ(engine.stats().decode_tokens, 3 + 2);
  EXPECT_GT(engine.stats().decode_tokens_per_s(), 0);
}

TEST_F(EngineTest, PromptsShareAStepUpToItsLimit) {
  Engine engine = make_engine(parse_kv_config("f16"), {.max_tokens = 64, .max_sequences = 4}, 25);
  for (uint32_t i = 0; i < 2; ++i) engine.submit(request(12, 9, i));
  engine.submit(request(40, 9, 2));  // alone more than a step's limit
  EXPECT_EQ(engine.step().size(), 2U);
  EXPECT_EQ(engine.step().size(), 2U);  // must wait while others run
  EXPECT_EQ(run(engine).size(), 3U);
  EXPECT_EQ(engine.stats().prefill_tokens, 12 + 12 + 40);
}

TEST_F(EngineTest, PreemptsTheYoungestWhenPagesRunOut) {
  const KvConfig kv = parse_kv_config("f16");
  // Keys and values of 16 tokens a page: room for 6 pages, 48 tokens in all. Three sequences start, two must wait.
  const int64_t room = 6 * window_page_bytes(session.decoder.kv_shape());
  Engine engine = make_engine(kv, {.max_tokens = 48, .max_sequences = 3, .memory_bytes = room});
  std::vector<Request> requests = {request(12, 30, 1), request(14, 30, 2), request(9, 30, 3)};
  for (const Request& asked : requests) engine.submit(asked);
  auto outcomes = run(engine);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(outcomes[static_cast<RequestId>(i)].tokens, session.continue_greedily(kv, requests[i].prompt, 30)) << i;
  }
  EXPECT_GE(engine.stats().preemptions, 1);
}

TEST_F(EngineTest, RefusesWhatCannotBeServed) {
  const int64_t room = 4 * window_page_bytes(session.decoder.kv_shape());
  Engine engine = make_engine(parse_kv_config("f16"), {.max_tokens = 100, .memory_bytes = room});
  EXPECT_EQ(refusal(engine, {}).code(), ErrorCode::kInvalidArgument);
  const Error too_long = refusal(engine, request(100, 1, 1));
  EXPECT_EQ(too_long.code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(std::string(too_long.what()).find("prompt of 100 tokens"), std::string::npos) << too_long.what();
  const Error too_big = refusal(engine, request(30, 30, 1));
  EXPECT_EQ(too_big.code(), ErrorCode::kOutOfMemory);
  EXPECT_NE(std::string(too_big.what()).find("60 tokens"), std::string::npos) << too_big.what();
  EXPECT_EQ(refusal(engine, {.prompt = {0, 50}, .max_new_tokens = 1}).code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal(engine, {.prompt = {1}, .max_new_tokens = 1, .sampling = {.top_p = 2}}).code(),
            ErrorCode::kInvalidArgument);
  // And goes on.
  engine.submit(request(10, 5, 1));
  EXPECT_EQ(run(engine).rbegin()->second.tokens.size(), 5U);
}

TEST_F(EngineTest, AFailedStepEndsItsRequestsAndNoMore) {
  Engine engine = make_engine(parse_kv_config("f16"), {.max_tokens = 64, .max_sequences = 2});
  LayerWeights& layer = session.weights.layers[1];
  std::swap(layer.qkv, layer.gate_up);  // of another shape: the step fails half way
  engine.submit(request(10, 5, 1));
  engine.submit(request(7, 5, 2));
  for (const auto& [id, outcome] : run(engine)) {
    EXPECT_EQ(outcome.finish.reason, FinishReason::kFailed);
    EXPECT_EQ(outcome.finish.error.value().code(), ErrorCode::kInternal);
  }
  std::swap(layer.qkv, layer.gate_up);
  const Request good = request(10, 5, 1);
  const RequestId id = engine.submit(good);
  EXPECT_EQ(run(engine)[id].tokens, session.continue_greedily(parse_kv_config("f16"), good.prompt, 5));
}

TEST_F(EngineTest, StopTokensEndTheOutput) {
  const KvConfig kv = parse_kv_config("f16");
  Request asked = request(10, 40, 4);
  const std::vector<TokenId> all = session.continue_greedily(kv, asked.prompt, 40);
  asked.stop_ids = {all[7]};
  const auto first = std::find(all.begin(), all.end(), all[7]);
  Engine engine = make_engine(kv, {.max_tokens = 100});
  engine.submit(asked);
  const Outcome outcome = run(engine)[0];
  EXPECT_EQ(outcome.tokens, std::vector<TokenId>(all.begin(), first));
  EXPECT_EQ(outcome.finish.reason, FinishReason::kStop);
}

TEST_F(EngineTest, StopsAtTheEndOfTheContext) {
  Engine engine = make_engine(parse_kv_config("f16"), {.max_tokens = 32});
  engine.submit(request(10, 0, 4));
  const Outcome outcome = run(engine)[0];
  EXPECT_EQ(outcome.tokens.size(), 22U);
  EXPECT_EQ(outcome.finish.reason, FinishReason::kLength);
}

TEST_F(EngineTest, CancelEndsARequest) {
  Engine engine = make_engine(parse_kv_config("f16"), {.max_tokens = 64});
  const RequestId running = engine.submit(request(10, 40, 4));
  const RequestId waiting = engine.submit(request(10, 40, 5));
  engine.step();
  engine.cancel(running);
  engine.cancel(waiting);
  const auto outcomes = run(engine);
  EXPECT_EQ(outcomes.at(running).finish.reason, FinishReason::kCancelled);
  EXPECT_EQ(outcomes.at(waiting).finish.reason, FinishReason::kCancelled);
  EXPECT_EQ(engine.cache().allocated_bytes(), 0);
}

TEST_F(EngineTest, ALaterTurnGoesOnFromTheKeptCache) {
  const KvConfig kv = small_kivi2();
  Engine engine = make_engine(kv, {.max_tokens = 200});
  Request first = request(40, 10, 1);
  first.keep_cached = true;
  engine.submit(first);
  std::vector<TokenId> conversation = first.prompt;
  const Outcome answer = run(engine)[0];
  conversation.insert(conversation.end(), answer.tokens.begin(), answer.tokens.end());
  const std::vector<TokenId> question = session.random_tokens(5, 9);
  conversation.insert(conversation.end(), question.begin(), question.end());

  const RequestId second = engine.submit({.prompt = conversation, .max_new_tokens = 4});
  EXPECT_EQ(run(engine)[second].tokens.size(), 4U);
  // The last token of the answer is not in the cache yet.
  EXPECT_EQ(engine.stats().prefill_tokens, 40 + 1 + 5);
  // A prompt that begins otherwise starts anew.
  conversation[3] = (conversation[3] + 1) % 50;
  engine.submit({.prompt = conversation, .max_new_tokens = 1});
  run(engine);
  EXPECT_EQ(engine.stats().prefill_tokens, 46 + 55);
  EXPECT_EQ(engine.cache().allocated_bytes(), 0);
}

TEST_F(EngineTest, KeptCachesGiveWay) {
  Engine engine = make_engine(parse_kv_config("f16"), {.max_tokens = 64, .max_sequences = 2});
  for (uint32_t i = 0; i < 5; ++i) {
    Request asked = request(10, 5, i);
    asked.keep_cached = true;
    const RequestId id = engine.submit(asked);
    EXPECT_EQ(run(engine)[id].tokens.size(), 5U);
  }
}

}  // namespace
}  // namespace kivi
