#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "engine/tiny_session.h"

namespace kivi {
namespace {

class PerplexityTest : public ::testing::Test {
 protected:
  std::vector<PerplexityResult> measure(const PerplexityOptions& options) {
    return measure_perplexity(*session.backend, session.decoder, tokens, options);
  }
  // Sum over the scored predictions of a chunk of -log p, from one pass over all of it.
  double nll_of_chunk(std::span<const TokenId> chunk) {
    const auto n = static_cast<int32_t>(chunk.size());
    KvCache cache(*session.backend, session.decoder.kv_shape(), parse_kv_config("f16"), {.max_tokens = n});
    const StepSequence entry{.id = cache.create(), .n_new = n};
    EXPECT_TRUE(cache.reserve({&entry, 1}));
    std::vector<int32_t> rows;
    for (int32_t row = n / 2; row < n - 1; ++row) rows.push_back(row);
    const auto logits = session.decoder.step(cache, {.tokens = chunk, .logit_rows = rows}).logits;
    double total = 0;
    for (int64_t i = 0; i < logits.shape[0]; ++i) {
      double sum = 0;
      for (int64_t id = 0; id < logits.shape[1]; ++id) sum += std::exp(double{logits(i, id)});
      total += std::log(sum) - double{logits(i, chunk[static_cast<size_t>(rows[i]) + 1])};
    }
    return total;
  }

  TinySession session;
  std::vector<TokenId> tokens = session.random_tokens(211, 3);  // four chunks of 48 and a rest
};

TEST_F(PerplexityTest, IsThatOfOnePassFor16Bits) {
  const auto results = measure({.kv = {parse_kv_config("f16")}, .context = 48, .batch = 3});
  double nll = 0;
  for (size_t chunk = 0; chunk < 4; ++chunk) nll += nll_of_chunk(std::span(tokens).subspan(48 * chunk, 48));
  ASSERT_EQ(results.size(), 1U);
  EXPECT_EQ(results[0].n_tokens, 4 * 23);
  EXPECT_NEAR(results[0].nll_per_token, nll / (4 * 23), 1e-5);
  EXPECT_DOUBLE_EQ(results[0].perplexity, std::exp(results[0].nll_per_token));
  EXPECT_EQ(results[0].kl_to_f16, 0);
  EXPECT_EQ(results[0].top1_agreement, 1);
}

TEST_F(PerplexityTest, AnswersInTheOrderAskedForWhateverTheBatch) {
  const std::vector<KvConfig> kv = {small_kivi2(), parse_kv_config("f16"),
                                    parse_kv_config("kivi4:group-size=16:residual=16")};
  const auto one = measure({.kv = kv, .context = 48, .batch = 1});
  const auto many = measure({.kv = kv, .context = 48, .batch = 8});
  const auto alone = measure({.kv = {kv[0]}, .context = 48});
  ASSERT_EQ(one.size(), 3U);
  ASSERT_EQ(alone.size(), 1U);
  for (size_t i = 0; i < kv.size(); ++i) {
    EXPECT_EQ(one[i].kv, kv[i].name);
    EXPECT_DOUBLE_EQ(one[i].nll_per_token, many[i].nll_per_token);
    EXPECT_DOUBLE_EQ(one[i].kl_to_f16, many[i].kl_to_f16);
  }
  EXPECT_DOUBLE_EQ(alone[0].kl_to_f16, one[0].kl_to_f16);  // f16 runs as the base unasked
  EXPECT_GT(one[0].kl_to_f16, one[2].kl_to_f16);           // 2 bits are worse than 4
  EXPECT_GT(one[2].kl_to_f16, 0);
  EXPECT_EQ(one[0].bits_per_element, 4.0);  // 2 + 32 / 16
  EXPECT_GT(one[0].effective_bits_per_element, one[0].bits_per_element);
}

TEST_F(PerplexityTest, ChunksAreChosen) {
  const auto second = measure({.kv = {parse_kv_config("f16")}, .context = 48, .first_chunk = 1, .n_chunks = 1});
  EXPECT_EQ(second[0].n_tokens, 23);
  EXPECT_NEAR(second[0].nll_per_token, nll_of_chunk(std::span(tokens).subspan(48, 48)) / 23, 1e-5);
}

TEST_F(PerplexityTest, ATokenCanBeginEveryChunk) {
  const auto results = measure({.kv = {parse_kv_config("f16")}, .context = 48, .first_token = 7});
  double nll = 0;
  for (size_t chunk = 0; chunk < 4; ++chunk) {
    tokens[48 * chunk] = 7;
    nll += nll_of_chunk(std::span(tokens).subspan(48 * chunk, 48));
  }
  EXPECT_NEAR(results[0].nll_per_token, nll / (4 * 23), 1e-5);
}

TEST_F(PerplexityTest, TellsItsProgress) {
  double last = 0;
  const auto progress = [&last](double part) {
    EXPECT_GT(part, last);
    last = part;
  };
  measure({.kv = {parse_kv_config("f16")}, .context = 48, .batch = 3, .progress = progress});
  EXPECT_NEAR(last, 1.0, 1e-12);
}

TEST_F(PerplexityTest, RefusesWhatMakesNoChunk) {
  const std::vector<KvConfig> kv = {parse_kv_config("f16")};
  EXPECT_THROW(measure({.kv = kv, .context = 212}), Error);                   // no whole chunk
  EXPECT_THROW(measure({.kv = kv, .context = 48, .n_chunks = 5}), Error);     // only four
  EXPECT_THROW(measure({.kv = kv, .context = 48, .first_chunk = 4}), Error);  // the fifth
  EXPECT_THROW(measure({.kv = kv, .context = 257}), Error);                   // beyond the model's 256
  EXPECT_THROW(measure({.kv = kv, .context = 48, .batch = 0}), Error);
}

TEST_F(PerplexityTest, WritesTheKeysThatScriptsRead) {
  const auto json = to_json(std::span<const PerplexityResult>(measure({.kv = {small_kivi2()}, .context = 48})));
  for (const char* key : {"kv", "perplexity", "nll_per_token", "n_tokens", "bits_per_element", "kl_to_f16",
                          "top1_agreement", "effective_bits_per_element"}) {
    EXPECT_TRUE(json["results"][0].contains(key)) << key;
  }
}

}  // namespace
}  // namespace kivi
