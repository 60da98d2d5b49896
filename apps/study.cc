// kivi study: what is in a model's KV cache, what quantising it costs, and which preset to use.
#include "study/study.h"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>

#include "commands.h"
#include "core/error.h"
#include "options.h"
#include "output.h"
#include "study/parts.h"
#include "study/report.h"
#include "study/sha256.h"

namespace kivi::app {
namespace {

using Json = nlohmann::ordered_json;

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const KvConfig& preset : kv_presets()) names.push_back(preset.name);
  return names;
}

// "1%" or "1": a hundredth.
double parse_max_loss(const std::string& text) {
  std::string_view number = text;
  if (number.ends_with('%')) number.remove_suffix(1);
  double percent = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), percent);
  if (error != std::errc() || end != number.data() + number.size() || !(percent > 0 && percent <= 100)) {
    fail(ErrorCode::kInvalidArgument, "--max-loss {}: must be a percentage above 0, at most 100, such as 1%", text);
  }
  return percent / 100;
}

struct StudyCommand {
  ModelOptions model;
  KvOptions kv{preset_names()};
  std::string text;
  std::string out = "kivi-study";
  std::string max_loss = "1%";
  double memory_gib = 8;
  StudyOptions options;

  void run();

 private:
  void parse();
  // Where keys and values can be looked at, if not on the device itself: beside a GPU, the CPU.
  std::optional<Session> load_host(const Session& session) const;
  Json describe_model(const ModelConfig& config) const;
  Json study(const Session& session, const std::string& content, std::span<const TokenId> tokens) const;
  void print(const Json& study) const;
};

void StudyCommand::parse() {
  constexpr double kMostGib = 1 << 20;
  options.presets = kv.parse();
  options.max_loss = parse_max_loss(max_loss);
  if (!(memory_gib > 0 && memory_gib <= kMostGib)) {
    fail(ErrorCode::kInvalidArgument, "--memory {}: must be above 0, at most {} GiB", memory_gib, kMostGib);
  }
  options.memory_bytes = static_cast<int64_t>(memory_gib * (1 << 30));
}

std::optional<Session> StudyCommand::load_host(const Session& session) const {
  if (session.backend->activation_dtype() == DType::kF32) return std::nullopt;
  ModelOptions on_cpu = model;
  on_cpu.backend.device = "cpu";
  on_cpu.backend.dtype.reset();
  Session host = on_cpu.load({});
  fmt::print(stderr, "{}: keys and values are looked at, and what it has no kernels for is measured, on {}\n",
             session.backend->info().device, host.backend->info().device);
  return host;
}

Json StudyCommand::describe_model(const ModelConfig& config) const {
  const std::string folder = model_folder(model.path);
  const std::filesystem::path path = folder.empty() ? model.path : folder;
  return {{"name", config.name},
          {"file", path.filename().string()},
          {"sha256", sha256_of_file(path)},
          {"quantisation", config.quantisation},
          {"n_layers", config.n_layers},
          {"n_heads", config.n_heads},
          {"n_kv_heads", config.n_kv_heads},
          {"head_dim", config.head_dim},
          {"context", config.context_length}};
}

Json StudyCommand::study(const Session& session, const std::string& content, std::span<const TokenId> tokens) const {
  const std::optional<Session> other = load_host(session);
  const Session& host = other ? *other : session;
  const std::string text_name = std::filesystem::path(text).filename().string();
  Json result = {{"kivi_study", 1},
                 {"kivi_version", KIVI_VERSION},
                 {"model", describe_model(session.model->config)},
                 {"text",
                  {{"name", text.empty() ? std::string(kBuiltInTextName) : text_name},
                   {"sha256", sha256_of_text(content)},
                   {"n_tokens", tokens.size()}}},
                 {"device", session.backend->info().device},
                 {"host_device", host.backend->info().device},
                 {"is_quick", options.is_quick}};
  Progress progress("study");
  StudyOptions with_progress = options;
  with_progress.progress = [&progress](double part) { progress.update(part); };
  result.update(run_study({.device = {session.backend.get(), session.decoder.get()},
                           .host = {host.backend.get(), host.decoder.get()},
                           .program_version = KIVI_VERSION,
                           .model_sha256 = result["model"]["sha256"],
                           .text_sha256 = result["text"]["sha256"],
                           .tokens = tokens,
                           .first_token = session.model->tokenizer->begin_of_text()},
                          with_progress, std::filesystem::path(out) / "parts"));
  return result;
}

