#include "eval/tasks/haystack.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "eval/tasks/word_tokenizer.h"

namespace kivi {
namespace {

class HaystackTest : public ::testing::Test {
 protected:
  // A word and a space: 2 tokens a letter.
  std::vector<std::string> pieces = {"a a ", "b ", "c c c ", "d "};
  WordTokenizer tokenizer;
  Haystack haystack{tokenizer, pieces};
  PromptFormat format{.tokenizer = &tokenizer};

  HiddenFact fact_at(double depth, int64_t first_piece = 0) const {
    return {.fact = "X ", .depth = depth, .first_piece = first_piece, .ask = [](const std::string& text) {
              return TaskPrompt{.messages = {}, .plain = "begin " + text + "question?"};
            }};
  }
  std::string fitted(const HiddenFact& fact, int64_t n_tokens) {
    const std::vector<TokenId> prompt = fit_prompt(haystack, fact, format, n_tokens);
    EXPECT_LE(std::ssize(prompt), n_tokens);
    return tokenizer.decode(prompt);
  }
};

TEST_F(HaystackTest, HidesTheFactAtItsDepth) {
  EXPECT_EQ(haystack.text(0, 4, "X ", 0.0), "X a a b c c c d ");
  EXPECT_EQ(haystack.text(0, 4, "X ", 0.3), "a a X b c c c d ");
  EXPECT_EQ(haystack.text(0, 4, "X ", 0.5), "a a b X c c c d ");
  EXPECT_EQ(haystack.text(0, 4, "X ", 1.0), "a a b c c c d X ");
  EXPECT_EQ(haystack.text(0, 0, "X ", 0.7), "X ");
}

TEST_F(HaystackTest, BeginsAgainAfterTheLastPiece) {
  EXPECT_EQ(haystack.text(3, 3, "X ", 1.0), "d a a b X ");
  EXPECT_EQ(haystack.text(9, 1, "", 0.0), "b ");
}

TEST_F(HaystackTest, FitsAPromptToItsTokens) {
  // "begin ", "X " and "question?" are 5 tokens.
  EXPECT_EQ(fitted(fact_at(0.0), 5), "begin X question?");
  EXPECT_EQ(fitted(fact_at(0.0), 8), "begin X question?");
  EXPECT_EQ(fitted(fact_at(0.0), 9), "begin X a a question?");
  EXPECT_EQ(fitted(fact_at(1.0), 11), "begin a a b X question?");
  EXPECT_EQ(fitted(fact_at(1.0, 1), 13), "begin b c c c X question?");
}

TEST_F(HaystackTest, ALongPromptKeepsFactAndQuestion) {
  for (const int64_t n_tokens : {100, 101, 500, 2000}) {
    for (const double depth : {0.0, 0.25, 0.5, 1.0}) {
      const std::string text = fitted(fact_at(depth), n_tokens);
      EXPECT_TRUE(text.starts_with("begin ") && text.ends_with("question?"));
      const auto n_all = static_cast<double>(text.size() - std::string_view("begin X question?").size());
      const size_t at = text.find('X');
      ASSERT_NE(at, std::string::npos);
      EXPECT_NEAR(static_cast<double>(at - 6) / n_all, depth, 4 / n_all) << n_tokens << " tokens";
      EXPECT_GE(std::ssize(tokenizer.encode(text, false, false)), n_tokens - 6) << "shorter than it has to be";
    }
  }
}

TEST_F(HaystackTest, RefusesAContextWithoutRoomForTheQuestion) {
  try {
    fitted(fact_at(0.5), 4);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "room for a prompt of 4 tokens: the question alone takes 5; use a larger context");
  }
}

TEST_F(HaystackTest, NeedsText) {
  EXPECT_THROW(Haystack(tokenizer, {"", ""}), Error);
}

TEST(SplitSentencesTest, KeepsEveryByte) {
  EXPECT_EQ(split_sentences("One. Two!\n\nIs 3.5 more? Yes"),
            (std::vector<std::string>{"One. ", "Two!\n\n", "Is 3.5 more? ", "Yes"}));
  EXPECT_EQ(split_sentences("One.\n"), (std::vector<std::string>{"One.\n"}));
  EXPECT_EQ(split_sentences("One."), (std::vector<std::string>{"One."}));
  EXPECT_TRUE(split_sentences("").empty());
}

}  // namespace
}  // namespace kivi
