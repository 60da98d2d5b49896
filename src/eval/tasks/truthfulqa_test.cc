#include "eval/tasks/truthfulqa.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cache/kv_cache.h"
#include "core/error.h"
#include "engine/tiny_session.h"
#include "eval/tasks/word_tokenizer.h"
#include "io/safetensors_builder.h"

namespace kivi {
namespace {

const std::string kFile = std::string(KIVI_SOURCE_DIR) + "/tests/data/truthfulqa/mc_task.json";

TEST(ChoiceQuestionsTest, ReadsTheFile) {
  const auto questions = read_choice_questions(kFile, 0);
  ASSERT_EQ(questions.size(), 5U);
  EXPECT_EQ(questions[0].question, "What happens to you if you eat watermelon seeds?");
  EXPECT_EQ(questions[0].choices.size(), 13U);
  const auto count = [&](auto is) { return std::ranges::count_if(questions[0].choices, is); };
  EXPECT_EQ(count([](const Choice& choice) { return choice.is_true; }), 6);
  EXPECT_EQ(count([](const Choice& choice) { return choice.is_single; }), 8);
  EXPECT_EQ(count([](const Choice& choice) { return choice.is_single && choice.is_true; }), 1);
  EXPECT_EQ(read_choice_questions(kFile, 2).size(), 2U);
}

TEST(ChoiceQuestionsTest, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const auto message = [&](const char* content) -> std::string {
    folder.write("mc_task.json", content);
    try {
      read_choice_questions(folder.path("mc_task.json"), 0);
    } catch (const Error& error) {
      return std::string(error.what()).substr(folder.path("mc_task.json").size());
    }
    return "";
  };
  EXPECT_EQ(message("[{"), ": is not JSON from byte 2 on; fetch the file again");
  EXPECT_EQ(message("{}"), ": is object, must be an array");
  EXPECT_EQ(message("[]"), ": has no question; fetch it again");
  EXPECT_EQ(message("[{}]"), ": '[0].question' is missing, must be a string");
  EXPECT_EQ(message(R"([{"question": "Q", "mc1_targets": {"a": 1, "b": 1}, "mc2_targets": {}}])"),
            ": '[0].mc1_targets' has 2 true answers, must have one");
  EXPECT_EQ(message(R"([{"question": "Q", "mc1_targets": {"a": 1}, "mc2_targets": {"a": 1}}])"),
            ": '[0].mc2_targets' has 1 true answers of 1, must have some of both");
  EXPECT_EQ(message(R"([{"question": "Q", "mc1_targets": {"a": 1}, "mc2_targets": {"b": 1, "c": 0}}])"),
            ": '[0].mc2_targets' must have the MC1 answer 'a' as it is there");
  EXPECT_EQ(message(R"([{"question": "Q", "mc1_targets": {"a": "yes"}, "mc2_targets": {}}])"),
            ": '[0].mc1_targets.a' must be 0 or 1");
}

TEST(ChoiceQuestionsTest, EncodesAnswersBehindTheQuestion) {
  const WordTokenizer tokenizer;
  const ChoiceTokens tokens = encode_choices(tokenizer, {"Who?", {{"The cat", true, true}, {"Me", false, true}}});
  EXPECT_TRUE(tokenizer.decode(tokens.prompt).ends_with("autumn.\n\nQ: Who?\nA:"));
  ASSERT_EQ(tokens.answers.size(), 2U);
  EXPECT_EQ(tokenizer.decode(tokens.answers[0]), " The cat");
}

TEST(ChoiceQuestionsTest, JudgesByLikelihood) {
  const ChoiceQuestion question{"Who?",
                                {{"a", true, true}, {"b", false, true}, {"c", true, false}, {"d", false, false}}};
  const double high = std::log(0.4);
  const double low = std::log(0.1);
  const TaskOutcome right = judge_choices(question, std::vector<double>{high, low, high, low});
  EXPECT_TRUE(right.is_right);
  EXPECT_EQ(right.answer, "a");
  EXPECT_NEAR(*right.share, 0.8, 1e-12);
  const TaskOutcome wrong = judge_choices(question, std::vector<double>{low, high, low, low});
  EXPECT_FALSE(wrong.is_right);
  EXPECT_EQ(wrong.answer, "b");
  EXPECT_NEAR(*wrong.share, 0.2 / 0.7, 1e-12);
  EXPECT_TRUE(judge_choices(question, std::vector<double>{high, low, low, 0.0}).is_right) << "d is not of MC1";
  EXPECT_NEAR(*judge_choices(question, std::vector<double>{-5000, -5001, -5000, -5001}).share, 1 / (1 + std::exp(-1)),
              1e-12);
}

class LikelihoodsTest : public ::testing::Test {
 protected:
  std::vector<std::vector<double>> measure(const KvConfig& kv, int64_t batch) {
    return answer_likelihoods(*session.backend, session.decoder, kv, questions, batch, {});
  }
  // Of one answer, token by token from the last of the prompt on, in a cache of its own.
  double expected(const KvConfig& kv, const std::vector<TokenId>& prompt, const std::vector<TokenId>& answer) {
    KvCache cache(*session.backend, session.decoder.kv_shape(), kv, {.max_tokens = 200});
    const SequenceId id = cache.create();
    double sum = 0;
    std::vector<TokenId> input(prompt.begin(), prompt.end() - 1);
    for (size_t i = 0; i <= answer.size(); ++i) {
      const StepSequence entry{.id = id, .n_new = static_cast<int32_t>(input.size())};
      const int32_t last = entry.n_new - 1;
      EXPECT_TRUE(cache.reserve({&entry, 1}));
      const auto logits = session.decoder.step(cache, {.tokens = input, .logit_rows = {&last, 1}}).logits;
      if (i > 0) {
        double all = 0;
        for (int64_t t = 0; t < logits.shape[1]; ++t) all += std::exp(double{logits(0, t)});
        sum += double{logits(0, answer[i - 1])} - std::log(all);
      }
      if (i < answer.size()) input = {i == 0 ? prompt.back() : answer[i - 1]};
    }
    return sum;
  }

  TinySession session;
  std::vector<ChoiceTokens> questions = {
      {session.random_tokens(70, 1), {session.random_tokens(3, 2), session.random_tokens(9, 3)}},
      {session.random_tokens(50, 4),
       {session.random_tokens(1, 5), session.random_tokens(5, 6), session.random_tokens(4, 7)}}};
};

TEST_F(LikelihoodsTest, EveryAnswerTokenGoesThroughTheCache) {
  for (const KvConfig& kv : {small_kivi2(), parse_kv_config("f16")}) {
    const auto likelihoods = measure(kv, 4);
    ASSERT_EQ(likelihoods.size(), 2U);
    for (size_t q = 0; q < 2; ++q) {
      ASSERT_EQ(likelihoods[q].size(), questions[q].answers.size());
      for (size_t a = 0; a < likelihoods[q].size(); ++a) {
        EXPECT_NEAR(likelihoods[q][a], expected(kv, questions[q].prompt, questions[q].answers[a]), 1e-5) << kv.name;
      }
    }
  }
  EXPECT_NE(measure(small_kivi2(), 4), measure(parse_kv_config("f16"), 4));
}

TEST_F(LikelihoodsTest, DoNotDependOnTheBatch) {
  EXPECT_EQ(measure(small_kivi2(), 1), measure(small_kivi2(), 100));
}

}  // namespace
}  // namespace kivi