void StudyCommand::run() {
  parse();
  check_study(model.open()->config, options);
  const std::string content = text.empty() ? std::string(built_in_text()) : read_text_file(text);
  const Session session = model.load({});
  const std::vector<TokenId> tokens = session.model->tokenizer->encode(content, true, false);
  plan_chunks(std::ssize(tokens), session.model->config.context_length, options);
  const std::filesystem::path folder = out;
  Parts{folder};  // before anything that takes long
  const Json result = study(session, content, tokens);
  write_file(folder / "study.json", result.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  write_file(folder / "study.html", html_report(result));
  print(result);
}

void StudyCommand::print(const Json& study) const {
  const Json& recommendation = study["recommendation"];
  std::vector<std::vector<std::string>> rows = {
      {"KV cache", "bytes/token", "perplexity loss", "95 % interval", fmt::format("context in {:g} GiB", memory_gib)}};
  for (const Json& c : recommendation["candidates"]) {
    const Json& loss = c["loss"];
    rows.push_back(
        {c["setting"], fmt::format("{:.0f}", c["bytes_per_token"].get<double>()),
         fmt::format("{:+.2f} %", 100 * loss["mean"].get<double>()),
         fmt::format("{:+.2f} to {:+.2f} %", 100 * loss["low"].get<double>(), 100 * loss["high"].get<double>()),
         fmt::format("{}", c["context_in_memory"].get<int64_t>())});
  }
  print_table(stdout, rows);
  if (recommendation["setting"].is_null()) {
    fmt::print("\nNone stays under a loss of {:g} %.\n", 100 * options.max_loss);
  } else {
    fmt::print("\nRecommended: --kv {}, the smallest with a loss under {:g} %{}.\n",
               recommendation["setting"].get<std::string>(), 100 * options.max_loss,
               recommendation["is_certain"].get<bool>() ? "" : " (its interval is not: a longer --text tells more)");
  }
  fmt::print("Report: {}\n", (std::filesystem::path(out) / "study.html").string());
}

}  // namespace

void add_study(CLI::App& app) {
  auto command = std::make_shared<StudyCommand>();
  CLI::App* study = app.add_subcommand("study", "What is in a model's KV cache, what 2 bits cost, which preset to use");
  StudyOptions& options = command->options;
  command->model.add_to(*study);
  const auto count = CLI::Range(int64_t{1}, int64_t{1} << 40);
  study->add_option("--text", command->text, "Text to study the model on; default: a short built-in one")
      ->type_name("FILE");
  study->add_option("--tokens", options.n_tokens, "Most tokens of the text; default: 16384, quick 3072")
      ->check(count)
      ->type_name("N");
  study->add_option("--context", options.context, "Tokens of a chunk; default: 2048, quick 768, less for short texts")
      ->check(count)
      ->type_name("N");
  study
      ->add_option("--out", command->out,
                   "Folder for study.json, study.html and what an interrupted study goes on from")
      ->capture_default_str()
      ->type_name("DIR");
  study->add_flag("--quick", options.is_quick, "A smaller study: minutes");
  study->add_option("--max-loss", command->max_loss, "Largest loss of perplexity that the recommended cache may have")
      ->capture_default_str()
      ->type_name("PERCENT");
  study->add_option("--memory", command->memory_gib, "GiB of KV cache whose longest context is told")
      ->capture_default_str()
      ->type_name("X");
  study->add_option("--layers", options.layers, "Layers whose magnitudes are mapped; default: four")
      ->delimiter(',')
      ->type_name("I1,I2,...");
  study->add_option("--heads", options.heads, "KV heads whose magnitudes are mapped; default: 0")
      ->delimiter(',')
      ->type_name("I1,I2,...");
  command->kv.add_to(*study);
  study->callback([command] { command->run(); });
}

}  // namespace kivi::app
