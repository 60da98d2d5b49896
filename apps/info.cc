// kivi info: facts of a model, and what its KV cache costs.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "commands.h"
#include "core/error.h"
#include "eval/kv_report.h"
#include "options.h"
#include "output.h"

namespace kivi::app {
namespace {

struct InfoOptions {
  ModelOptions model;
  KvOptions kv{KvOptions::every_preset()};
  std::optional<int64_t> context;
  JsonOutput json;
};

int64_t n_sliding(const ModelConfig& config) {
  return std::ranges::count(config.slides, true);
}

nlohmann::ordered_json model_json(const InfoOptions& options, const Model& model) {
  const ModelConfig& config = model.config;
  nlohmann::ordered_json architecture;  // null for random weights
  if (!model.is_random()) architecture = config.architecture->name;
  return {{"name", config.name},
          {"file", options.model.path},
          {"random_weights", model.is_random()},
          {"weight_bytes", model.weight_bytes},
          {"architecture", architecture},
          {"quantisation", config.quantisation},
          {"n_layers", config.n_layers},
          {"n_heads", config.n_heads},
          {"n_kv_heads", config.n_kv_heads},
          {"head_dim", config.head_dim},
          {"n_sliding_layers", n_sliding(config)},
          {"sliding_window", config.sliding_window},
          {"hidden_size", config.hidden_size},
          {"ffn_size", config.ffn_size},
          {"vocab_size", config.vocab_size},
          {"context_length", config.context_length},
          {"chat_format", name(model.chat_format)}};
}

void print(const InfoOptions& options, const Model& model, const Backend& backend, std::span<const KvReport> reports,
           int64_t context) {
  std::FILE* out = options.json.text();
  const ModelConfig& config = model.config;
  fmt::print(out, "model       {}\n", config.name);
  fmt::print(out, "weights     ");
  if (!model.is_random()) fmt::print(out, "{}, ", config.architecture->name);
  fmt::print(out, "{}, {}\n", config.quantisation, format_bytes(model.weight_bytes));
  fmt::print(out, "layers      {}; hidden {}, feed-forward {}\n", config.n_layers, config.hidden_size, config.ffn_size);
  fmt::print(out, "attention   {} query heads over {} KV heads of {}\n", config.n_heads, config.n_kv_heads,
             config.head_dim);
  if (const int64_t n = n_sliding(config); n > 0) {
    fmt::print(out, "sliding     {} of {} layers attend to the newest {} tokens and keep no others\n", n,
               config.n_layers, config.sliding_window);
  }
  fmt::print(out, "context     {} tokens; vocabulary {}; chat format {}\n", config.context_length, config.vocab_size,
             name(model.chat_format));
  fmt::print(out, "device      {}\n\n", backend.info().detail);

  const std::string at = fmt::format("at {}", context);
  std::vector<std::vector<std::string>> rows = {
      {"KV cache", "bits/element", "a token", at, "packed", "window", "effective bits"}};
  for (const KvReport& r : reports) {
    rows.push_back({r.kv, fmt::format("{:.2f}", r.bits_per_element),
                    format_bytes(static_cast<int64_t>(r.bytes_per_token)), format_bytes(r.at_context.allocated_bytes()),
                    format_bytes(r.at_context.packed_bytes()), format_bytes(r.at_context.window_bytes),
                    fmt::format("{:.2f}", r.at_context.effective_bits_per_element())});
  }
  print_table(out, rows);
}

// Of a model that kivi does not run: what its files say, and why.
void show_unsupported(const InfoOptions& options, const Error& error) {
  const ModelSummary summary = summarise_model(options.model.path);
  if (summary.architecture.empty()) throw error;
  std::FILE* out = options.json.text();
  fmt::print(out, "model       {}\n", summary.name);
  fmt::print(out, "weights     {}, {}, {} tensors, {}\n", summary.architecture, summary.kind, summary.n_tensors,
             format_bytes(summary.weight_bytes));
  fmt::print(out, "kivi        does not run it: {}\n", error.what());
  options.json.write({{"model",
                       {{"name", summary.name},
                        {"file", options.model.path},
                        {"architecture", summary.architecture},
                        {"weight_bytes", summary.weight_bytes}}},
                      {"unsupported", error.what()}});
}

// Null if kivi does not run the model.
std::unique_ptr<Model> open_or_explain(const InfoOptions& options) {
  try {
    return options.model.open();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported || options.model.path.empty()) throw;
    show_unsupported(options, error);
    return nullptr;
  }
}

void show(const InfoOptions& options) {
  const std::vector<KvConfig> configs = options.kv.parse();
  options.json.check();
  const std::unique_ptr<Backend> backend = make_backend(options.model.backend);
  const std::unique_ptr<Model> model = open_or_explain(options);
  if (model == nullptr) return;
  const int64_t context = options.context.value_or(model->config.context_length);
  const std::vector<KvReport> reports = report_kv(kv_shape(model->config), configs, context);
  if (options.json.text() == stdout) print(options, *model, *backend, reports, context);
  options.json.write({{"model", model_json(options, *model)}, {"context", context}, {"kv", to_json(reports)}});
}

}  // namespace

void add_info(CLI::App& app) {
  auto options = std::make_shared<InfoOptions>();
  CLI::App* info = app.add_subcommand("info", "Facts of a model, and what its KV cache costs");
  options->model.add_to(*info);
  options->model.add_random_to(*info);
  options->kv.add_to(*info);
  info->add_option("--context", options->context, "Tokens to count the cache for; default: the model's context")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->type_name("N");
  options->json.add_to(*info);
  info->callback([options] { show(*options); });
}

}  // namespace kivi::app
