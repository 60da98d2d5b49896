#include "eval/tasks/task.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace kivi {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const ConfidenceInterval& interval) {
  return {interval.low, interval.high};
}

Json to_json(const MeanEstimate& mean) {
  return {{"value", mean.value}, {"interval", to_json(mean.interval)}};
}

Json cells_to_json(std::span<const CellResult> cells) {
  Json list = Json::array();
  for (const CellResult& c : cells) {
    list.push_back({{"context", c.cell.context}, {"depth", c.cell.depth}, {"n", c.n_items}, {"right", c.n_right}});
  }
  return list;
}

Json items_to_json(std::span<const TaskItem> items, const TaskRun& run) {
  Json list = Json::array();
  for (size_t i = 0; i < items.size(); ++i) {
    const TaskOutcome& outcome = run.outcomes[i];
    Json item = {{"id", items[i].id}, {"right", outcome.is_right}, {"answer", outcome.answer}};
    if (outcome.share) item["mc2"] = *outcome.share;
    item["expected"] = items[i].expected;
    item["prompt_tokens"] = items[i].prompt.size();
    list.push_back(std::move(item));
  }
  return list;
}

}  // namespace

TaskSummary summarise(const TaskRun& run, const TaskRun& base) {
  TaskSummary summary{.n_items = std::ssize(run.outcomes)};
  std::vector<double> shares;
  std::vector<double> differences;
  for (size_t i = 0; i < run.outcomes.size(); ++i) {
    const TaskOutcome& here = run.outcomes[i];
    const TaskOutcome& there = base.outcomes[i];
    summary.n_right += here.is_right ? 1 : 0;
    summary.only_this += here.is_right && !there.is_right ? 1 : 0;
    summary.only_base += there.is_right && !here.is_right ? 1 : 0;
    if (!here.share || !there.share) continue;
    shares.push_back(*here.share);
    differences.push_back(*here.share - *there.share);
  }
  summary.accuracy_interval = proportion_interval(summary.n_right, summary.n_items);
  summary.difference_interval = paired_difference_interval(summary.only_this, summary.only_base, summary.n_items);
  if (!shares.empty()) {
    summary.share = mean_of(shares);
    summary.share_difference = mean_of(differences);
  }
  return summary;
}

PromptTokens count_prompt_tokens(std::span<const TaskItem> items, const KvConfig& kv) {
  PromptTokens mean;
  const auto n = static_cast<double>(std::max<size_t>(items.size(), 1));
  const format::WindowPolicy keys = kv.key_policy();
  const format::WindowPolicy values = kv.value_policy();
  for (const TaskItem& item : items) {
    const auto n_tokens = static_cast<int64_t>(item.prompt.size());
    mean.all += static_cast<double>(n_tokens) / n;
    mean.packed_keys += static_cast<double>(keys.n_packed(n_tokens)) / n;
    mean.packed_values += static_cast<double>(values.n_packed(n_tokens)) / n;
  }
  return mean;
}

std::vector<CellResult> count_cells(std::span<const TaskItem> items, const TaskRun& run) {
  std::vector<CellResult> cells;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].cell) continue;
    const auto found = std::ranges::find(cells, *items[i].cell, &CellResult::cell);
    CellResult& cell = found != cells.end() ? *found : cells.emplace_back(CellResult{.cell = *items[i].cell});
    ++cell.n_items;
    cell.n_right += run.outcomes[i].is_right ? 1 : 0;
  }
  return cells;
}

nlohmann::ordered_json to_json(std::span<const TaskItem> items, std::span<const TaskRun> runs) {
  Json results = Json::array();
  for (const TaskRun& run : runs) {
    const TaskSummary summary = summarise(run, runs.front());
    const PromptTokens tokens = count_prompt_tokens(items, run.kv);
    Json result = {{"kv", run.kv.name},
                   {"n", summary.n_items},
                   {"right", summary.n_right},
                   {"accuracy", summary.accuracy()},
                   {"interval", to_json(summary.accuracy_interval)},
                   {"difference",
                    {{"to", runs.front().kv.name},
                     {"value", summary.difference()},
                     {"interval", to_json(summary.difference_interval)},
                     {"only_this", summary.only_this},
                     {"only_base", summary.only_base}}}};
    if (summary.share) {
      result["mc2"] = to_json(*summary.share);
      result["mc2_difference"] = to_json(*summary.share_difference);
    }
    result["prompt_tokens"] = {
        {"mean", tokens.all}, {"packed_keys", tokens.packed_keys}, {"packed_values", tokens.packed_values}};
    result["seconds"] = run.seconds;
    const std::vector<CellResult> cells = count_cells(items, run);
    if (!cells.empty()) result["cells"] = cells_to_json(cells);
    result["items"] = items_to_json(items, run);
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace kivi
