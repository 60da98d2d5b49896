// What tests of the engine share.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/tiny_session.h"

namespace kivi {

struct Outcome {
  std::vector<TokenId> tokens;
  int64_t n_reused = 0;
  Finish finish;
};

class EngineTest : public ::testing::Test {
 protected:
  Engine make_engine(const KvConfig& kv, const KvCapacity& capacity, int64_t max_step_tokens = 4096,
                     int64_t horizon = 512) {
    return Engine(*session.backend, session.decoder,
                  {.kv = kv, .capacity = capacity, .max_step_tokens = max_step_tokens, .horizon = horizon});
  }
  Request request(int64_t n_prompt, int64_t n_output, uint32_t seed) const {
    return {.prompt = session.random_tokens(n_prompt, seed), .max_new_tokens = n_output};
  }
  static void take(const Event& event, std::map<RequestId, Outcome>& outcomes) {
    Outcome& outcome = outcomes[event.id];
    if (event.token) outcome.tokens.push_back(*event.token);
    if (event.token) outcome.n_reused = event.n_reused;
    if (event.finish) outcome.finish = *event.finish;
  }
  static std::map<RequestId, Outcome> run(Engine& engine) {
    std::map<RequestId, Outcome> outcomes;
    for (int steps = 0; !engine.idle(); ++steps) {
      if (steps > 10000) ADD_FAILURE() << "the engine does not come to an end";
      if (steps > 10000) break;
      for (const Event& event : engine.step()) take(event, outcomes);
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

}  // namespace kivi
