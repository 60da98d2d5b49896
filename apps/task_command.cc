#include "task_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <set>

#include "core/error.h"
#include "eval/tasks/generation.h"

namespace kivi::app {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string percent(double part) {
  return fmt::format("{:.1f} %", 100 * part);
}

std::string percent(const ConfidenceInterval& interval) {
  return fmt::format("{:.1f} to {:.1f}", 100 * interval.low, 100 * interval.high);
}

std::string points(double difference) {
  return fmt::format("{:+.1f}", 100 * difference);
}

std::string points(const ConfidenceInterval& interval) {
  return fmt::format("{:+.1f} to {:+.1f}", 100 * interval.low, 100 * interval.high);
}

Rows summary_rows(std::span<const TaskItem> items, std::span<const TaskRun> runs) {
  Rows rows = {{"KV cache", "right", "accuracy", "95 % interval", "to f16", "95 % interval", "only here", "only f16",
                "packed keys", "packed values", "seconds"}};
  const bool has_share = summarise(runs.front(), runs.front()).share.has_value();
  if (has_share) rows[0].insert(rows[0].begin() + 8, {"MC2", "95 % interval", "to f16", "95 % interval"});
  for (const TaskRun& run : runs) {
    const bool is_base = &run == &runs.front();
    const TaskSummary s = summarise(run, runs.front());
    const PromptTokens tokens = count_prompt_tokens(items, run.kv);
    const auto unless_base = [is_base](std::string text) { return is_base ? "-" : std::move(text); };
    std::vector<std::string> row = {run.kv.name,
                                    fmt::format("{} of {}", s.n_right, s.n_items),
                                    percent(s.accuracy()),
                                    percent(s.accuracy_interval),
                                    unless_base(points(s.difference())),
                                    unless_base(points(s.difference_interval)),
                                    unless_base(fmt::format("{}", s.only_this)),
                                    unless_base(fmt::format("{}", s.only_base))};
    if (has_share) {
      row.insert(row.end(),
                 {percent(s.share->value), percent(s.share->interval), unless_base(points(s.share_difference->value)),
                  unless_base(points(s.share_difference->interval))});
    }
    row.insert(row.end(), {fmt::format("{:.1f}", tokens.packed_keys), fmt::format("{:.1f}", tokens.packed_values),
                           fmt::format("{:.1f}", run.seconds)});
    rows.push_back(std::move(row));
  }
  return rows;
}

// Right answers by context and depth.
Rows cell_rows(std::span<const TaskItem> items, std::span<const TaskRun> runs) {
  std::set<int64_t> contexts;
  std::set<double> depths;
  for (const TaskItem& item : items) {
    contexts.insert(item.cell->context);
    depths.insert(item.cell->depth);
  }
  Rows rows = {{"KV cache", "context"}};
  for (const double depth : depths) rows[0].push_back(fmt::format("{:.0f} %", 100 * depth));
  for (const TaskRun& run : runs) {
    const std::vector<CellResult> cells = count_cells(items, run);
    for (const int64_t context : contexts) {
      std::vector<std::string>& row = rows.emplace_back(2);
      row = {run.kv.name, fmt::format("{}", context)};
      for (const double depth : depths) {
        const auto cell = std::ranges::find(cells, TaskCell{context, depth}, &CellResult::cell);
        row.push_back(cell == cells.end() ? "-" : fmt::format("{}/{}", cell->n_right, cell->n_items));
      }
    }
  }
  return rows;
}

}  // namespace

CLI::App* TaskCommand::add_to(CLI::App& eval, const char* help) {
  CLI::App* app = eval.add_subcommand(name_, help);
  model_.add_to(*app);
  kv_.add_to(*app);
  app->add_option("--data", data_, "Folder of the data sets, or of this one")->required()->type_name("DIR");
  app->add_option("--batch", batch_, "Sequences side by side, at most; default: 8, on a GPU 256")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->type_name("N");
  add_options(*app);
  json_.add_to(*app);
  return app;
}

void TaskCommand::add_limit(CLI::App& app) {
  app.add_option("--limit", limit_, "Items, from the first one on; default: all")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->type_name("N");
}

void TaskCommand::add_generation_options(CLI::App& app, int64_t max_tokens) {
  max_tokens_ = max_tokens;
  app.add_option("--max-tokens", max_tokens_, "Most tokens of an answer")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str()
      ->type_name("N");
  CLI::Option* raw = app.add_flag("--raw", raw_, "Ask in plain text, not in the chat format");
  app.add_option("--chat-format", chat_format_, "Default: the model's own; plain text if it has none")
      ->excludes(raw)
      ->type_name("NAME");
  memory_.add_to(app);
}

