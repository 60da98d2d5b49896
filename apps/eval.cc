// kivi eval perplexity: quality of KV caches on a text.
#include <fmt/format.h>

#include <memory>

#include "commands.h"
#include "eval/perplexity.h"
#include "options.h"
#include "output.h"

namespace kivi::app {
namespace {

struct PerplexityCommand {
  ModelOptions model;
  KvOptions kv{{"f16", "kivi4", "kivi2"}};
  std::string text;
  PerplexityOptions options;
  JsonOutput json;

  void run();
};

void PerplexityCommand::run() {
  options.kv = kv.parse();
  json.check();
  const std::string content = read_text_file(text);
  const Session session = model.load();
  const std::vector<TokenId> tokens = session.model->tokenizer->encode(content, false, false);
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

}  // namespace

void add_eval(CLI::App& app) {
  auto command = std::make_shared<PerplexityCommand>();
  CLI::App* eval = app.add_subcommand("eval", "Measure quality")->require_subcommand(1);
  CLI::App* perplexity = eval->add_subcommand("perplexity", "Perplexity of a text, every token through decode");
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

}  // namespace kivi::app
