// A subcommand of eval that runs a task: its options, the runs of all caches, and what is written of them.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/progress.h"
#include "eval/tasks/task.h"
#include "eval/tasks/task_prompt.h"
#include "options.h"
#include "output.h"

namespace kivi::app {

using Outcomes = std::vector<TaskOutcome>;

// What all tasks have in common. f16 always runs, first.
class TaskCommand {
 public:
  explicit TaskCommand(std::string name) : name_(std::move(name)) {}
  virtual ~TaskCommand() = default;
  TaskCommand(const TaskCommand&) = delete;
  TaskCommand& operator=(const TaskCommand&) = delete;

  CLI::App* add_to(CLI::App& eval, const char* help);
  void run();

 protected:
  virtual void add_options(CLI::App& app) = 0;
  virtual void read() = 0;  // the data, before the model is loaded
  virtual std::vector<TaskItem> make_items(const Model& model, const PromptFormat& format) = 0;
  virtual Outcomes answer(const Session& session, std::span<const TaskItem> items, const KvConfig& kv,
                          const ProgressCallback& progress) = 0;
  virtual std::string describe_format(const Session& session, const PromptFormat& format) const;
  virtual nlohmann::ordered_json settings() const = 0;

  // --limit, of sets of items.
  void add_limit(CLI::App& app);
  // --chat-format, --raw and --max-tokens, of tasks that write answers.
  void add_generation_options(CLI::App& app, int64_t max_tokens);
  Outcomes generate(const Session& session, std::span<const TaskItem> items, const KvConfig& kv,
                    const std::vector<std::string>& stops, bool (*is_right)(const TaskItem&, std::string_view),
                    const ProgressCallback& progress) const;

  std::string data_;
  int64_t limit_ = 0;
  int64_t batch_ = 0;
  int64_t max_tokens_ = 0;  // of an answer

 private:
  std::vector<KvConfig> caches() const;
  PromptFormat choose_format(const Model& model) const;
  void check_lengths(const Session& session, std::span<const TaskItem> items) const;
  void print(std::span<const TaskItem> items, std::span<const TaskRun> runs, const std::string& format) const;

  std::string name_;
  ModelOptions model_;
  KvOptions kv_{{"f16", "kivi4", "kivi2"}};
  MemoryOptions memory_;
  std::string chat_format_;
  bool raw_ = false;
  JsonOutput json_;
};

}  // namespace kivi::app
