// kivi bench throughput: many requests at once.
#include <fmt/format.h>

#include <memory>
#include <optional>

#include "commands.h"
#include "eval/throughput_bench.h"
#include "options.h"
#include "output.h"

namespace kivi::app {
namespace {

struct ThroughputCommand {
  ModelOptions model;
  KvOptions kv{{"f16", std::string(kDefaultKvPreset), "kivi2"}};
  ThroughputOptions options{.n_requests = 64, .n_prompt = 161, .n_output = 338};
  MemoryOptions memory;
  bool sweeps = false;
  JsonOutput json;

  void run();
  void print(const Session& session, const std::vector<ThroughputResult>& results,
             const std::vector<MemoryComparison>& memory_rows) const;
};

std::string tokens_per_s(double value) {
  return value > 0 ? fmt::format("{:.1f}", value) : "-";
}

void ThroughputCommand::run() {
  options.kv = kv.parse();
  json.check();
  const Session session = model.load(options.kv);
  memory.apply_to(options.engine, *session.backend);
  options.free_bytes_at_start = session.free_bytes_at_start;
  options.weight_bytes = session.weight_bytes;
  std::optional<Progress> progress;
  options.progress = [&progress](double part) {
    if (!progress) progress.emplace("throughput");
    progress->update(part);
  };
  options.on_result = [&progress](const ThroughputResult& result) {
    progress.reset();
    fmt::print(stderr, "{}, {} requests: {:.1f} output tokens/s in {:.1f} s\n", result.kv, result.n_requests,
               result.output_tokens_per_s, result.seconds);
  };
  const auto results = sweeps ? sweep_batches(*session.backend, *session.decoder, options)
                              : bench_throughput(*session.backend, *session.decoder, options);
  const auto memory_rows = sweeps ? compare_memory(results) : std::vector<MemoryComparison>{};
  if (json.text() == stdout) print(session, results, memory_rows);
  nlohmann::ordered_json report = describe(session);
  report["prompts_computed"] = !options.decode_only;
  report["max_step_tokens"] = options.engine.max_step_tokens;
  report["memory_fraction"] = options.engine.memory_fraction;
  report["results"] = to_json(results);
  if (sweeps) report["memory"] = to_json(memory_rows);
  json.write(report);
}

void ThroughputCommand::print(const Session& session, const std::vector<ThroughputResult>& results,
                              const std::vector<MemoryComparison>& memory_rows) const {
  fmt::print("{}: {}\n", session.model->config.name, session.backend->info().detail);
  fmt::print("Requests of {} prompt and {} output tokens{}; weights {}.\n", options.n_prompt, options.n_output,
             options.decode_only ? ", prompts not computed" : "", format_bytes(session.weight_bytes));
  std::vector<std::vector<std::string>> rows = {{"KV cache", "requests", "output tokens/s", "decode tokens/s",
                                                 "prefill tokens/s", "peak memory", "peak KV", "room, tokens",
                                                 "running", "preempted", "step p50 ms", "p90", "p99"}};
  for (const ThroughputResult& r : results) {
    rows.push_back({r.kv, fmt::format("{}", r.n_requests), tokens_per_s(r.output_tokens_per_s),
                    tokens_per_s(r.decode_tokens_per_s), tokens_per_s(r.prefill_tokens_per_s),
                    format_bytes(r.peak_memory_bytes), format_bytes(r.peak_kv_bytes),
                    fmt::format("{}", r.kv_capacity_tokens), fmt::format("{}", r.max_running),
                    fmt::format("{}", r.preemptions), fmt::format("{:.2f}", r.step_ms_p50),
                    fmt::format("{:.2f}", r.step_ms_p90), fmt::format("{:.2f}", r.step_ms_p99)});
  }
  print_table(stdout, rows);
  if (memory_rows.empty()) return;
  fmt::print("\nMemory beside {}, peaks at its largest batch, {}, weights included.\n", memory_rows.front().kv,
             memory_rows.front().largest_batch);
  rows = {{"KV cache", "room, tokens", "of the first's", "largest batch", "of the first's", "peak memory",
           "the first's to it"}};
  for (const MemoryComparison& row : memory_rows) {
    const bool is_run = row.peak_memory_bytes > 0;
    rows.push_back({row.kv, fmt::format("{}", row.kv_capacity_tokens), fmt::format("{:.2f}", row.capacity_ratio),
                    fmt::format("{}", row.largest_batch), fmt::format("{:.2f}", row.batch_ratio),
                    is_run ? format_bytes(row.peak_memory_bytes) : "-",
                    is_run ? fmt::format("{:.2f}", row.peak_memory_ratio) : "-"});
  }
  print_table(stdout, rows);
}

}  // namespace

void add_bench_throughput(CLI::App& bench) {
  auto command = std::make_shared<ThroughputCommand>();
  CLI::App* throughput = bench.add_subcommand("throughput", "Many requests of random tokens, submitted at once");
  command->model.add_to(*throughput);
  command->model.add_random_to(*throughput);
  command->kv.add_to(*throughput);
  ThroughputOptions& options = command->options;
  const auto add = [throughput](const char* name, auto& value, const char* help) {
    return throughput->add_option(name, value, help)->capture_default_str()->type_name("N");
  };
  add("--requests", options.n_requests, "Requests");
  add("--prompt-tokens,--prompt", options.n_prompt, "Tokens of each prompt");
  add("--output-tokens,--output", options.n_output, "Tokens of each output");
  add("--max-sequences", options.max_sequences, "Requests that run at a time, at most; 0: as many as fit");
  add("--step-tokens", options.engine.max_step_tokens,
      "Tokens of prompts in a step; a longer prompt runs in chunks of this");
  command->memory.add_to(*throughput);
  throughput->add_flag("--decode-only", options.decode_only,
                       "Do not compute prompts: their pages are taken as they are, and decoding alone is measured");
  throughput->add_flag("--batch-sweep", command->sweeps,
                       "Batches of 1, 2, 4 ... requests until memory ends, at most --requests");
  command->json.add_to(*throughput);
  throughput->callback([command] { command->run(); });
}

}  // namespace kivi::app
