// What is asked of the engine, and what it answers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cache/kv_memory.h"
#include "core/error.h"
#include "engine/sampler.h"
#include "engine/token_score.h"
#include "text/tokenizer.h"

namespace kivi {

using RequestId = int64_t;

struct Request {
  std::vector<TokenId> prompt{};    // at least one token
  int64_t max_new_tokens = 0;       // 0: up to the end of the context
  std::vector<TokenId> stop_ids{};  // tokens that end the output and are not part of it
  int64_t min_new_tokens = 0;       // stop tokens are not chosen before
  SamplingParams sampling{};
  // Score each new token as the model does, before penalties and temperature, beside so many of the most likely.
  std::optional<int64_t> n_logprobs{};
  bool scores_prompt = false;  // and each token of the prompt but the first; needs n_logprobs
  // Places where the prompt may be cut into chunks, ascending: where the turns of a chat begin and end. Prompts that
  // begin alike are cut alike, and so can share what is stored up to a cut. The output does depend on the cuts (a chunk
  // attends to what the cache has made of those before), but not on what is shared.
  std::vector<int64_t> cuts{};
  // A request with the same prompt and cuts that was submitted before this one, and has not been computed: its prompt
  // serves both, and they share its pages. No effect if it is further, or gone.
  std::optional<RequestId> twin{};
  // Leave the sequence in the cache when it ends, as long as nobody needs its pages: a later request whose prompt
  // begins with all its tokens goes on from there (a chat's next turn).
  bool keep_cached = false;
};

enum class FinishReason {
  kStop,       // a stop token
  kLength,     // max_new_tokens, or the end of the context
  kCancelled,  // cancel()
  kFailed,     // refused, or failed in a step
};

struct Finish {
  FinishReason reason = FinishReason::kStop;
  std::optional<Error> error{};  // of kFailed
  int64_t n_prompt = 0;          // tokens
  int64_t n_output = 0;
  std::optional<TokenId> stop_id{};  // of kStop: the stop token, which is not part of the output
  double queue_seconds = 0.0;        // until it first ran
  KvMemory kv{};                     // of the sequence at its end
};

// What happened to a request: a new token, scores of its prompt or, in its last event, its end.
struct Event {
  RequestId id = 0;
  std::optional<TokenId> token{};
  int64_t n_reused = 0;                // with a token: those of the prompt that were in the cache when it first ran
  std::optional<ScoredToken> score{};  // of the new token, or of the stop token in the last event
  std::vector<ScoredToken> prompt_scores{};  // of the next tokens of the prompt, from the second one on
  std::optional<Finish> finish{};
};

}  // namespace kivi
