#include "engine/token_score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "engine/logit_loops.h"

namespace kivi {
namespace {

// Sums of floats run in float over a block and in double over the blocks.
constexpr size_t kBlock = 1024;

// Calls sum(begin, end), which returns a float, for every block and adds up.
template <typename Sum>
double sum_blocks(size_t n, Sum sum) {
  double total = 0;
  for (size_t begin = 0; begin < n; begin += kBlock) total += double{sum(begin, std::min(n, begin + kBlock))};
  return total;
}

}  // namespace

Prediction make_prediction(std::span<const float> logits) {
  const float* x = logits.data();
  const size_t n = logits.size();
  const float highest = highest_of(logits);
  const double total = sum_blocks(n, [x, highest](size_t begin, size_t end) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = begin; i < end; ++i) sum += fast_exp(x[i] - highest);
    return sum;
  });
  const auto best = std::find(logits.begin(), logits.end(), highest) - logits.begin();
  return {.logits = logits,
          .highest = highest,
          .log_sum = double{highest} + std::log(total),
          .best = static_cast<TokenId>(best)};
}

double negative_log_likelihood(const Prediction& p, TokenId token) {
  return p.log_sum - double{p.logits[static_cast<size_t>(token)]};
}

// Keeps the best so far in a small heap with the worst of them in front: mostly one comparison a token.
ScoredToken score_token(std::span<const float> logits, TokenId token, int64_t n_top) {
  const Prediction p = make_prediction(logits);
  const auto score = [&p](TokenId id) { return TokenLogprob{id, static_cast<float>(-negative_log_likelihood(p, id))}; };
  const auto better = [logits](TokenId a, TokenId b) {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const size_t n = std::min(static_cast<size_t>(std::max<int64_t>(n_top, 0)), logits.size());
  std::vector<TokenId> best;
  for (TokenId id = 0; n > 0 && std::cmp_less(id, logits.size()); ++id) {
    if (best.size() == n) {
      if (!(logits[static_cast<size_t>(id)] > logits[static_cast<size_t>(best.front())])) continue;
      std::ranges::pop_heap(best, better);
      best.pop_back();
    }
    best.push_back(id);
    std::ranges::push_heap(best, better);
  }
  std::ranges::sort(best, better);
  ScoredToken scored{.token = score(token)};
  for (const TokenId id : best) scored.top.push_back(score(id));
  return scored;
}

double kl_divergence(const Prediction& p, const Prediction& q) {
  const float* x = p.logits.data();
  const float* y = q.logits.data();
  const float highest = p.highest;
  const double weighted = sum_blocks(p.logits.size(), [=](size_t begin, size_t end) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = begin; i < end; ++i) sum += fast_exp(x[i] - highest) * (x[i] - y[i]);
    return sum;
  });
  const double mean = weighted / std::exp(p.log_sum - double{highest});
  return std::max(0.0, mean - (p.log_sum - q.log_sum));
}

}  // namespace kivi
