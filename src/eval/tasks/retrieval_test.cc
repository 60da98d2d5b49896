#include "eval/tasks/retrieval.h"

#include <gtest/gtest.h>

#include <set>

#include "core/error.h"
#include "eval/tasks/task_data.h"
#include "eval/tasks/word_tokenizer.h"
#include "io/safetensors_builder.h"

namespace kivi {
namespace {

const std::string kData = std::string(KIVI_SOURCE_DIR) + "/tests/data";

class RetrievalTest : public ::testing::Test {
 protected:
  PasskeyPrompts prompts = read_passkey_prompts(kData + "/kivi-passkey/passkey_examples.jsonl");
  WordTokenizer tokenizer;
  PromptFormat format{.tokenizer = &tokenizer};
  RetrievalGrid grid{.contexts = {300, 600}, .depths = {0.0, 0.5, 1.0}, .n_per_cell = 3, .answer_tokens = 10};

  std::vector<std::string> essays() const {
    std::vector<std::string> texts;
    for (const std::string& path : find_task_texts(kData, "needle-essays")) texts.push_back(read_task_text(path));
    return texts;
  }
};

TEST_F(RetrievalTest, ReadsThePapersPrompts) {
  ASSERT_EQ(prompts.prompts.size(), 2U);
  EXPECT_EQ(prompts.prompts[0].key, "74509");
  EXPECT_DOUBLE_EQ(prompts.prompts[0].depth, 0.25);
  EXPECT_DOUBLE_EQ(prompts.prompts[1].depth, 0.5);
  EXPECT_EQ(prompts.filler.size(), 20U);
  EXPECT_TRUE(prompts.instruction.starts_with("There is an important info hidden"));
  EXPECT_EQ(prompts.line_of("74509"), prompts.key_line);
  EXPECT_EQ(prompts.line_of("123456"), "The pass key is 123456. Remember it. 123456 is the pass key.\n");
}

TEST_F(RetrievalTest, RefusesAPromptWithoutItsKey) {
  const TemporaryFolder folder;
  folder.write("a.jsonl", R"({"input": "Find it.\nThe key is 1.\nGrass.", "target": "2"})");
  EXPECT_THROW(read_passkey_prompts(folder.path("a.jsonl")), Error);
}

TEST_F(RetrievalTest, PasskeysLieWhereTheyShould) {
  const auto items = passkey_items(prompts, grid, format);
  ASSERT_EQ(items.size(), 18U);
  std::set<std::string> keys;
  for (const TaskItem& item : items) {
    const std::string text = tokenizer.decode(item.prompt);
    const std::string line = prompts.line_of(item.expected);
    keys.insert(item.expected);
    EXPECT_EQ(item.expected.size(), 5U);
    EXPECT_TRUE(text.starts_with(prompts.instruction));
    EXPECT_TRUE(text.ends_with("\nWhat is the pass key? The pass key is"));
    EXPECT_LE(std::ssize(item.prompt), item.cell->context - 10);
    EXPECT_GT(std::ssize(item.prompt), item.cell->context - 10 - 50) << "a line more would fit";
    const size_t at = text.find(line);
    ASSERT_NE(at, std::string::npos);
    const auto n_filler = static_cast<double>(text.size() - prompts.instruction.size() - line.size() - 38);
    EXPECT_NEAR(static_cast<double>(at - prompts.instruction.size()) / n_filler, item.cell->depth, 60 / n_filler);
  }
  EXPECT_EQ(keys.size(), 3U) << "the same in each cell: two of the paper, one more";
  EXPECT_TRUE(keys.contains("74509") && keys.contains("75503"));
}

TEST_F(RetrievalTest, ThePapersPromptsStayAsTheyAre) {
  const auto items = paper_passkey_items(prompts, 10, format);
  ASSERT_EQ(items.size(), 2U);
  EXPECT_EQ(items[1].id, "paper/1");
  EXPECT_EQ(items[1].cell->context, std::ssize(items[1].prompt) + 10);
  EXPECT_EQ(tokenizer.decode(items[1].prompt), prompts.prompts[1].text + "What is the pass key? The pass key is");
}

TEST_F(RetrievalTest, NeedlesLieWhereTheyShould) {
  const auto items = needle_items(essays(), grid, format);
  ASSERT_EQ(items.size(), 18U);
  EXPECT_NE(items[0].expected, items[1].expected);
  for (const TaskItem& item : items) {
    const std::string text = tokenizer.decode(item.prompt);
    EXPECT_LE(std::ssize(item.prompt), item.cell->context - 10);
    EXPECT_TRUE(text.ends_with("?\nAnswer:")) << "the question is whole";
    const size_t question = text.rfind("\n\nQuestion: ");
    const size_t begin = text.find("\n\n") + 2;
    const size_t at = text.find(item.expected);
    ASSERT_TRUE(at < question) << item.expected << "\n" << text;
    EXPECT_EQ(text.find(item.expected, at + 1), std::string::npos) << "it is said once, and not in the question";
    const auto n_text = static_cast<double>(question - begin);
    EXPECT_NEAR(static_cast<double>(at - begin) / n_text, item.cell->depth, 0.12) << item.id;
  }
}

TEST_F(RetrievalTest, TheChatFormatAsksTheSame) {
  const TaskItem plain = needle_items(essays(), grid, format)[0];
  format.chat = ChatFormat::kChatML;
  const std::string text = tokenizer.decode(needle_items(essays(), grid, format)[0].prompt);
  EXPECT_TRUE(text.starts_with("<|im_start|>user\nRead the text")) << text;
  EXPECT_TRUE(text.ends_with("?<|im_end|>\n<|im_start|>assistant\n"));
  EXPECT_NE(text.find(plain.expected), std::string::npos);
}

TEST(SpacedDepthsTest, ReachBothEnds) {
  EXPECT_EQ(spaced_depths(1), (std::vector<double>{0.5}));
  EXPECT_EQ(spaced_depths(2), (std::vector<double>{0, 1}));
  EXPECT_EQ(spaced_depths(5), (std::vector<double>{0, 0.25, 0.5, 0.75, 1}));
}

TEST(FindsTest, IgnoresCaseAndSpace) {
  const TaskItem item{.id = "", .expected = "smoked paprika"};
  EXPECT_TRUE(finds(item, "It is Smoked\n Paprika."));
  EXPECT_FALSE(finds(item, "It is smoked."));
  EXPECT_FALSE(finds(item, ""));
}

}  // namespace
}  // namespace kivi
