// kivi eval: quality of KV caches on a text, and whether two devices agree. Tasks are in eval_tasks.cc.
#include <fmt/format.h>

#include <memory>
#include <sstream>

#include "commands.h"
#include "core/error.h"
#include "eval/agreement.h"
#include "eval/perplexity.h"
#include "options.h"
#include "output.h"

namespace kivi::app {
namespace {

struct PerplexityCommand {
  ModelOptions model;
  KvOptions kv{{"f16", std::string(kDefaultKvPreset), "kivi2"}};
  std::string text;
  PerplexityOptions options;
  JsonOutput json;

  void run();
};

void PerplexityCommand::run() {
  options.kv = kv.parse();
  json.check();
  const std::string content = read_text_file(text);
  const Session session = model.load(options.kv);
  const std::vector<TokenId> tokens = session.model->tokenizer->encode(content, true, false);
  options.first_token = session.model->tokenizer->begin_of_text();
  std::vector<PerplexityResult> results;
  {
    Progress progress("perplexity");
    options.progress = [&progress](double part) { progress.update(part); };
    results = measure_perplexity(*session.backend, *session.decoder, tokens, options);
  }
  std::vector<std::vector<std::string>> rows = {
      {"KV cache", "bits", "effective bits", "perplexity", "nll", "+-", "KL to f16", "top-1", "tokens"}};
  for (const PerplexityResult& r : results) {
    rows.push_back({r.kv, fmt::format("{:.2f}", r.bits_per_element),
                    fmt::format("{:.2f}", r.effective_bits_per_element), fmt::format("{:.3f}", r.perplexity),
                    fmt::format("{:.4f}", r.nll_per_token), fmt::format("{:.4f}", r.nll_stderr),
                    fmt::format("{:.4f}", r.kl_to_f16), fmt::format("{:.1f} %", 100 * r.top1_agreement),
                    fmt::format("{}", r.n_tokens)});
  }
  if (json.text() == stdout) print_table(stdout, rows);
  json.write(to_json(results));
}

struct AgreementCommand {
  ModelOptions model;
  std::string other_device = "cpu";
  KvOptions kv{{"f16", std::string(kDefaultKvPreset), "kivi2"}};
  std::string prompts;
  AgreementOptions options;
  JsonOutput json;

  void run();
};

std::vector<std::vector<TokenId>> encode_lines(const Tokenizer& tokenizer, const std::string& path) {
  std::vector<std::vector<TokenId>> prompts;
  std::istringstream lines(read_text_file(path));
  for (std::string line; std::getline(lines, line);) prompts.push_back(tokenizer.encode(line, true, false));
  if (prompts.empty()) fail(ErrorCode::kInvalidArgument, "{}: has no line; give a prompt in each", path);
  return prompts;
}

void AgreementCommand::run() {
  options.kv = kv.parse();
  json.check();
  const Session session = model.load(options.kv);
  ModelOptions other_model = model;
  other_model.backend.device = other_device;
  other_model.backend.dtype.reset();
  const Session other = other_model.load(options.kv);
  options.prompts = encode_lines(*session.model->tokenizer, prompts);
  std::vector<AgreementResult> results;
  {
    Progress progress("agreement");
    options.progress = [&progress](double part) { progress.update(part); };
    results = measure_agreement({session.backend.get(), session.decoder.get()},
                                {other.backend.get(), other.decoder.get()}, options);
  }
  std::vector<std::vector<std::string>> rows = {
      {"KV cache", "prompt", "same tokens", "gap here", "gap there", "largest logit difference"}};
  for (const AgreementResult& r : results) {
    const auto gap = [&r](int side) { return r.difference ? fmt::format("{:.4f}", r.difference->gaps[side]) : "-"; };
    rows.push_back({r.kv, fmt::format("{}", r.prompt + 1), fmt::format("{} of {}", r.n_same, options.n_tokens), gap(0),
                    gap(1), fmt::format("{:.4f}", r.largest_logit_difference)});
  }
  if (json.text() == stdout) print_table(stdout, rows);
  json.write({{"device", session.backend->info().device},
              {"other_device", other.backend->info().device},
              {"model", session.model->config.name},
              {"tokens", options.n_tokens},
              {"results", to_json(results)}});
}

void add_perplexity(CLI::App& eval) {
  auto command = std::make_shared<PerplexityCommand>();
  CLI::App* perplexity = eval.add_subcommand("perplexity", "Perplexity of a text, every token through decode");
  command->model.add_to(*perplexity);
  perplexity->add_option("--text", command->text, "Text to predict")->required()->type_name("FILE");
  command->kv.add_to(*perplexity);
  PerplexityOptions& options = command->options;
  perplexity->add_option("--context", options.context, "Tokens of a chunk; the second half of each is scored")
      ->capture_default_str()
      ->type_name("N");
  perplexity->add_option("--chunks", options.n_chunks, "Chunks to run; default: the whole text")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->type_name("K");
  perplexity->add_option("--first-chunk", options.first_chunk, "Chunk to start with")
      ->capture_default_str()
      ->type_name("I");
  perplexity->add_option("--batch", options.batch, "Chunks that run side by side; changes the speed, not the result")
      ->capture_default_str()
      ->type_name("N");
  command->json.add_to(*perplexity);
  perplexity->callback([command] { command->run(); });
}

void add_agreement(CLI::App& eval) {
  auto command = std::make_shared<AgreementCommand>();
  CLI::App* agreement =
      eval.add_subcommand("agreement", "Whether two devices continue prompts with the same text, greedily");
  command->model.add_to(*agreement);
  agreement->add_option("--with", command->other_device, "The other device")
      ->capture_default_str()
      ->type_name("DEVICE");
  command->kv.add_to(*agreement);
  agreement->add_option("--prompts", command->prompts, "A prompt in each line")->required()->type_name("FILE");
  agreement->add_option("-n", command->options.n_tokens, "Tokens of each continuation")
      ->capture_default_str()
      ->type_name("N");
  command->json.add_to(*agreement);
  agreement->callback([command] { command->run(); });
}

}  // namespace

void add_eval(CLI::App& app) {
  CLI::App* eval = app.add_subcommand("eval", "Measure quality");
  eval->require_subcommand(0, 1);  // so that an unknown one is named by the error
  eval->callback([eval] {
    if (!eval->get_subcommands().empty()) return;
    fail(ErrorCode::kInvalidArgument,
         "eval: what is to be measured? perplexity, agreement, passkey, needle, gsm8k or truthfulqa; see --help");
  });
  add_perplexity(*eval);
  add_agreement(*eval);
  add_eval_tasks(*eval);
}

}  // namespace kivi::app
