// kivi run: one answer, or a chat.
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "commands.h"
#include "core/error.h"
#include "generate.h"
#include "options.h"
#include "output.h"
#include "text/chat.h"

namespace kivi::app {
namespace {

constexpr int64_t kChatContext = 8192;  // of a chat without --context, if the model has as much

struct RunOptions {
  ModelOptions model;
  KvOptions kv{{std::string(kDefaultKvPreset)}};
  std::optional<std::string> prompt;
  std::string system;
  bool chat = false;
  bool raw = false;
  std::string chat_format;
  int64_t n_tokens = 512;
  std::optional<int64_t> context;
  int64_t max_step_tokens = EngineOptions{}.max_step_tokens;
  MemoryOptions memory;
  SamplingOptions sampling;
  bool stats = false;
};

// Ctrl-C stops an answer; a second one, or one outside an answer, ends the program.
volatile std::sig_atomic_t answering = 0;
volatile std::sig_atomic_t interrupted = 0;

void on_interrupt(int /*signal*/) {
  if (answering == 0 || interrupted != 0) std::_Exit(130);
  interrupted = 1;
}

class Runner {
 public:
  explicit Runner(const RunOptions& options);

  void answer_prompt();
  void chat();

 private:
  ChatFormat choose_format() const;
  std::vector<TokenId> encode(std::span<const ChatMessage> messages) const;
  void start_engine(int64_t context);
  Answer answer(std::vector<TokenId> prompt, bool keep_cached);
  void print_stats(const Finish& finish) const;

