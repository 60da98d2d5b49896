// kivi eval passkey, needle, gsm8k, truthfulqa: what a KV cache costs on tasks, item by item beside f16.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "commands.h"
#include "core/error.h"
#include "eval/tasks/generation.h"
#include "eval/tasks/gsm8k.h"
#include "eval/tasks/retrieval.h"
#include "eval/tasks/task_data.h"
#include "eval/tasks/truthfulqa.h"
#include "task_command.h"

namespace kivi::app {
namespace {

class Gsm8kCommand final : public TaskCommand {
 public:
  Gsm8kCommand() : TaskCommand("gsm8k") {}

 private:
  void add_options(CLI::App& app) override {
    add_limit(app);
    app.add_option("--shots", n_shots_, "Examples before each question, from train.jsonl")
        ->check(CLI::Range(0, 1000))
        ->capture_default_str()
        ->type_name("N");
    add_generation_options(app, 512);
  }
  void read() override {
    problems_ = read_word_problems(find_task_file(data_, "gsm8k", "test.jsonl"), limit_);
    if (n_shots_ == 0) return;
    const std::string path = find_task_file(data_, "gsm8k", "train.jsonl");
    examples_ = read_word_problems(path, n_shots_);
    if (std::ssize(examples_) < n_shots_) {
      fail(ErrorCode::kInvalidArgument, "--shots {}: {} has {}; use at most that", n_shots_, path, examples_.size());
    }
  }
  std::vector<TaskItem> make_items(const Model& /*model*/, const PromptFormat& format) override {
    return word_problem_items(problems_, examples_, format);
  }
  Outcomes answer(const Session& session, std::span<const TaskItem> items, const KvConfig& kv,
                  const ProgressCallback& progress) override {
    return generate(session, items, kv, {std::string(kNextWordProblem)}, n_shots_ > 0 ? solves_like_examples : solves,
                    progress);
  }
  nlohmann::ordered_json settings() const override { return {{"shots", n_shots_}, {"max_tokens", max_tokens_}}; }

  int64_t n_shots_ = 0;
  std::vector<WordProblem> problems_, examples_;
};

// Passkey and needle.
class RetrievalCommand : public TaskCommand {
 public:
  RetrievalCommand(std::string name, int64_t answer_tokens, int64_t n_per_cell)
      : TaskCommand(std::move(name)), default_tokens_(answer_tokens) {
    limit_ = n_per_cell;
  }

 protected:
  void add_options(CLI::App& app) override {
    contexts_option_ = app.add_option("--contexts", contexts_,
                                      "Tokens of prompt and answer; default: those of 1024,2048,4096,8192 that the "
                                      "model has")
                           ->delimiter(',')
                           ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
                           ->type_name("N1,N2,...");
    app.add_option("--depths", n_depths_, "Depths in each context, from its begin to its end")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--limit", limit_, "Items of each context and depth")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str()
        ->type_name("N");
    add_generation_options(app, default_tokens_);
  }
  // Of the contexts asked for, else of the usual ones that the model has.
  RetrievalGrid grid(const Model& model) const {
    const int64_t longest = model.config.context_length;
    std::vector<int64_t> contexts = contexts_;
    if (contexts_option_->empty()) std::erase_if(contexts, [=](int64_t context) { return context > longest; });
    if (contexts.empty()) contexts = {longest};
    for (const int64_t context : contexts) {
      if (context <= longest) continue;
      fail(ErrorCode::kInvalidArgument, "--contexts {}: the model's context is {}; use at most that", context, longest);
    }
    return {.contexts = std::move(contexts),
            .depths = spaced_depths(n_depths_),
            .n_per_cell = limit_,
            .answer_tokens = max_tokens_};
  }
  Outcomes answer(const Session& session, std::span<const TaskItem> items, const KvConfig& kv,
                  const ProgressCallback& progress) override {
    return generate(session, items, kv, {}, finds, progress);
  }
  nlohmann::ordered_json settings() const override { return {{"max_tokens", max_tokens_}}; }

  CLI::Option* contexts_option_ = nullptr;

