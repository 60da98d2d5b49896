#include "engine/engine.h"

#include <gtest/gtest.h>

#include "engine/engine_fixture.h"

namespace kivi {
namespace {

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
  for (uint32_t i = 0; i < 3; ++i) engine.submit(request(12, 9, i));
  EXPECT_EQ(engine.step().size(), 2U);
  EXPECT_EQ(engine.stats().prefill_tokens, 12 + 12);
  EXPECT_EQ(engine.step().size(), 3U);  // those that decode do not count
  EXPECT_EQ(run(engine).size(), 3U);
  EXPECT_EQ(engine.stats().prefill_tokens, 12 + 12 + 12);
  EXPECT_EQ(engine.stats().max_running, 3);
}

TEST_F(EngineTest, LongPromptsRunInChunksBesideOthers) {
  const KvConfig kv = parse_kv_config("f16");
  Engine engine = make_engine(kv, {.max_tokens = 128, .max_sequences = 4}, 25);
  const std::vector<Request> requests = {request(12, 20, 0), request(60, 5, 1), request(25, 5, 2)};
  for (const Request& asked : requests) engine.submit(asked);
  std::map<RequestId, Outcome> outcomes;
  // The first prompt leaves too little of a step to the second, whose chunks are 25, 25 and 10 whatever runs beside it;
  // the third fits a step and is never cut.
  for (const int64_t prefill : {12, 25, 25, 10, 25}) {
    const int64_t before = engine.stats().prefill_tokens;
    for (Event& event : engine.step()) outcomes[event.id].tokens.push_back(event.token.value());
    EXPECT_EQ(engine.stats().prefill_tokens - before, prefill);
  }
  EXPECT_EQ(engine.stats().decode_tokens, 4 + 1);
  for (auto& [id, outcome] : run(engine)) {
    outcomes[id].tokens.insert(outcomes[id].tokens.end(), outcome.tokens.begin(), outcome.tokens.end());
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto alone = session.continue_greedily(kv, requests[i].prompt, requests[i].max_new_tokens);
    EXPECT_EQ(outcomes[static_cast<RequestId>(i)].tokens, alone) << i;
  }
}

TEST_F(EngineTest, ChunksOfAPackedCacheAttendToWhatIsStored) {
  const KvConfig kv = small_kivi2();
  const Request asked = request(100, 6, 3);
  Engine engine = make_engine(kv, {.max_tokens = 128}, 40);
  engine.submit(asked);
  const std::vector<TokenId> chunked = run(engine)[0].tokens;
  // The same by hand.
  KvCache cache(*session.backend, session.decoder.kv_shape(), kv, {.max_tokens = 128});
  const SequenceId id = cache.create();
  std::vector<TokenId> wanted;
  std::vector<TokenId> input;
  const auto step = [&](std::span<const TokenId> tokens) {
    const StepSequence entry{.id = id, .n_new = static_cast<int32_t>(tokens.size())};
    const int32_t last_row = entry.n_new - 1;
    ASSERT_TRUE(cache.reserve({&entry, 1}));
    const auto output = session.decoder.step(cache, {.tokens = tokens, .argmax_rows = {&last_row, 1}});
    input.assign(output.argmax.begin(), output.argmax.end());
  };
  for (const auto& [first, n] : {std::pair{0, 40}, {40, 40}, {80, 20}}) step(std::span(asked.prompt).subspan(first, n));
  for (wanted = input; wanted.size() < 6; wanted.push_back(input.front())) step(std::vector(input));
  EXPECT_EQ(chunked, wanted);
}

TEST_F(EngineTest, GreedyAndSampledRequestsShareSteps) {
  const KvConfig kv = parse_kv_config("f16");
  std::vector<Request> requests = {request(12, 9, 0), request(5, 9, 1), request(7, 9, 2), request(9, 9, 3)};
  requests[1].sampling = {.temperature = 1.5, .seed = 7};
  requests[2].sampling = {.repetition_penalty = 1.3};  // greedy, but not the argmax
  std::vector<std::vector<TokenId>> alone;
  for (const Request& asked : requests) {
    Engine engine = make_engine(kv, {.max_tokens = 64});
    engine.submit(asked);
    alone.push_back(run(engine)[0].tokens);
  }
  Engine together = make_engine(kv, {.max_tokens = 64, .max_sequences = 4});
  for (const Request& asked : requests) together.submit(asked);
  auto outcomes = run(together);
  for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(outcomes[static_cast<RequestId>(i)].tokens, alone[i]) << i;
}

TEST_F(EngineTest, PreemptsTheYoungestWhenPagesRunOut) {
  const KvConfig kv = parse_kv_config("f16");
  // Keys and values of 16 tokens a page: room for 6 pages, 48 tokens in all. Three sequences start, as nobody looks
  // ahead, and two must give way.
  const int64_t room = 6 * window_page_bytes(session.decoder.kv_shape());
  Engine engine = make_engine(kv, {.max_tokens = 48, .max_sequences = 3, .memory_bytes = room}, 4096, 0);
  std::vector<Request> requests = {request(12, 30, 1), request(14, 30, 2), request(9, 30, 3)};
  for (const Request& asked : requests) engine.submit(asked);
  auto outcomes = run(engine);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(outcomes[static_cast<RequestId>(i)].tokens, session.continue_greedily(kv, requests[i].prompt, 30)) << i;
  }
  EXPECT_GE(engine.stats().preemptions, 2);
  EXPECT_EQ(engine.stats().max_running, 3);
}

