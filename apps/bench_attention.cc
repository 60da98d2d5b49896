// kivi bench attention: decode attention by itself, beside what memory gives.
#include <fmt/format.h>

#include <memory>

#include "commands.h"
#include "eval/attention_bench.h"
#include "options.h"
#include "output.h"

namespace kivi::app {
namespace {

struct AttentionCommand {
  BackendOptions backend;
  KvOptions kv{{std::string(kDefaultKvPreset), "kivi2", "f16"}};
  std::vector<std::string> shapes;
  AttentionBenchOptions options;
  JsonOutput json;

  void run();
  void print(const BackendInfo& device, const AttentionReport& report) const;
};

std::string microseconds(double value) {
  return fmt::format("{:.1f}", value);
}

void AttentionCommand::run() {
  options.kv = kv.parse();
  for (const std::string& shape : shapes) options.shapes.push_back(parse_attention_shape(shape));
  if (shapes.empty()) options.shapes.assign(attention_shapes().begin(), attention_shapes().end());
  json.check();
  const std::unique_ptr<Backend> device = make_backend(backend);
  options.on_result = [](const AttentionResult& r) {
    fmt::print(stderr, "{} {}{}: {:.1f} us, {:.1f} GB/s\n", to_string(r.shape), r.kv, r.is_ragged ? " ragged" : "",
               r.microseconds, 1e-9 * r.bytes_per_s());
  };
  const AttentionReport report = bench_attention(*device, options);
  const BackendInfo info = device->info();
  if (json.text() == stdout) print(info, report);
  nlohmann::ordered_json out = {{"device", info.device}, {"device_detail", info.detail}};
  out.update(to_json(report));
  json.write(out);
}

void AttentionCommand::print(const BackendInfo& device, const AttentionReport& report) const {
  fmt::print("{}\nPlain reads: {:.1f} GB/s. Times of one layer.\n\n", device.detail, 1e-9 * report.read_bandwidth);
  std::vector<std::vector<std::string>> rows = {
      {"batch x tokens", "heads", "head_dim", "KV cache", "us", "GB/s", "of read bandwidth", "plan us"}};
  const auto shape_cells = [](const AttentionShape& shape, const char* lengths) {
    return std::vector<std::string>{fmt::format("{} x {}{}", shape.batch, shape.tokens, lengths),
                                    fmt::format("{}/{}", shape.q_heads, shape.kv_heads),
                                    fmt::format("{}", shape.head_dim)};
  };
  for (const AttentionResult& r : report.results) {
    rows.push_back(shape_cells(r.shape, r.is_ragged ? " ragged" : ""));
    for (std::string cell : {r.kv, microseconds(r.microseconds), fmt::format("{:.1f}", 1e-9 * r.bytes_per_s()),
                             fmt::format("{:.3f}", r.fraction_of_read_bandwidth()), microseconds(r.plan_microseconds)})
      rows.back().push_back(std::move(cell));
  }
  print_table(stdout, rows);
  if (report.stores.empty()) return;
  fmt::print("\nAppending and packing, a layer's share of a decode step.\n\n");
  rows = {{"batch x tokens", "heads", "head_dim", "KV cache", "us", "longest us", "steps"}};
  for (const StoreResult& r : report.stores) {
    rows.push_back(shape_cells(r.shape, ""));
    for (std::string cell :
         {r.kv, microseconds(r.microseconds), microseconds(r.microseconds_longest), fmt::format("{}", r.n_steps)})
      rows.back().push_back(std::move(cell));
  }
  print_table(stdout, rows);
}

}  // namespace

void add_bench_attention(CLI::App& bench) {
  auto command = std::make_shared<AttentionCommand>();
  CLI::App* attention = bench.add_subcommand("attention", "Decode attention by itself, beside the memory's bandwidth");
  add_device_options(*attention, command->backend);
  command->kv.add_to(*attention);
  attention
      ->add_option("--shapes", command->shapes,
                   "Batch, tokens, query heads, KV heads and head_dim, as 64x4096x32x8x128; default: eight, to fill "
                   "an 80 GB GPU")
      ->delimiter(',')
      ->type_name("S1,S2,...");
  attention->add_flag("--ragged", command->options.ragged,
                      "Also with lengths drawn evenly from 1 to twice the tokens, where the cache packs");
  attention->add_flag("--append", command->options.stores, "Also time appending and packing, over a cycle of steps");
  add_samples_option(*attention, command->options.n_samples);
  command->json.add_to(*attention);
  attention->callback([command] { command->run(); });
}

}  // namespace kivi::app
