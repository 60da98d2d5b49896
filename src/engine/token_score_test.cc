#include "engine/token_score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace kivi {
namespace {

std::vector<float> random_logits(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 4.0F);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(random);
  return logits;
}

// log p(i) for all i, in double and in the obvious way.
std::vector<double> log_probabilities(const std::vector<float>& logits) {
  double sum = 0;
  for (const float x : logits) sum += std::exp(double{x});
  std::vector<double> log_p;
  for (const float x : logits) log_p.push_back(double{x} - std::log(sum));
  return log_p;
}

double kl(const std::vector<float>& p, const std::vector<float>& q) {
  const std::vector<double> log_p = log_probabilities(p);
  const std::vector<double> log_q = log_probabilities(q);
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) sum += std::exp(log_p[i]) * (log_p[i] - log_q[i]);
  return sum;
}

TEST(TokenScore, NegativeLogLikelihoodIsThatOfTheSoftmax) {
  for (const size_t n : {size_t{1}, size_t{7}, size_t{1024}, size_t{1025}, size_t{49152}}) {
    const std::vector<float> logits = random_logits(n, 3);
    const Prediction prediction = make_prediction(logits);
    const std::vector<double> expected = log_probabilities(logits);
    for (const size_t i : {size_t{0}, n / 2, n - 1}) {
      EXPECT_NEAR(negative_log_likelihood(prediction, static_cast<TokenId>(i)), -expected[i], 1e-6) << n << " " << i;
    }
  }
}

TEST(TokenScore, SurvivesLargeLogits) {
  const Prediction prediction = make_prediction(std::vector<float>{60000.0F, 59999.0F, -60000.0F});
  EXPECT_NEAR(prediction.log_sum, 60000.0 + std::log1p(std::exp(-1.0)), 1e-6);
  EXPECT_EQ(prediction.best, 0);
}

TEST(TokenScore, BestIsTheLowestOfEquals) {
  EXPECT_EQ(make_prediction(std::vector<float>{0, 2, 1, 2}).best, 1);
}

TEST(TokenScore, KlDivergenceIsExactToAMillionth) {
  for (const float noise : {0.01F, 0.1F, 1.0F}) {
    const std::vector<float> p = random_logits(49152, 5);
    std::vector<float> q = random_logits(49152, 6);
    for (size_t i = 0; i < q.size(); ++i) q[i] = p[i] + noise * q[i] + 3.0F;
    const double expected = kl(p, q);
    EXPECT_GT(expected, 0);
    EXPECT_NEAR(kl_divergence(make_prediction(p), make_prediction(q)), expected, 2e-6 + 2e-6 * expected) << noise;
  }
}

TEST(TokenScore, KlDivergenceOfEqualsIsZero) {
  const std::vector<float> p = random_logits(1000, 8);
  EXPECT_NEAR(kl_divergence(make_prediction(p), make_prediction(p)), 0.0, 1e-12);
}

}  // namespace
}  // namespace kivi
