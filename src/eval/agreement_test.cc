#include "eval/agreement.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "backend/fake_device.h"
#include "core/error.h"
#include "engine/tiny_session.h"

namespace kivi {
namespace {

AgreementSide side(TinySession& session) {
  return {session.backend.get(), &session.decoder};
}

TEST(Agreement, OneDeviceAgreesWithItself) {
  TinySession a;
  TinySession b;
  const AgreementOptions options{.kv = {parse_kv_config("f16"), small_kivi2()},
                                 .prompts = {a.random_tokens(1, 1), a.random_tokens(40, 2)},
                                 .n_tokens = 20};
  const auto results = measure_agreement(side(a), side(b), options);
  ASSERT_EQ(results.size(), 4U);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(results[i].kv, options.kv[i / 2].name);
    EXPECT_EQ(results[i].prompt, static_cast<int64_t>(i % 2));
    EXPECT_EQ(results[i].n_same, 20);
    EXPECT_EQ(results[i].n_tokens, 20);
    EXPECT_FALSE(results[i].difference);
    EXPECT_EQ(results[i].largest_logit_difference, 0);
  }
}

// Adds to the logit of one token, from the second step on.
class Biased : public FakeDevice {
 public:
  Biased(TokenId token, float by) : token_(token), by_(by) {}

  void linear(const LinearArgs& args) override {
    FakeDevice::linear(args);
    if (args.out.dtype != DType::kF32 || args.accumulate) return;  // logits alone
    if (n_calls_++ < 2) return;                                    // a step computes logits to fetch them and to choose
    synchronize();
    args.out.as<float, 2>()(0, token_) += by_;
  }

 private:
  TokenId token_;
  float by_;
  int n_calls_ = 0;
};

TEST(Agreement, ADifferenceIsTold) {
  constexpr TokenId kToken = 7;
  constexpr float kBy = 100.0F;
  TinySession plain(std::make_unique<FakeDevice>(FakeDeviceOptions{.records = false}));
  TinySession biased(std::make_unique<Biased>(kToken, kBy));
  const auto prompt = plain.random_tokens(5, 3);
  const auto results =
      measure_agreement(side(plain), side(biased), {.kv = {small_kivi2()}, .prompts = {prompt}, .n_tokens = 9});
  ASSERT_EQ(results.size(), 1U);
  EXPECT_EQ(results[0].n_same, 1);
  EXPECT_EQ(results[0].n_tokens, 2);
  ASSERT_TRUE(results[0].difference);
  const Disagreement& difference = *results[0].difference;
  EXPECT_EQ(difference.tokens[1], kToken);
  EXPECT_NE(difference.tokens[0], kToken);
  EXPECT_GT(difference.gaps[0], 0);
  EXPECT_NEAR(difference.gaps[0] + difference.gaps[1], kBy, 1e-3);
  EXPECT_NEAR(results[0].largest_logit_difference, kBy, 1e-3);
  const auto json = to_json(std::span<const AgreementResult>(results));
  EXPECT_EQ(json[0]["difference"]["tokens"][1], kToken);
  EXPECT_EQ(json[0]["same"], 1);
}

TEST(Agreement, RefusesWhatDoesNotFit) {
  TinySession a;
  const auto measure = [&](std::vector<TokenId> prompt, int64_t n) {
    return measure_agreement(side(a), side(a), {.kv = {small_kivi2()}, .prompts = {std::move(prompt)}, .n_tokens = n});
  };
  EXPECT_THROW(measure({}, 3), Error);
  EXPECT_THROW(measure({1}, 0), Error);
  EXPECT_THROW(measure({1}, a.config.context_length), Error);
}

}  // namespace
}  // namespace kivi
