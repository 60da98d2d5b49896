// kivi compare: one prompt answered from several KV caches, and their memory, speed and quality in one table.
#include <fmt/format.h>

#include <memory>
#include <optional>
#include <utility>

#include "commands.h"
#include "core/error.h"
#include "eval/perplexity.h"
#include "generate.h"
#include "options.h"
#include "output.h"
#include "text/chat.h"

namespace kivi::app {
namespace {

struct CompareOptions {
  ModelOptions model;
  KvOptions kv{{"f16", std::string(kDefaultKvPreset), "kivi2"}};
  std::string prompt = "Explain in a few sentences what a key-value cache is.";
  int64_t n_tokens = 128;
  SamplingOptions sampling;
  MemoryOptions memory;
  std::string text;
  int64_t context = 1024;
  int64_t n_chunks = 2;
  JsonOutput json;
};

// What one KV cache did.
struct Row {
  std::string kv;
  std::string answer;
  KvMemory memory;  // at the end of the answer
  EngineStats speed;
  std::optional<double> perplexity{};

  double ratio() const {
    const double sixteen_bits = 2.0 * static_cast<double>(memory.elements);
    return sixteen_bits / static_cast<double>(memory.allocated_bytes());
  }
};

class Comparison {
 public:
  explicit Comparison(const CompareOptions& options)
      : options_(options),
        configs_(options.kv.parse()),
        sampling_(options.sampling.parse()),
        session_(options.model.load(configs_)) {}

  void run();

 private:
  std::vector<TokenId> encode_prompt() const;
  Row answer(const KvConfig& config, const std::vector<TokenId>& prompt, int64_t n_tokens,
             const std::function<void(std::string_view)>& show) const;
  void measure_quality(std::vector<Row>& rows) const;
  void print(const std::vector<Row>& rows, size_t n_prompt) const;
  void write_json(const std::vector<Row>& rows) const;

