// How well logits predict a token, and how far two sets of logits are apart.
#pragma once

#include <span>
#include <vector>

#include "text/tokenizer.h"

namespace kivi {

// A next-token distribution as logits with what turns them into log-probabilities: log p(i) = logits[i] - log_sum.
struct Prediction {
  std::span<const float> logits;  // not owned
  float highest = 0.0F;
  double log_sum = 0.0;
  TokenId best = 0;  // of the highest logit; of equals the lowest id
};

Prediction make_prediction(std::span<const float> logits);

// -log p(token), in nats.
double negative_log_likelihood(const Prediction& p, TokenId token);

struct TokenLogprob {
  TokenId id = 0;
  float logprob = 0.0F;
};

// What a model made of one token: its log-probability, and the most likely tokens in its place, best first; of equals
// the one with the lowest id.
struct ScoredToken {
  TokenLogprob token{};
  std::vector<TokenLogprob> top{};
};

// The n_top most likely tokens; `token` has the same number if it is among them.
ScoredToken score_token(std::span<const float> logits, TokenId token, int64_t n_top);

// KL(p || q) in nats, at least 0. Good to about 1e-6.
double kl_divergence(const Prediction& p, const Prediction& q);

}  // namespace kivi