 private:
  int64_t default_tokens_;
  std::vector<int64_t> contexts_ = {1024, 2048, 4096, 8192};
  int64_t n_depths_ = 5;
};

class PasskeyCommand final : public RetrievalCommand {
 public:
  PasskeyCommand() : RetrievalCommand("passkey", 16, 5) {}

 private:
  void add_options(CLI::App& app) override {
    RetrievalCommand::add_options(app);
    app.add_flag("--paper", is_paper_, "The paper's prompts as they are, of some 11,000 tokens")
        ->excludes(contexts_option_);
  }
  void read() override {
    prompts_ = read_passkey_prompts(find_task_file(data_, "kivi-passkey", "passkey_examples.jsonl"));
  }
  std::vector<TaskItem> make_items(const Model& model, const PromptFormat& format) override {
    return is_paper_ ? paper_passkey_items(prompts_, max_tokens_, format)
                     : passkey_items(prompts_, grid(model), format);
  }

  bool is_paper_ = false;
  PasskeyPrompts prompts_;
};

class NeedleCommand final : public RetrievalCommand {
 public:
  NeedleCommand() : RetrievalCommand("needle", 48, 4) {}

 private:
  void read() override {
    for (const std::string& path : find_task_texts(data_, "needle-essays")) essays_.push_back(read_task_text(path));
  }
  std::vector<TaskItem> make_items(const Model& model, const PromptFormat& format) override {
    return needle_items(essays_, grid(model), format);
  }

  std::vector<std::string> essays_;
};

class TruthfulQaCommand final : public TaskCommand {
 public:
  TruthfulQaCommand() : TaskCommand("truthfulqa") {}

 private:
  void add_options(CLI::App& app) override { add_limit(app); }
  void read() override {
    questions_ = read_choice_questions(find_task_file(data_, "truthfulqa", "mc_task.json"), limit_);
  }
  std::vector<TaskItem> make_items(const Model& /*model*/, const PromptFormat& format) override {
    std::vector<TaskItem> items;
    for (const ChoiceQuestion& question : questions_) {
      tokens_.push_back(encode_choices(*format.tokenizer, question));
      for (const std::vector<TokenId>& answer : tokens_.back().answers) {
        max_tokens_ = std::max(max_tokens_, std::ssize(answer));
      }
      const auto is_right = [](const Choice& choice) { return choice.is_single && choice.is_true; };
      items.push_back({.id = fmt::format("{}", items.size()),
                       .expected = std::ranges::find_if(question.choices, is_right)->text,
                       .prompt = tokens_.back().prompt});
    }
    return items;
  }
  Outcomes answer(const Session& session, std::span<const TaskItem> /*items*/, const KvConfig& kv,
                  const ProgressCallback& progress) override {
    const int64_t batch = chosen_batch(*session.backend, batch_);
    const auto likelihoods = answer_likelihoods(*session.backend, *session.decoder, kv, tokens_, batch, progress);
    Outcomes outcomes;
    for (size_t i = 0; i < questions_.size(); ++i) outcomes.push_back(judge_choices(questions_[i], likelihoods[i]));
    return outcomes;
  }
  std::string describe_format(const Session& /*session*/, const PromptFormat& /*format*/) const override {
    return "plain text with six examples; answers go through decode";
  }
  nlohmann::ordered_json settings() const override { return nlohmann::ordered_json::object(); }

  std::vector<ChoiceQuestion> questions_;
  std::vector<ChoiceTokens> tokens_;
};

template <typename Command>
void add(CLI::App& eval, const char* help) {
  auto command = std::make_shared<Command>();
  command->add_to(eval, help)->callback([command] { command->run(); });
}

}  // namespace

void add_eval_tasks(CLI::App& eval) {
  add<PasskeyCommand>(eval, "Find a key in a long text, by length and depth");
  add<NeedleCommand>(eval, "Find a sentence hidden in essays, by length and depth");
  add<Gsm8kCommand>(eval, "Solve word problems (GSM8K)");
  add<TruthfulQaCommand>(eval, "Choose answers by their likelihood through decode (TruthfulQA, multiple choice)");
}

}  // namespace kivi::app