  const RunOptions& options_;
  KvConfig kv_;
  SamplingParams sampling_;
  Session session_;
  ChatFormat format_;
  int64_t longest_;  // context that the model or the user allows
  std::unique_ptr<Engine> engine_;
};

Runner::Runner(const RunOptions& options)
    : options_(options),
      kv_(options.kv.parse().front()),
      sampling_(options.sampling.parse()),
      session_(options.model.load({&kv_, 1})),
      format_(choose_format()),
      longest_(session_.model->config.context_length) {
  if (!options.context) return;
  if (*options.context > longest_) {
    fail(ErrorCode::kInvalidArgument, "--context {}: the model's context is {}; use at most that", *options.context,
         longest_);
  }
  longest_ = *options.context;
}

ChatFormat Runner::choose_format() const {
  if (options_.raw) return ChatFormat::kNone;
  const ChatFormat format =
      options_.chat_format.empty() ? session_.model->chat_format : parse_chat_format(options_.chat_format);
  if (format == ChatFormat::kNone && (options_.chat || !options_.prompt)) {
    fail(ErrorCode::kInvalidArgument,
         "{}: has no chat format that kivi knows; name one with --chat-format, or use --raw with -p",
         options_.model.path);
  }
  return format;
}

std::vector<TokenId> Runner::encode(std::span<const ChatMessage> messages) const {
  const Model& model = *session_.model;
  return encode_chat(*model.tokenizer, format_, messages, model.default_system_prompt);
}

void Runner::start_engine(int64_t context) {
  EngineOptions options{.kv = kv_, .capacity = {.max_tokens = context}, .max_step_tokens = options_.max_step_tokens};
  options_.memory.apply_to(options, *session_.backend);
  engine_ = std::make_unique<Engine>(*session_.backend, *session_.decoder, options);
}

Answer Runner::answer(std::vector<TokenId> prompt, bool keep_cached) {
  if (static_cast<int64_t>(prompt.size()) >= longest_) {
    fail(ErrorCode::kInvalidArgument, "prompt of {} tokens: the context of {} must hold it and its answer; {}",
         prompt.size(), longest_,
         longest_ < session_.model->config.context_length ? "shorten it or raise --context" : "shorten it");
  }
  Request request{.prompt = std::move(prompt),
                  .max_new_tokens = options_.n_tokens,
                  .stop_ids = session_.model->tokenizer->end_ids(),
                  .sampling = sampling_,
                  .keep_cached = keep_cached};
  answering = 1;
  Answer answer =
      generate(*engine_, *session_.model->tokenizer, std::move(request), show_text, [] { return interrupted != 0; });
  answering = 0;
  interrupted = 0;
  show_text("\n");
  if (options_.stats) print_stats(answer.finish);
  return answer;
}

void Runner::answer_prompt() {
  std::vector<TokenId> prompt;
  if (format_ == ChatFormat::kNone) {
    prompt = session_.model->tokenizer->encode(*options_.prompt, true, true);
  } else {
    std::vector<ChatMessage> messages;
    if (!options_.system.empty()) messages.push_back({"system", options_.system});
    messages.push_back({"user", *options_.prompt});
    prompt = encode(messages);
  }
  start_engine(std::min(longest_, static_cast<int64_t>(prompt.size()) + options_.n_tokens));
  answer(std::move(prompt), false);
}

void Runner::chat() {
  std::signal(SIGINT, on_interrupt);
  start_engine(options_.context ? longest_ : std::min(longest_, kChatContext));
  longest_ = engine_->cache().capacity().max_tokens;
  const bool is_terminal = isatty(STDIN_FILENO) != 0;
  if (is_terminal) {
    fmt::print(stderr, "{}, KV cache {}, context {}. Ctrl-C stops an answer, Ctrl-D ends the chat.\n",
               session_.model->config.name, kv_.name, longest_);
  }
  std::vector<ChatMessage> messages;
  if (!options_.system.empty()) messages.push_back({"system", options_.system});
  std::string line;
  for (;;) {
    if (is_terminal) fmt::print(stderr, "\n> ");
    if (!std::getline(std::cin, line)) break;
    if (line.empty()) continue;
    messages.push_back({"user", line});
    messages.push_back({"assistant", answer(encode(messages), true).text});
  }
  if (is_terminal) fmt::print(stderr, "\n");
}

void Runner::print_stats(const Finish& finish) const {
  const EngineStats stats = engine_->stats();
  const KvMemory& kv = finish.kv;
  const char* reason = finish.reason == FinishReason::kStop     ? "a stop token"
                       : finish.reason == FinishReason::kLength ? "the length limit"
                                                                : "Ctrl-C";
  fmt::print(stderr, "prompt {} tokens, answer {} tokens, ended by {}; seed {}\n", finish.n_prompt, finish.n_output,
             reason, sampling_.seed);
  fmt::print(stderr, "prefill {:.1f} tokens/s ({} tokens), decode {:.1f} tokens/s ({} tokens)\n",
             stats.prefill_tokens_per_s(), stats.prefill_tokens, stats.decode_tokens_per_s(), stats.decode_tokens);
  fmt::print(stderr, "KV cache {}: {:.2f} bits per element; packed {} B, window {} B, slack {} B, total {} B\n",
             kv_.name, kv.effective_bits_per_element(), kv.packed_bytes(), kv.window_bytes, kv.slack_bytes,
             kv.allocated_bytes());
  if (kv.dropped_tokens > 0) {
    fmt::print(stderr, "Layers that slide have dropped {} tokens: {} B\n", kv.dropped_tokens, kv.dropped_bytes);
  }
  fmt::print(stderr, "{}\n", session_.backend->info().detail);
}

}  // namespace

void add_run(CLI::App& app) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* run = app.add_subcommand("run", "Answer a prompt, or chat without -p");
  options->model.add_to(*run);
  options->kv.add_one_to(*run);
  CLI::Option* text = run->add_option("-p,--prompt", options->prompt, "Prompt")->type_name("TEXT");
  run->add_option_function<std::string>(
         "-f,--prompt-file", [options](const std::string& path) { options->prompt = read_text_file(path); },
         "Prompt from a file")
      ->excludes(text)
      ->type_name("FILE");
  run->add_option("-n", options->n_tokens, "Most tokens of an answer")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str()
      ->type_name("N");
  run->add_option("--context", options->context,
                  fmt::format("Tokens of prompt and answer; default: what they need; of a chat {}", kChatContext))
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 40))
      ->type_name("N");
  run->add_option("--step-tokens", options->max_step_tokens,
                  "Prompt tokens of a step; a longer prompt runs in chunks of this, each of which attends to the cache")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str()
      ->type_name("N");
  options->memory.add_to(*run);
  run->add_option("--system", options->system, "System message of a chat")->type_name("TEXT");
  CLI::Option* chat = run->add_flag("--chat", options->chat, "Put the prompt into the chat format (default if known)");
  CLI::Option* raw = run->add_flag("--raw", options->raw, "Continue the prompt as it is; special tokens are read");
  raw->excludes(chat);
  run->add_option("--chat-format", options->chat_format,
                  "chatml, llama2, llama3, mistral, gemma, phi3, falcon or qwen3; default: the model's own")
      ->excludes(raw)
      ->type_name("NAME");
  options->sampling.add_to(*run);
  run->add_flag("--stats", options->stats, "Print speed and memory to standard error");
  run->callback([options] {
    if (options->raw && !options->prompt) fail(ErrorCode::kInvalidArgument, "--raw: needs a prompt; give -p TEXT");
    Runner runner(*options);
    if (options->prompt) {
      runner.answer_prompt();
    } else {
      runner.chat();
    }
  });
}

}  // namespace kivi::app
