// What the engine tells of tokens beside the tokens, and what bends its choice.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/engine_fixture.h"

namespace kivi {
namespace {

struct Told {
  std::vector<TokenId> tokens;
  std::vector<ScoredToken> scores;
  std::vector<ScoredToken> prompt_scores;
  Finish finish;
};

class ScoresTest : public EngineTest {
 protected:
  std::map<RequestId, Told> tell(Engine& engine) {
    std::map<RequestId, Told> all;
    while (!engine.idle()) {
      for (Event& event : engine.step()) {
        Told& told = all[event.id];
        if (event.token) told.tokens.push_back(*event.token);
        if (event.score) told.scores.push_back(*event.score);
        std::ranges::move(event.prompt_scores, std::back_inserter(told.prompt_scores));
        if (event.finish) told.finish = std::move(*event.finish);
      }
    }
    return all;
  }
  // Scores of tokens[1], tokens[2] ... from one pass over all of them.
  std::vector<ScoredToken> scores_of(const KvConfig& kv, const std::vector<TokenId>& tokens, int64_t n_top) {
    KvCache cache(*session.backend, session.decoder.kv_shape(), kv, {.max_tokens = std::ssize(tokens)});
    const StepSequence entry{.id = cache.create(), .n_new = static_cast<int32_t>(tokens.size())};
    EXPECT_TRUE(cache.reserve({&entry, 1}));
    std::vector<int32_t> rows(tokens.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
    const auto logits = session.decoder.step(cache, {.tokens = tokens, .logit_rows = rows}).logits;
    std::vector<ScoredToken> scores;
    for (size_t i = 1; i < tokens.size(); ++i) {
      const auto row = logits[static_cast<int64_t>(i) - 1];
      scores.push_back(score_token({row.data, static_cast<size_t>(row.size())}, tokens[i], n_top));
    }
    return scores;
  }
  static void expect_equal(const std::vector<ScoredToken>& a, const std::vector<ScoredToken>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].token.id, b[i].token.id) << i;
      EXPECT_FLOAT_EQ(a[i].token.logprob, b[i].token.logprob) << i;
      ASSERT_EQ(a[i].top.size(), b[i].top.size()) << i;
      for (size_t j = 0; j < a[i].top.size(); ++j) EXPECT_EQ(a[i].top[j].id, b[i].top[j].id) << i << " " << j;
    }
  }
};

TEST_F(ScoresTest, ScoresPromptAndOutputAsOnePassDoes) {
  const KvConfig kv = parse_kv_config("f16");
  for (const int64_t max_step_tokens : {4096, 7}) {  // at once, and in chunks
    Engine engine = make_engine(kv, {.max_tokens = 64, .max_sequences = 2}, max_step_tokens);
    Request asked = request(30, 5, 1);
    asked.n_logprobs = 3;
    asked.scores_prompt = true;
    engine.submit(asked);
    engine.submit(request(4, 9, 2));  // asks for nothing and is told nothing
    const auto all = tell(engine);
    const Told& told = all.at(0);
    std::vector<TokenId> text = asked.prompt;
    text.insert(text.end(), told.tokens.begin(), told.tokens.end());
    std::vector<ScoredToken> scores = told.prompt_scores;
    scores.insert(scores.end(), told.scores.begin(), told.scores.end());
    expect_equal(scores, scores_of(kv, text, 3));
    EXPECT_EQ(told.tokens, session.continue_greedily(kv, asked.prompt, 5));
    EXPECT_TRUE(all.at(1).scores.empty() && all.at(1).prompt_scores.empty());
  }
}

TEST_F(ScoresTest, APreemptedRequestIsToldOnce) {
  const KvConfig kv = parse_kv_config("f16");
  const int64_t room = 6 * window_page_bytes(session.decoder.kv_shape());
  Engine engine = make_engine(kv, {.max_tokens = 48, .max_sequences = 3, .memory_bytes = room}, 4096, 0);
  for (uint32_t i = 0; i < 3; ++i) {
    Request asked = request(12, 30, i);
    asked.n_logprobs = 0;
    asked.scores_prompt = true;
    engine.submit(asked);
  }
  for (const auto& [id, told] : tell(engine)) {
    EXPECT_EQ(told.prompt_scores.size(), 11U) << id;
    EXPECT_EQ(told.scores.size(), 30U) << id;
  }
  EXPECT_GE(engine.stats().preemptions, 1);
}

TEST_F(ScoresTest, AStopTokenIsScored) {
  const KvConfig kv = parse_kv_config("f16");
  Request asked = request(10, 40, 4);
  const std::vector<TokenId> all = session.continue_greedily(kv, asked.prompt, 40);
  asked.stop_ids = {all[7]};
  asked.n_logprobs = 1;
  Engine engine = make_engine(kv, {.max_tokens = 100});
  engine.submit(asked);
  const Told told = tell(engine)[0];
  EXPECT_EQ(told.finish.stop_id, all[7]);
  ASSERT_EQ(told.scores.size(), told.tokens.size() + 1);
  EXPECT_EQ(told.scores.back().token.id, all[7]);
  EXPECT_EQ(told.scores.back().top.front().id, all[7]);  // greedy
}

TEST_F(ScoresTest, StopTokensAreNotChosenBeforeTheOutputIsLongEnough) {
  const KvConfig kv = parse_kv_config("f16");
  Request asked = request(10, 40, 4);
  const std::vector<TokenId> all = session.continue_greedily(kv, asked.prompt, 40);
  asked.stop_ids = {all[0]};
  asked.min_new_tokens = 6;
  Engine engine = make_engine(kv, {.max_tokens = 100});
  engine.submit(asked);
  const Told told = tell(engine)[0];
  EXPECT_GE(told.tokens.size(), 6U);
  EXPECT_EQ(std::ranges::count(told.tokens, all[0]), 0);
}

TEST_F(ScoresTest, ALogitBiasForcesAndForbids) {
  const KvConfig kv = parse_kv_config("f16");
  Request asked = request(10, 5, 4);
  const TokenId usual = session.continue_greedily(kv, asked.prompt, 1)[0];
  Engine engine = make_engine(kv, {.max_tokens = 100});
  asked.sampling.logit_bias = {{usual, -100.0F}};
  engine.submit(asked);
  asked.sampling.logit_bias = {{17, 100.0F}};
  engine.submit(asked);
  const auto all = tell(engine);
  EXPECT_EQ(std::ranges::count(all.at(0).tokens, usual), 0);
  EXPECT_EQ(all.at(1).tokens, std::vector<TokenId>(5, 17));
  asked.sampling.logit_bias = {{50, 1.0F}};
  EXPECT_EQ(refusal(engine, asked).code(), ErrorCode::kInvalidArgument);
}

TEST(ScoreToken, TopIsSortedAndHoldsTheSameNumber) {
  const std::vector<float> logits = {0.5F, 2.0F, -1.0F, 2.0F, 1.0F};
  const ScoredToken scored = score_token(logits, 3, 3);
  ASSERT_EQ(scored.top.size(), 3U);
  EXPECT_EQ(scored.top[0].id, 1);
  EXPECT_EQ(scored.top[1].id, 3);
  EXPECT_EQ(scored.top[2].id, 4);
  EXPECT_EQ(scored.top[1].logprob, scored.token.logprob);
  EXPECT_TRUE(score_token(logits, 3, 0).top.empty());
  EXPECT_EQ(score_token(logits, 3, 20).top.size(), 5U);
}

}  // namespace
}  // namespace kivi
