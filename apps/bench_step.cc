// kivi bench step: where the time of a decode step goes.
#include <fmt/format.h>

#include <memory>

#include "commands.h"
#include "eval/step_bench.h"
#include "options.h"
#include "output.h"

namespace kivi::app {
namespace {

struct StepCommand {
  ModelOptions model;
  KvOptions kv{{"f16", std::string(kDefaultKvPreset), "kivi2"}};
  MemoryOptions memory;
  StepOptions options{.tokens = 1024};
  JsonOutput json;

  void run();
};

void print(const StepResult& result) {
  const auto part = [&](double microseconds) {
    return fmt::format("{:.1f} %", 100 * microseconds / result.step_microseconds);
  };
  std::vector<std::vector<std::string>> rows = {{result.kv, "calls", "us", "of the step"}};
  rows.push_back({"step", "", fmt::format("{:.1f}", result.step_microseconds), ""});
  rows.push_back(
      {"  on the device", "", fmt::format("{:.1f}", result.device_microseconds), part(result.device_microseconds)});
  for (const StepResult::Part& p : result.parts) {
    rows.push_back({"    " + p.operation, fmt::format("{}", p.n_calls), fmt::format("{:.1f}", p.microseconds),
                    part(p.microseconds)});
  }
  rows.push_back({"  outside operations, at most", fmt::format("{}", result.n_launches),
                  fmt::format("{:.1f}", result.outside_microseconds()), part(result.outside_microseconds())});
  fmt::print("\n");
  print_table(stdout, rows);
}

void StepCommand::run() {
  options.kv = kv.parse();
  json.check();
  const Session session = model.load(options.kv);
  memory.apply_to(options.engine, *session.backend);
  options.on_result = [](const StepResult& result) {
    fmt::print(stderr, "{}: {:.3f} ms a step\n", result.kv, 1e-3 * result.step_microseconds);
  };
  const std::vector<StepResult> results = bench_step(*session.backend, *session.decoder, options);
  if (json.text() == stdout) {
    fmt::print("{}: {}\n{} sequences of {} tokens.\n", session.model->config.name, session.backend->info().detail,
               options.batch, options.tokens);
    for (const StepResult& result : results) print(result);
  }
  nlohmann::ordered_json report = describe(session);
  report["results"] = to_json(results);
  json.write(report);
}

}  // namespace

void add_bench_step(CLI::App& bench) {
  auto command = std::make_shared<StepCommand>();
  CLI::App* step = bench.add_subcommand("step", "Where the time of a decode step goes");
  command->model.add_to(*step);
  command->model.add_random_to(*step);
  command->kv.add_to(*step);
  StepOptions& options = command->options;
  step->add_option("--batch", options.batch, "Sequences")->capture_default_str()->type_name("N");
  step->add_option("--tokens", options.tokens, "Tokens of each, on average; they are not computed")
      ->capture_default_str()
      ->type_name("N");
  add_samples_option(*step, options.n_samples);
  command->memory.add_to(*step);
  command->json.add_to(*step);
  step->callback([command] { command->run(); });
}

}  // namespace kivi::app
