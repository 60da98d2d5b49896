#include "eval/tasks/gsm8k.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "eval/tasks/word_tokenizer.h"
#include "io/safetensors_builder.h"

namespace kivi {
namespace {

const std::string kFolder = std::string(KIVI_SOURCE_DIR) + "/tests/data/gsm8k/";

TEST(FinalNumberTest, IsTheLastOfTheAnswer) {
  EXPECT_EQ(final_number("She has 3 and buys 4, so 3 + 4 = 7."), "7");
  EXPECT_EQ(final_number("The answer is **42**"), "42");
  EXPECT_EQ(final_number("\\boxed{18}"), "18");
  EXPECT_EQ(final_number("It takes 5 days"), "5");
  EXPECT_EQ(final_number("That is 20%"), "20");
  EXPECT_EQ(final_number("no digits at all"), std::nullopt);
  EXPECT_EQ(final_number(""), std::nullopt);
}

TEST(FinalNumberTest, IsTheOneInTheBox) {
  EXPECT_EQ(final_number("So \\(\\boxed{18}\\), which is 2 more than 16."), "18");
  EXPECT_EQ(final_number("\\boxed{3} no, \\boxed{\\$1,200}."), "1200");
  EXPECT_EQ(final_number("\\boxed{-5\\text{ degrees}}"), "-5");
  EXPECT_EQ(final_number("It is 12: \\boxed{}"), "12") << "nothing in the box";
}

TEST(FinalNumberTest, HeadingsAreNoMarksWithoutExamples) {
  EXPECT_EQ(final_number("#### Step 3\nThey have 160 + 80 + 20 = 260 sheep."), "260");
}

TEST(MarkedNumberTest, IsTheFirstAfterTheLastMark) {
  EXPECT_EQ(marked_number("16 - 7 = 9\n#### 9"), "9");
  EXPECT_EQ(marked_number("####9"), "9");
  EXPECT_EQ(marked_number("#### 9 eggs of 16"), "9");
  EXPECT_EQ(marked_number("#### Step 1\nAdd 2.\n#### 12"), "12");
  EXPECT_EQ(marked_number("#### -12"), "-12");
  EXPECT_EQ(marked_number("It is 12.\n####"), "12") << "nothing after the mark";
  EXPECT_EQ(marked_number("It is 3 or 12."), "12");
}

TEST(FinalNumberTest, IsNormalised) {
  EXPECT_EQ(final_number("$1,234.50"), "1234.5");
  EXPECT_EQ(final_number("70,000"), "70000");
  EXPECT_EQ(final_number("1,234,567"), "1234567");
  EXPECT_EQ(final_number("18.00"), "18");
  EXPECT_EQ(final_number("18."), "18");
  EXPECT_EQ(final_number("007"), "7");
  EXPECT_EQ(final_number(".5"), "0.5");
  EXPECT_EQ(final_number("0.0"), "0");
  EXPECT_EQ(final_number("+3"), "3");
  EXPECT_EQ(final_number("100"), "100");
}

TEST(FinalNumberTest, CommasSeparateThousandsOnly) {
  EXPECT_EQ(final_number("10,20"), "20");
  EXPECT_EQ(final_number("1, 234"), "234");
  EXPECT_EQ(final_number("5,0000"), "0");
}

TEST(FinalNumberTest, AMinusIsNotADifference) {
  EXPECT_EQ(final_number("x = -5"), "-5");
  EXPECT_EQ(final_number("-$5"), "-5");
  EXPECT_EQ(final_number("$-5"), "-5");
  EXPECT_EQ(final_number("16-3"), "3");
  EXPECT_EQ(final_number("16 - 3"), "3");
  EXPECT_EQ(final_number("-0"), "0");
}

TEST(Gsm8kTest, ReadsTheFile) {
  const auto problems = read_word_problems(kFolder + "test.jsonl", 0);
  ASSERT_EQ(problems.size(), 8U);
  std::vector<std::string> numbers;
  for (const WordProblem& problem : problems) numbers.push_back(problem.number);
  EXPECT_EQ(numbers, (std::vector<std::string>{"18", "3", "70000", "540", "20", "64", "260", "160"}));
  EXPECT_EQ(problems[1].solution,
            "It takes 2/2=1 bolt of white fiber\nSo the total amount of fabric is 2+1=3 bolts of fabric\n#### 3");
  EXPECT_EQ(read_word_problems(kFolder + "test.jsonl", 3).size(), 3U);
}

TEST(Gsm8kTest, RefusesASolutionWithoutItsNumber) {
  const TemporaryFolder folder;
  folder.write("test.jsonl", "{\"question\": \"How many?\", \"answer\": \"It is 3.\"}");
  try {
    read_word_problems(folder.path("test.jsonl"), 0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), folder.path("test.jsonl") + ", line 1: 'answer' does not end with '#### ' and a number");
  }
}

TEST(Gsm8kTest, AsksWithAndWithoutExamples) {
  const WordProblem problem{"How many?", "Two.\n#### 2", "2"};
  const WordProblem example{"How much?", "Three.\n#### 3", "3"};
  const TaskPrompt bare = word_problem_prompt(problem, {});
  ASSERT_EQ(bare.messages.size(), 1U);
  EXPECT_TRUE(bare.messages[0].content.starts_with("How many?\n\n"));
  EXPECT_TRUE(bare.messages[0].content.ends_with("as a number."));
  EXPECT_TRUE(bare.plain.starts_with("Question: How many?\n\n")) << bare.plain;
  EXPECT_TRUE(bare.plain.ends_with("\nAnswer:"));

  const TaskPrompt with = word_problem_prompt(problem, {&example, 1});
  ASSERT_EQ(with.messages.size(), 3U);
  EXPECT_EQ(with.messages[1].role, "assistant");
  EXPECT_EQ(with.messages[1].content, "Three.\n#### 3");
  EXPECT_EQ(with.messages[2].content, "How many?");
  EXPECT_EQ(with.plain, "Question: How much?\nAnswer: Three.\n#### 3\n\nQuestion: How many?\nAnswer:");
}

TEST(Gsm8kTest, ItemsAreSolvedByTheirNumber) {
  const WordTokenizer tokenizer;
  const auto items = word_problem_items(read_word_problems(kFolder + "test.jsonl", 3), {}, {.tokenizer = &tokenizer});
  ASSERT_EQ(items.size(), 3U);
  EXPECT_EQ(items[2].id, "2");
  EXPECT_TRUE(tokenizer.decode(items[2].prompt).starts_with("Question: Josh decides"));
  EXPECT_TRUE(solves(items[2], "He made a profit of $70,000.00."));
  EXPECT_FALSE(solves(items[2], "He made a profit of $7,000."));
  EXPECT_FALSE(solves(items[2], "He made a profit."));
  EXPECT_FALSE(solves(items[2], "#### 70000\nThat is 2 houses."));
  EXPECT_TRUE(solves_like_examples(items[2], "#### 70000\nThat is 2 houses."));
}

}  // namespace
}  // namespace kivi