  const CompareOptions& options_;
  std::vector<KvConfig> configs_;
  SamplingParams sampling_;  // the same seed for all
  Session session_;
};

std::vector<TokenId> Comparison::encode_prompt() const {
  const Model& model = *session_.model;
  std::vector<TokenId> prompt;
  if (model.chat_format == ChatFormat::kNone) {
    prompt = model.tokenizer->encode(options_.prompt, true, false);
  } else {
    const ChatMessage message{"user", options_.prompt};
    prompt = encode_chat(*model.tokenizer, model.chat_format, {&message, 1}, model.default_system_prompt);
  }
  const auto n_prompt = static_cast<int64_t>(prompt.size());
  if (n_prompt + options_.n_tokens > model.config.context_length) {
    fail(ErrorCode::kInvalidArgument, "prompt of {} tokens and an answer of {}: the model's context is {}; shorten one",
         n_prompt, options_.n_tokens, model.config.context_length);
  }
  return prompt;
}

Row Comparison::answer(const KvConfig& config, const std::vector<TokenId>& prompt, int64_t n_tokens,
                       const std::function<void(std::string_view)>& show) const {
  EngineOptions options{.kv = config, .capacity = {.max_tokens = static_cast<int64_t>(prompt.size()) + n_tokens}};
  options_.memory.apply_to(options, *session_.backend);
  Engine engine(*session_.backend, *session_.decoder, options);
  const Request request{.prompt = prompt,
                        .max_new_tokens = n_tokens,
                        .stop_ids = session_.model->tokenizer->end_ids(),
                        .sampling = sampling_};
  const Answer answer = generate(engine, *session_.model->tokenizer, request, show);
  return {.kv = config.name, .answer = answer.text, .memory = answer.finish.kv, .speed = engine.stats()};
}

void Comparison::measure_quality(std::vector<Row>& rows) const {
  const std::vector<TokenId> tokens = session_.model->tokenizer->encode(read_text_file(options_.text), true, false);
  Progress progress("perplexity");
  const auto update = [&progress](double part) { progress.update(part); };
  const std::vector<PerplexityResult> results =
      measure_perplexity(*session_.backend, *session_.decoder, tokens,
                         {.kv = configs_,
                          .context = options_.context,
                          .n_chunks = options_.n_chunks,
                          .first_token = session_.model->tokenizer->begin_of_text(),
                          .progress = update});
  for (size_t i = 0; i < rows.size(); ++i) rows[i].perplexity = results[i].perplexity;
}

void Comparison::run() {
  const std::vector<TokenId> prompt = encode_prompt();
  const bool has_text = options_.json.text() == stdout;
  const auto show = [has_text](std::string_view text) {
    if (has_text) show_text(text);
  };
  // The first run reads the weights from disk: not a matter of its KV cache.
  answer(configs_.front(), {prompt.begin(), prompt.begin() + 1}, 2, [](std::string_view) {});
  std::vector<Row> rows;
  for (const KvConfig& config : configs_) {
    std::string title = fmt::format("--- {} ---\n", config.name);
    rows.push_back(answer(config, prompt, options_.n_tokens,
                          [&](std::string_view text) { show(std::exchange(title, {}) + std::string(text)); }));
    show(title);  // of an empty answer
    show("\n\n");
  }
  if (!options_.text.empty()) measure_quality(rows);
  if (has_text) print(rows, prompt.size());
  write_json(rows);
}

void Comparison::print(const std::vector<Row>& rows, size_t n_prompt) const {
  fmt::print("{}; {}\n", session_.model->config.name, session_.backend->info().detail);
  fmt::print("Prompt of {} tokens, answer of at most {}.", n_prompt, options_.n_tokens);
  if (!options_.text.empty()) {
    fmt::print(" Perplexity through decode, {} chunks of {} tokens.", options_.n_chunks, options_.context);
  }
  fmt::print("\n\n");
  std::vector<std::vector<std::string>> table = {{"KV cache", "bits/element", "packed", "window", "total",
                                                  "16 bits / total", "prefill tokens/s", "decode tokens/s",
                                                  "perplexity"}};
  for (const Row& row : rows) {
    table.push_back({row.kv, fmt::format("{:.2f}", row.memory.effective_bits_per_element()),
                     format_bytes(row.memory.packed_bytes()), format_bytes(row.memory.window_bytes),
                     format_bytes(row.memory.allocated_bytes()), fmt::format("{:.2f}", row.ratio()),
                     fmt::format("{:.0f}", row.speed.prefill_tokens_per_s()),
                     fmt::format("{:.1f}", row.speed.decode_tokens_per_s()),
                     row.perplexity ? fmt::format("{:.2f}", *row.perplexity) : "-"});
  }
  print_table(stdout, table);
}

void Comparison::write_json(const std::vector<Row>& rows) const {
  auto list = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    list.push_back({{"kv", row.kv},
                    {"answer", row.answer},
                    {"effective_bits_per_element", row.memory.effective_bits_per_element()},
                    {"packed_bytes", row.memory.packed_bytes()},
                    {"window_bytes", row.memory.window_bytes},
                    {"total_bytes", row.memory.allocated_bytes()},
                    {"ratio_to_16_bits", row.ratio()},
                    {"prefill_tokens_per_s", row.speed.prefill_tokens_per_s()},
                    {"decode_tokens_per_s", row.speed.decode_tokens_per_s()}});
    if (row.perplexity) list.back()["perplexity"] = *row.perplexity;
  }
  options_.json.write({{"model", session_.model->config.name},
                       {"device", session_.backend->info().device},
                       {"results", std::move(list)}});
}

}  // namespace

void add_compare(CLI::App& app) {
  auto options = std::make_shared<CompareOptions>();
  CLI::App* compare = app.add_subcommand("compare", "Answer one prompt from several KV caches; memory, speed, quality");
  options->model.add_to(*compare);
  options->kv.add_to(*compare);
  CLI::Option* text = compare->add_option("-p,--prompt", options->prompt, "Prompt")->type_name("TEXT");
  compare
      ->add_option_function<std::string>(
          "-f,--prompt-file", [options](const std::string& path) { options->prompt = read_text_file(path); },
          "Prompt from a file")
      ->excludes(text)
      ->type_name("FILE");
  compare->add_option("-n", options->n_tokens, "Most tokens of an answer")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str()
      ->type_name("N");
  compare->add_option("--text", options->text, "Text to measure perplexity on")->type_name("FILE");
  compare->add_option("--context", options->context, "Tokens of a chunk of the text")
      ->capture_default_str()
      ->type_name("N");
  compare->add_option("--chunks", options->n_chunks, "Chunks to measure")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str()
      ->type_name("K");
  options->memory.add_to(*compare);
  options->sampling.add_to(*compare);
  options->json.add_to(*compare);
  compare->callback([options] {
    options->json.check();
    Comparison(*options).run();
  });
}

}  // namespace kivi::app