// f16 first, and once.
std::vector<KvConfig> TaskCommand::caches() const {
  std::vector<KvConfig> configs = kv_.parse();
  std::erase_if(configs, [](const KvConfig& config) { return !config.is_packed(); });
  configs.insert(configs.begin(), parse_kv_config("f16"));
  return configs;
}

PromptFormat TaskCommand::choose_format(const Model& model) const {
  const ChatFormat own = chat_format_.empty() ? model.chat_format : parse_chat_format(chat_format_);
  return {.tokenizer = model.tokenizer.get(),
          .chat = raw_ ? ChatFormat::kNone : own,
          .default_system = model.default_system_prompt};
}

std::string TaskCommand::describe_format(const Session& session, const PromptFormat& format) const {
  if (!format.is_plain()) return fmt::format("chat format {}", name(format.chat));
  const bool has_one = session.model->chat_format != ChatFormat::kNone;
  return has_one ? "plain text" : "plain text, for the model has no chat format that kivi knows";
}

void TaskCommand::check_lengths(const Session& session, std::span<const TaskItem> items) const {
  const int64_t context = session.model->config.context_length;
  for (const TaskItem& item : items) {
    if (std::ssize(item.prompt) + max_tokens_ <= context) continue;
    fail(ErrorCode::kInvalidArgument,
         "item {}: a prompt of {} tokens and an answer of {}: the model's context is {}; use shorter ones", item.id,
         item.prompt.size(), max_tokens_, context);
  }
}

Outcomes TaskCommand::generate(const Session& session, std::span<const TaskItem> items, const KvConfig& kv,
                               const std::vector<std::string>& stops,
                               bool (*is_right)(const TaskItem&, std::string_view),
                               const ProgressCallback& progress) const {
  GenerationOptions options{.max_new_tokens = max_tokens_, .stops = stops, .batch = batch_, .progress = progress};
  options.engine.kv = kv;
  memory_.apply_to(options.engine, *session.backend);
  std::vector<std::vector<TokenId>> prompts;
  for (const TaskItem& item : items) prompts.push_back(item.prompt);
  std::vector<std::string> answers =
      generate_answers(*session.backend, *session.decoder, *session.model->tokenizer, prompts, options);
  Outcomes outcomes;
  for (size_t i = 0; i < items.size(); ++i) {
    const bool right = is_right(items[i], answers[i]);
    outcomes.push_back({.is_right = right, .answer = std::move(answers[i])});
  }
  return outcomes;
}

void TaskCommand::run() {
  const std::vector<KvConfig> configs = caches();
  json_.check();
  read();
  const Session session = model_.load(configs);
  const PromptFormat format = choose_format(*session.model);
  const std::vector<TaskItem> items = make_items(*session.model, format);
  check_lengths(session, items);
  std::vector<TaskRun> runs;
  {
    Progress progress(name_);
    for (const KvConfig& config : configs) {
      const auto n_done = static_cast<double>(runs.size());
      const auto tell = [&](double part) { progress.update((n_done + part) / static_cast<double>(configs.size())); };
      const auto start = std::chrono::steady_clock::now();
      Outcomes outcomes = answer(session, items, config, tell);
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      runs.push_back({.kv = config, .outcomes = std::move(outcomes), .seconds = time.count()});
    }
  }
  const std::string format_name = describe_format(session, format);
  if (json_.text() == stdout) print(items, runs, format_name);
  nlohmann::ordered_json report = {{"task", name_}};
  report.update(describe(session));
  report["format"] = format_name;
  report.update(settings());
  report["results"] = to_json(items, runs);
  json_.write(report);
}

void TaskCommand::print(std::span<const TaskItem> items, std::span<const TaskRun> runs,
                        const std::string& format) const {
  fmt::print("{}: {} items, prompts of {:.0f} tokens on average; {}.\n", name_, items.size(),
             count_prompt_tokens(items, runs.front().kv).all, format);
  print_table(stdout, summary_rows(items, runs));
  for (const TaskRun& run : runs) {
    const PromptTokens tokens = count_prompt_tokens(items, run.kv);
    if (!run.kv.is_packed() || tokens.packed_keys + tokens.packed_values > 0) continue;
    fmt::print("{}: no prompt leaves the 16-bit window; what the answers add is all that is packed.\n", run.kv.name);
  }
  if (!items.front().cell) return;
  fmt::print("\nRight by context and depth:\n");
  print_table(stdout, cell_rows(items, runs));
}

}  // namespace kivi::app
