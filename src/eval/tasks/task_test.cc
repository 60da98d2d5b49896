#include "eval/tasks/task.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace kivi {
namespace {

class TaskTest : public ::testing::Test {
 protected:
  static TaskRun run_of(const std::string& kv, const std::vector<bool>& right) {
    TaskRun run{.kv = parse_kv_config(kv)};
    for (const bool is_right : right) run.outcomes.push_back({.is_right = is_right, .answer = is_right ? "yes" : "no"});
    return run;
  }
  static TaskItem item_of(const std::string& id, size_t n_prompt, TaskCell cell) {
    return {.id = id, .expected = "yes", .prompt = std::vector<TokenId>(n_prompt, 1), .cell = cell};
  }

  TaskRun base = run_of("f16", {true, true, true, false, false});
  TaskRun run = run_of("kivi2", {true, false, false, true, false});
};

TEST_F(TaskTest, SummarisesBesideTheBase) {
  const TaskSummary summary = summarise(run, base);
  EXPECT_EQ(summary.n_items, 5);
  EXPECT_EQ(summary.n_right, 2);
  EXPECT_EQ(summary.only_this, 1);
  EXPECT_EQ(summary.only_base, 2);
  EXPECT_DOUBLE_EQ(summary.accuracy(), 0.4);
  EXPECT_DOUBLE_EQ(summary.difference(), -0.2);
  EXPECT_DOUBLE_EQ(summary.accuracy_interval.low, proportion_interval(2, 5).low);
  EXPECT_DOUBLE_EQ(summary.difference_interval.high, paired_difference_interval(1, 2, 5).high);
  EXPECT_FALSE(summary.share);
}

TEST_F(TaskTest, SharesAreMeansAndPairedDifferences) {
  for (size_t i = 0; i < 5; ++i) {
    base.outcomes[i].share = 0.5;
    run.outcomes[i].share = 0.1 * static_cast<double>(i);
  }
  const TaskSummary summary = summarise(run, base);
  EXPECT_NEAR(summary.share->value, 0.2, 1e-12);
  EXPECT_NEAR(summary.share_difference->value, -0.3, 1e-12);
  EXPECT_LT(summary.share_difference->interval.low, -0.3);
}

TEST_F(TaskTest, CountsPromptTokensThatArePacked) {
  const std::vector<TaskItem> items = {item_of("a", 100, {}), item_of("b", 300, {})};
  const PromptTokens tokens = count_prompt_tokens(items, parse_kv_config("kivi2:residual=128"));
  EXPECT_DOUBLE_EQ(tokens.all, 200);
  EXPECT_DOUBLE_EQ(tokens.packed_keys, (0 + 256) / 2.0);
  EXPECT_DOUBLE_EQ(tokens.packed_values, (0 + 172) / 2.0);
  EXPECT_EQ(count_prompt_tokens(items, parse_kv_config("f16")).packed_keys, 0);
}

TEST_F(TaskTest, CountsCells) {
  const std::vector<TaskItem> items = {item_of("a", 1, {64, 0}), item_of("b", 1, {64, 1}), item_of("c", 1, {64, 0}),
                                       item_of("d", 1, {128, 0}), item_of("e", 1, {128, 0})};
  const auto cells = count_cells(items, run);
  ASSERT_EQ(cells.size(), 3U);
  EXPECT_EQ(cells[0].cell, (TaskCell{64, 0}));
  EXPECT_EQ(cells[0].n_items, 2);
  EXPECT_EQ(cells[0].n_right, 1);
  EXPECT_EQ(cells[2].n_right, 1);
}

TEST_F(TaskTest, JsonHasEveryOutcome) {
  const std::vector<TaskItem> items(5, item_of("a", 3, {64, 0.5}));
  const auto json = to_json(items, std::vector{base, run});
  ASSERT_EQ(json.size(), 2U);
  EXPECT_EQ(json[1]["kv"], "kivi2");
  EXPECT_EQ(json[1]["right"], 2);
  EXPECT_EQ(json[1]["difference"]["to"], "f16");
  EXPECT_EQ(json[1]["difference"]["only_base"], 2);
  EXPECT_EQ(json[1]["cells"][0]["n"], 5);
  ASSERT_EQ(json[1]["items"].size(), 5U);
  EXPECT_EQ(json[1]["items"][3]["right"], true);
  EXPECT_EQ(json[1]["items"][3]["answer"], "yes");
  EXPECT_EQ(json[1]["items"][3]["prompt_tokens"], 3);
}

}  // namespace
}  // namespace kivi