TEST_F(EngineTest, ServesManyRequestsFromLittleMemory) {
  // Room for about four of the largest. Without looking ahead sequences get into each other's way, but all end.
  for (const char* preset : {"f16", "kivi2:group-size=16:residual=16"}) {
    const KvConfig kv = parse_kv_config(preset);
    int64_t preemptions[2] = {};
    for (const int64_t horizon : {0, 512}) {
      const int64_t room = 4 * memory_of(session.decoder.kv_shape(), kv, 90).allocated_bytes();
      Engine engine = make_engine(kv, {.max_tokens = 90, .max_sequences = 30, .memory_bytes = room}, 64, horizon);
      for (uint32_t i = 0; i < 24; ++i) engine.submit(request(1 + i * 13 % 40, 1 + i * 29 % 50, i));
      const auto outcomes = run(engine);
      for (uint32_t i = 0; i < 24; ++i) EXPECT_EQ(outcomes.at(i).tokens.size(), 1 + i * 29 % 50) << i;
      EXPECT_EQ(engine.cache().allocated_bytes(), 0);
      preemptions[horizon == 0 ? 0 : 1] = engine.stats().preemptions;
    }
    EXPECT_GT(preemptions[0], kv.is_packed() ? -1 : 4);  // packed pages are as large as these sequences
    EXPECT_LE(preemptions[1], 2) << preset;
  }
}

TEST_F(EngineTest, StartsWhatWillHaveRoom) {
  const KvConfig kv = parse_kv_config("f16");
  // Room for 12 pages. Each of the sequences needs 2 at first and 4 in the end.
  const int64_t room = 12 * window_page_bytes(session.decoder.kv_shape());
  Engine engine = make_engine(kv, {.max_tokens = 32, .max_sequences = 8, .memory_bytes = room});
  for (uint32_t i = 0; i < 8; ++i) engine.submit(request(4, 24, i));
  const auto outcomes = run(engine);
  for (const auto& [id, outcome] : outcomes) EXPECT_EQ(outcome.tokens.size(), 24U) << id;
  EXPECT_EQ(engine.stats().preemptions, 0);
  EXPECT_EQ(engine.stats().max_running, 3);
}

TEST_F(EngineTest, StartsAsManyAsFitToTheSlab) {
  const KvConfig kv = small_kivi2();
  const KvShape shape = session.decoder.kv_shape();
  // A token more, and each would need another page. The last token of an output is not stored.
  const KvPages each = most_pages_of(shape, kv, 143);
  ASSERT_EQ(each[packed_pages()] + 1, most_pages_of(shape, kv, 144)[packed_pages()]);
  const SlabLayout layout = slab_layout(shape, kv);
  const int64_t room = layout.n_slabs(5 * each) * layout.slab_bytes;
  Engine engine = make_engine(kv, {.max_tokens = 200, .max_sequences = 8, .memory_bytes = room});
  for (uint32_t i = 0; i < 8; ++i) engine.submit(request(100, 44, i));
  EXPECT_EQ(run(engine).size(), 8U);
  EXPECT_EQ(engine.stats().max_running, 5);
  EXPECT_EQ(engine.stats().preemptions, 0);
}

TEST_F(EngineTest, SkippedPromptsTakePagesAndNoTime) {
  const KvConfig kv = small_kivi2();
  Engine engine(*session.backend, session.decoder,
                {.kv = kv, .capacity = {.max_tokens = 100, .max_sequences = 3}, .skip_prompts = true});
  for (uint32_t i = 0; i < 3; ++i) engine.submit(request(50, 4, i));
  EXPECT_EQ(engine.step().size(), 3U);
  EXPECT_EQ(engine.cache().allocated_bytes(), 3 * memory_of(engine.cache().shape(), kv, 50).allocated_bytes());
  run(engine);
  EXPECT_EQ(engine.stats().prefill_tokens, 0);
  EXPECT_EQ(engine.stats().decode_tokens, 12);
}

TEST_F(EngineTest, RefusesOptionsThatMakeNoSense) {
  EXPECT_THROW(make_engine(small_kivi2(), {.max_tokens = 10}, 0), Error);
  EXPECT_THROW(make_engine(small_kivi2(), {.max_tokens = 10}, 10, -1), Error);
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
  std::swap(layer.qkv, layer.up);  // of another shape: the step fails half way
  engine.submit(request(10, 5, 1));
  engine.submit(request(7, 5, 2));
  for (const auto& [id, outcome] : run(engine)) {
    EXPECT_EQ(outcome.finish.reason, FinishReason::kFailed);
    EXPECT_EQ(outcome.finish.error.value().code(), ErrorCode::kInternal);
  }
  std::swap(layer.qkv, layer.up);
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
