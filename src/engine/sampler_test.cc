#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "core/error.h"

namespace kivi {
namespace {

// Probabilities 0.5, 0.3, 0.15, 0.05 of ids 2, 0, 3, 1 at temperature 1.
const std::vector<float> kLogits = {std::log(0.3F), std::log(0.05F), std::log(0.5F), std::log(0.15F)};

std::map<TokenId, double> frequencies(SamplingParams params, std::span<const float> logits, int n = 20000) {
  params.seed = 7;
  std::map<TokenId, double> seen;
  Sampler sampler(params, {});
  for (int i = 0; i < n; ++i) seen[sampler.sample(logits)] += 1.0 / n;
  return seen;
}

TEST(Argmax, TakesTheLowestOfEqualsAndSkipsNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(argmax(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(argmax(std::vector<float>{nan, -5, nan, -4}), 3);
  EXPECT_LT(argmax(std::vector<float>{nan, nan}), 2);  // any, but in range
}

TEST(Sampler, TemperatureZeroIsGreedy) {
  Sampler sampler({}, {});
  for (int i = 0; i < 10; ++i) EXPECT_EQ(sampler.sample(kLogits), 2);
}

TEST(Sampler, DrawsTheDistribution) {
  auto seen = frequencies({.temperature = 1.0}, kLogits);
  EXPECT_NEAR(seen[2], 0.5, 0.015);
  EXPECT_NEAR(seen[0], 0.3, 0.015);
  EXPECT_NEAR(seen[3], 0.15, 0.015);
  EXPECT_NEAR(seen[1], 0.05, 0.01);
}

TEST(Sampler, TemperatureSharpens) {
  auto seen = frequencies({.temperature = 0.5}, kLogits);  // squares: 0.25, 0.09, 0.0225, 0.0025 of 0.365
  EXPECT_NEAR(seen[2], 0.25 / 0.365, 0.015);
  EXPECT_NEAR(seen[0], 0.09 / 0.365, 0.015);
}

TEST(Sampler, TopKKeepsTheLikeliest) {
  auto seen = frequencies({.temperature = 1.0, .top_k = 2}, kLogits);
  EXPECT_EQ(seen.size(), 2U);
  EXPECT_NEAR(seen[2], 0.5 / 0.8, 0.015);
  EXPECT_NEAR(seen[0], 0.3 / 0.8, 0.015);
}

TEST(Sampler, TopKOfEqualsKeepsTheLowestIds) {
  const auto seen = frequencies({.temperature = 1.0, .top_k = 2}, std::vector<float>(5, 1.0F), 200);
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_TRUE(seen.contains(0) && seen.contains(1));
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  auto two = frequencies({.temperature = 1.0, .top_p = 0.7}, kLogits);  // 0.5 does not reach it, 0.8 does
  EXPECT_EQ(two.size(), 2U);
  EXPECT_NEAR(two[2], 0.5 / 0.8, 0.015);
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_p = 0.4}, kLogits).size(), 1U);
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_p = 0.81}, kLogits).size(), 3U);
  // After top-k 2 the likeliest has 0.625 of what is left.
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_k = 2, .top_p = 0.6}, kLogits).size(), 1U);
}

TEST(Sampler, MinPIsRelativeToTheLikeliest) {
  EXPECT_EQ(frequencies({.temperature = 1.0, .min_p = 0.25}, kLogits).size(), 3U);  // 0.15 is 0.3 of 0.5
  EXPECT_EQ(frequencies({.temperature = 1.0, .min_p = 0.5}, kLogits).size(), 2U);
  EXPECT_EQ(frequencies({.temperature = 1.0, .min_p = 1.0}, kLogits).size(), 1U);
}

TEST(Sampler, RepetitionPenaltyCountsThePromptToo) {
  const std::vector<float> logits = {2.0F, -1.0F, 3.0F, -1.5F};
  const std::vector<TokenId> prompt = {2};
  Sampler sampler({.repetition_penalty = 2.0}, prompt);
  EXPECT_EQ(sampler.sample(logits), 0);  // 3 / 2 < 2
  EXPECT_EQ(sampler.sample(logits), 2);  // 1.5 against 2 / 2
  Sampler negative({.repetition_penalty = 2.0}, std::vector<TokenId>{1});
  EXPECT_EQ(negative.sample(std::vector<float>{-3.0F, -1.0F, -1.5F}), 2);  // -1 * 2 < -1.5
}

TEST(Sampler, PresenceAndFrequencyCountTheOutputOnly) {
  const std::vector<float> logits = {1.0F, 0.8F};
  Sampler presence({.presence_penalty = 0.3}, std::vector<TokenId>{0});
  EXPECT_EQ(presence.sample(logits), 0);
  EXPECT_EQ(presence.sample(logits), 1);  // 0.7 against 0.8
  EXPECT_EQ(presence.sample(logits), 0);  // 0.7 against 0.5: once is all
  Sampler frequency({.frequency_penalty = 0.15}, {});
  const std::vector<TokenId> expected = {0, 0, 1, 0, 1};  // 1 | .85 | .7 <.8 | .7 > .65 | .55 < .65
  for (const TokenId id : expected) EXPECT_EQ(frequency.sample(logits), id);
}

