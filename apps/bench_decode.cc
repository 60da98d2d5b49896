// kivi bench decode: speed of KV caches by depth.
#include <fmt/format.h>

#include <memory>

#include "commands.h"
#include "eval/decode_bench.h"
#include "options.h"
#include "output.h"

namespace kivi::app {
namespace {

struct DecodeCommand {
  ModelOptions model;
  KvOptions kv{{"f16", std::string(kDefaultKvPreset), "kivi2"}};
  DecodeBenchOptions options{.depths = {0, 1024, 4096, 8192}};
  JsonOutput json;

  void run();
};

void DecodeCommand::run() {
  options.kv = kv.parse();
  json.check();
  const Session session = model.load(options.kv);
  std::vector<DecodeBenchResult> results;
  {
    Progress progress("decode");
    options.progress = [&progress](double part) { progress.update(part); };
    results = bench_decode(*session.backend, *session.decoder, options);
  }
  const BackendInfo device = session.backend->info();
  std::vector<std::vector<std::string>> rows = {
      {"KV cache", "depth", "decode tokens/s", "best", "prefill tokens/s", "KV bytes", "bits/element"}};
  for (const DecodeBenchResult& r : results) {
    rows.push_back({r.kv, fmt::format("{}", r.depth), fmt::format("{:.1f}", r.decode_tokens_per_s),
                    fmt::format("{:.1f}", r.decode_tokens_per_s_best),
                    r.depth == 0 ? "-" : fmt::format("{:.1f}", r.prefill_tokens_per_s),
                    fmt::format("{}", r.kv_memory.allocated_bytes()),
                    fmt::format("{:.2f}", r.kv_memory.effective_bits_per_element())});
  }
  if (json.text() == stdout) {
    fmt::print("{}: {}\n", session.model->config.name, device.detail);
    print_table(stdout, rows);
  }
  nlohmann::ordered_json report = describe(session);
  report["n_threads"] = device.n_threads;
  report["n_decode"] = options.n_decode;
  report["repetitions"] = options.repetitions;
  report["results"] = to_json(results);
  json.write(report);
}

}  // namespace

void add_bench_decode(CLI::App& bench) {
  auto command = std::make_shared<DecodeCommand>();
  CLI::App* decode = bench.add_subcommand("decode", "Decode speed when the cache already holds tokens");
  command->model.add_to(*decode);
  command->model.add_random_to(*decode);
  command->kv.add_to(*decode);
  DecodeBenchOptions& options = command->options;
  decode->add_option("--depth", options.depths, "Tokens in the cache, filled by prefill; may pass the model's context")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("N1,N2,...");
  decode->add_option("-n", options.n_decode, "Tokens to decode")->capture_default_str()->type_name("N");
  decode->add_option("--repetitions", options.repetitions, "Times to do it; the median counts")
      ->capture_default_str()
      ->type_name("K");
  command->json.add_to(*decode);
  decode->callback([command] { command->run(); });
}

}  // namespace kivi::app
