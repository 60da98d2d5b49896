#include "eval/tasks/generation.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "engine/tiny_session.h"
#include "server/letter_tokenizer.h"
#include "text/detokenizer.h"

namespace kivi {
namespace {

class GenerationTest : public ::testing::Test {
 protected:
  std::vector<std::string> generate(int64_t batch, const std::vector<std::string>& stops = {}) {
    GenerationOptions options{.max_new_tokens = 12, .stops = stops, .batch = batch};
    options.engine.kv = small_kivi2();
    options.progress = [this](double part) { parts.push_back(part); };
    return generate_answers(*session.backend, session.decoder, tokenizer, prompts, options);
  }

  TinySession session;
  LetterTokenizer tokenizer;
  std::vector<std::vector<TokenId>> prompts = {session.random_tokens(40, 1), session.random_tokens(3, 2),
                                               session.random_tokens(17, 3), session.random_tokens(64, 4)};
  std::vector<double> parts;
};

TEST_F(GenerationTest, IsGreedyInTheOrderOfThePrompts) {
  const auto answers = generate(2);
  ASSERT_EQ(answers.size(), prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    std::vector<TokenId> tokens = session.continue_greedily(small_kivi2(), prompts[i], 12);
    tokens.erase(std::find(tokens.begin(), tokens.end(), 0), tokens.end());  // the end of an answer
    std::string text;
    StreamDetokenizer detokenizer(tokenizer);
    for (const TokenId token : tokens) text += detokenizer.add(token);
    EXPECT_EQ(answers[i], text + detokenizer.finish()) << i;
  }
}

TEST_F(GenerationTest, DoesNotDependOnTheBatch) {
  EXPECT_EQ(generate(1), generate(4));
}

TEST_F(GenerationTest, TellsHowFarItIs) {
  generate(2);
  ASSERT_GT(parts.size(), 4U);
  EXPECT_TRUE(std::ranges::is_sorted(parts));
  EXPECT_LT(parts.front(), 0.8);
  EXPECT_EQ(parts.back(), 1.0);
}

TEST_F(GenerationTest, EndsBeforeAStop) {
  const auto whole = generate(4);
  size_t longest = 0;
  for (size_t i = 0; i < whole.size(); ++i) longest = whole[i].size() > whole[longest].size() ? i : longest;
  ASSERT_GT(whole[longest].size(), 4U);
  const std::string stop = whole[longest].substr(3, 1);
  const auto cut = generate(4, {stop});
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_EQ(cut[i], whole[i].substr(0, whole[i].find(stop))) << i;
}

TEST_F(GenerationTest, ThrowsWhatGoesWrong) {
  prompts.push_back({});
  EXPECT_THROW(generate(2), Error);
}

TEST_F(GenerationTest, TheHostHasASmallBatch) {
  EXPECT_EQ(chosen_batch(*session.backend, 0), 8);
  EXPECT_EQ(chosen_batch(*session.backend, 5), 5);
}

}  // namespace
}  // namespace kivi