TEST(Sampler, SeedFixesTheOutput) {
  const auto draw = [](uint64_t seed) {
    Sampler sampler({.temperature = 1.0, .seed = seed}, {});
    std::vector<TokenId> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.sample(kLogits));
    return ids;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(Sampler, NeverDrawsTheImpossible) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(frequencies({.temperature = 1.0}, std::vector<float>{-inf, 0.0F, nan}, 100).count(1), 1U);
  EXPECT_EQ(frequencies({.temperature = 1.0}, std::vector<float>{-inf, 0.0F, nan}, 100).size(), 1U);
  EXPECT_EQ(frequencies({.temperature = 1.0}, std::vector<float>{0.0F, inf}, 100).size(), 1U);
}

// A vocabulary of many blocks, with many equal logits.
std::vector<float> many_logits() {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0F, 2.5F);
  std::vector<float> logits(3001);
  for (float& logit : logits) logit = std::round(4 * normal(random)) / 4;
  logits[17] = -std::numeric_limits<float>::infinity();
  return logits;
}

// What the filters leave, by sorting: ids with their probabilities.
std::map<TokenId, double> kept_of(std::span<const float> logits, const SamplingParams& params) {
  std::vector<std::pair<double, TokenId>> all;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isfinite(logits[i])) all.emplace_back(double{logits[i]} / params.temperature, static_cast<TokenId>(i));
  }
  std::ranges::sort(all, [](auto& a, auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  const double highest = all.front().first;
  const auto sum = [&] {
    double total = 0;
    for (auto& [logit, id] : all) total += std::exp(logit - highest);
    return total;
  };
  if (params.top_k > 0) all.resize(std::min(all.size(), static_cast<size_t>(params.top_k)));
  double missing = params.top_p * sum();
  size_t n = 0;
  while (n < all.size() && (params.top_p == 1 || missing > 0)) missing -= std::exp(all[n++].first - highest);
  all.resize(n);
  std::erase_if(all, [&](auto& one) { return std::exp(one.first - highest) < params.min_p; });
  std::map<TokenId, double> kept;
  const double total = sum();
  for (auto& [logit, id] : all) kept[id] = std::exp(logit - highest) / total;
  return kept;
}

TEST(Sampler, DrawsFromALargeVocabularyWhatIsLeft) {
  const std::vector<float> logits = many_logits();
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 1.0}, SamplingParams{.temperature = 3.0},
        SamplingParams{.temperature = 1.0, .top_k = 7}, SamplingParams{.temperature = 2.0, .top_k = 300},
        SamplingParams{.temperature = 1.0, .top_p = 0.5}, SamplingParams{.temperature = 2.0, .top_p = 0.99},
        SamplingParams{.temperature = 9.0, .top_p = 0.9999}, SamplingParams{.temperature = 1.0, .min_p = 0.1},
        SamplingParams{.temperature = 1.5, .top_k = 40, .top_p = 0.9, .min_p = 0.05}}) {
    constexpr int kDraws = 2000;
    const std::map<TokenId, double> kept = kept_of(logits, params);
    double error = 0;
    double expected_error = 0;
    std::map<TokenId, double> seen = frequencies(params, logits, kDraws);
    for (const auto& [id, frequency] : seen) {
      ASSERT_TRUE(kept.contains(id)) << params.temperature << " " << params.top_k << " " << params.top_p << " " << id;
    }
    for (const auto& [id, probability] : kept) {
      error += std::pow(seen[id] - probability, 2) / probability;
      expected_error += (1 - probability) / kDraws;
    }
    // Chi-squared, whose standard deviation is at most sqrt(2 n) of n.
    const auto n = static_cast<double>(kept.size());
    EXPECT_LT(error / expected_error, 1 + 5 * std::sqrt(2 / n) + 1e-9) << params.temperature << " " << params.top_p;
  }
}

TEST(Sampler, AnAlmostColdOneTakesTheLikeliest) {
  const std::vector<float> logits = many_logits();
  const TokenId best = argmax(logits);
  EXPECT_EQ(logits[static_cast<size_t>(best)], *std::ranges::max_element(logits));
  std::vector<float> clear = logits;
  clear[2999] = 99.0F;
  for (const double temperature : {1e-3, 1e-30, 1e-300}) {
    EXPECT_EQ(frequencies({.temperature = temperature}, clear, 10).count(2999), 1U);
    EXPECT_EQ(frequencies({.temperature = temperature}, clear, 10).size(), 1U);
    EXPECT_EQ(frequencies({.temperature = temperature, .top_p = 0.9}, clear, 10).size(), 1U);
  }
}

TEST(SamplingParams, ChecksEveryField) {
  const auto refuses = [](const SamplingParams& params) {
    try {
      params.validate();
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_FALSE(refuses({}));
  EXPECT_TRUE(refuses({.temperature = -0.1}));
  EXPECT_TRUE(refuses({.temperature = std::numeric_limits<double>::quiet_NaN()}));
  EXPECT_TRUE(refuses({.top_k = -1}));
  EXPECT_TRUE(refuses({.top_p = 0}));
  EXPECT_TRUE(refuses({.top_p = 1.5}));
  EXPECT_TRUE(refuses({.min_p = 1.1}));
  EXPECT_TRUE(refuses({.repetition_penalty = 0}));
  EXPECT_TRUE(refuses({.presence_penalty = std::numeric_limits<double>::infinity()}));
}

}  // namespace
}  // namespace kivi
