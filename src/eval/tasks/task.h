// A task: items with one right answer each, what a model under one KV cache made of them, and what that says.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/kv_config.h"
#include "eval/tasks/confidence.h"
#include "text/tokenizer.h"

namespace kivi {

// Where a retrieval task hides its fact.
struct TaskCell {
  int64_t context = 0;  // tokens of prompt and answer
  double depth = 0.0;   // part of the text that is before the fact, in [0, 1]

  friend bool operator==(const TaskCell&, const TaskCell&) = default;
};

struct TaskItem {
  std::string id;
  std::string expected;  // the right answer, as the task compares it
  std::vector<TokenId> prompt{};
  std::optional<TaskCell> cell{};
};

struct TaskOutcome {
  bool is_right = false;
  std::string answer;
  std::optional<double> share{};  // TruthfulQA: probability of the true answers among all (MC2)
};

// Outcomes of all items, in their order.
struct TaskRun {
  KvConfig kv;
  std::vector<TaskOutcome> outcomes{};
  double seconds = 0.0;
};

// Of `run`, beside `base` on the same items.
struct TaskSummary {
  int64_t n_items = 0;
  int64_t n_right = 0;
  int64_t only_this = 0;  // right here alone
  int64_t only_base = 0;
  ConfidenceInterval accuracy_interval{};    // Wilson
  ConfidenceInterval difference_interval{};  // Tango: of accuracy() minus the base's
  std::optional<MeanEstimate> share{};
  std::optional<MeanEstimate> share_difference{};

  double accuracy() const { return n_items == 0 ? 0.0 : double(n_right) / double(n_items); }
  double difference() const { return n_items == 0 ? 0.0 : double(only_this - only_base) / double(n_items); }
};

TaskSummary summarise(const TaskRun& run, const TaskRun& base);

// Tokens of the prompts, and how many of them a full-attention layer has packed when the answer begins: means.
struct PromptTokens {
  double all = 0.0;
  double packed_keys = 0.0;
  double packed_values = 0.0;
};

PromptTokens count_prompt_tokens(std::span<const TaskItem> items, const KvConfig& kv);

// Items of one cell, in the order in which cells first come.
struct CellResult {
  TaskCell cell;
  int64_t n_items = 0;
  int64_t n_right = 0;
};

std::vector<CellResult> count_cells(std::span<const TaskItem> items, const TaskRun& run);

// [{"kv","n","right","accuracy","interval":[low,high],"difference":{...},"prompt_tokens":{...},"cells":[...],
//   "items":[{"id","right","answer",...}]}]; the first run is the base.
nlohmann::ordered_json to_json(std::span<const TaskItem> items, std::span<const TaskRun> runs);

}  // namespace kivi
