#include "options.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <random>

#include "cache/kv_support.h"
#include "core/error.h"
#include "eval/model_shape.h"
#include "model/random_model.h"
#include "output.h"

namespace kivi::app {
namespace {

// With the names that vLLM has for them.
std::optional<DType> parse_dtype(std::string_view text) {
  if (text == "auto") return std::nullopt;
  if (text == "f16" || text == "float16" || text == "half") return DType::kF16;
  if (text == "bf16" || text == "bfloat16") return DType::kBF16;
  fail(ErrorCode::kInvalidArgument, "--dtype {}: must be auto, f16 or bf16", text);
}

}  // namespace

nlohmann::ordered_json describe(const Session& session) {
  const BackendInfo device = session.backend->info();
  return {{"device", device.device},
          {"device_detail", device.detail},
          {"dtype", name(session.backend->activation_dtype())},
          {"model", session.model->config.name},
          {"model_quantisation", session.model->config.quantisation},
          {"random_weights", session.model->is_random()}};
}

void add_device_options(CLI::App& app, BackendOptions& options) {
  app.add_option("--device", options.device,
                 "cuda, cuda:N, cpu, cpu:avx512, cpu:avx2, cpu:portable or reference; default: the best there is")
      ->type_name("DEVICE");
  app.add_option("--threads", options.n_threads, "Threads; default: the physical cores")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  app.add_option_function<std::string>(
         "--dtype", [&options](const std::string& text) { options.dtype = parse_dtype(text); },
         "What a GPU computes and keeps windows in: f16 or bf16; auto is f16")
      ->default_str("auto")
      ->type_name("TYPE");
}

void add_samples_option(CLI::App& app, int& n_samples) {
  app.add_option("--samples", n_samples, "Times to measure; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("K");
}

void ModelOptions::add_to(CLI::App& app) {
  path_option_ =
      app.add_option("-m,--model", path, "GGUF file, or Hugging Face folder")->required()->type_name("MODEL");
  add_device_options(app, backend);
}

void ModelOptions::add_random_to(CLI::App& app) {
  path_option_->required(false);
  app.add_option(
         "--random-weights", random_shape,
         "Instead of a model: random 16-bit weights of the shape llama-2-7b, llama-2-13b, llama-3-8b, mistral-7b "
         "or of a JSON file")
      ->excludes(path_option_)
      ->type_name("SHAPE");
}

std::unique_ptr<Model> ModelOptions::open() const {
  if (path.empty() && !is_random()) {
    fail(ErrorCode::kInvalidArgument, "a model is needed: give one with --model or --random-weights");
  }
  return is_random() ? open_random_model(read_model_shape(random_shape)) : open_model(path);
}

Session ModelOptions::load(std::span<const KvConfig> caches) const {
  Session session;
  session.backend = make_backend(backend);
  const auto free_bytes = [&session] { return static_cast<int64_t>(session.backend->free_bytes()); };
  session.free_bytes_at_start = free_bytes();
  session.model = open();
  const ModelConfig& config = session.model->config;
  for (const KvConfig& kv : caches) require_kernels(*session.backend, kv_shape(config), config.n_heads, kv);
  const int64_t free_before = free_bytes();
  Progress progress("loading weights");
  load_weights(*session.backend, *session.model, [&progress](double part) { progress.update(part); });
  session.decoder = std::make_unique<Decoder>(*session.backend, session.model->weights);
  session.weight_bytes = free_before == 0 ? session.model->weight_bytes : free_before - free_bytes();
  return session;
}

void MemoryOptions::add_to(CLI::App& app) {
  app.add_option("--memory-fraction", fraction_,
                 fmt::format("Part of a GPU's memory, after the weights, that activations and KV cache may take; "
                             "default: {}",
                             EngineOptions{}.memory_fraction))
      ->type_name("X");
  app.add_option("--kv-memory", kv_gib_, "Most GiB of the KV cache; 0: as it needs, or what --memory-fraction leaves")
      ->capture_default_str()
      ->type_name("X");
}

void MemoryOptions::apply_to(EngineOptions& options, Backend& backend) const {
  constexpr double kMostGib = 1 << 20;
  if (!(kv_gib_ >= 0 && kv_gib_ <= kMostGib)) {
    fail(ErrorCode::kInvalidArgument, "--kv-memory {}: must be 0 to {}", kv_gib_, kMostGib);
  }
  options.capacity.memory_bytes = static_cast<int64_t>(kv_gib_ * (1 << 30));
  options.memory_fraction = fraction_.value_or(options.memory_fraction);
  options.validate();
  if (fraction_ && backend.free_bytes() == 0) {
    fail(ErrorCode::kInvalidArgument, "--memory-fraction {}: device {} does not say what is free; use --kv-memory",
         *fraction_, backend.info().device);
  }
}

void KvOptions::add_to(CLI::App& app) {
  app.add_option("--kv", presets_, "KV caches: " + kv_preset_names() + ", or a preset with changes as kivi2:sinks=4")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("P1,P2,...");
  add_fields_to(app);
}

void KvOptions::add_one_to(CLI::App& app) {
  app.add_option_function<std::string>(
         "--kv", [this](const std::string& preset) { presets_ = {preset}; },
         "KV cache: " + kv_preset_names() + ", or a preset with changes as kivi2:sinks=4")
      ->default_str(presets_.front())
      ->type_name("PRESET");
  add_fields_to(app);
}

void KvOptions::add_fields_to(CLI::App& app) {
  const auto add = [this, &app](const std::string& field, const std::string& help) {
    app.add_option_function<std::string>(
           "--" + field, [this, field](const std::string& value) { settings_ += ":" + field + "=" + value; }, help)
        ->group("KV cache")
        ->type_name("N");
  };
  add("group-size", "Tokens of a key group, channels of a value group: 16, 32, 64 or 128");
  add("residual", "Newest tokens that stay in 16 bits; a multiple of the group size");
  add("sinks", "First tokens that stay in 16 bits for ever");
  add("key-bits", "Bits of a key: 2, 3, 4, 8 or 16");
  add("value-bits", "Bits of a value: 2, 3, 4, 8 or 16");
  add("param-bits", "Bits of a group's scale and zero, each: 16, or 8 with values rotated");
}

std::vector<std::string> KvOptions::every_preset() {
  std::vector<std::string> names;
  for (const KvConfig& preset : kv_presets()) names.push_back(preset.name);
  return names;
}

std::vector<KvConfig> KvOptions::parse() const {
  std::vector<KvConfig> configs;
  bool any_packs = false;
  for (const std::string& preset : presets_) {
    KvConfig config = parse_kv_config(preset);
    any_packs = any_packs || config.is_packed();
    configs.push_back(config.is_packed() ? parse_kv_config(preset + settings_) : config);
  }
  if (configs.empty()) fail(ErrorCode::kInvalidArgument, "--kv: give at least one preset");
  if (!settings_.empty() && !any_packs) {
    fail(ErrorCode::kInvalidArgument, "KV setting '{}': {} packs nothing; use it with a preset that packs, as {}",
         settings_.substr(1), presets_.front(), kDefaultKvPreset);
  }
  return configs;
}

void SamplingOptions::add_to(CLI::App& app) {
  const auto add = [&app](const std::string& name, auto& value, const std::string& help) {
    app.add_option(name, value, help)->capture_default_str()->group("Sampling")->type_name("X");
  };
  add("--temperature,--temp", params_.temperature, "0: greedy, the same answer every time; above, tokens are drawn");
  add("--top-k", params_.top_k, "Draw among the k most likely tokens; 0: all");
  add("--top-p", params_.top_p, "Draw among the fewest tokens that have this probability together; 1: all");
  add("--min-p", params_.min_p, "Drop tokens less likely than this times the most likely; 0: none");
  add("--repetition-penalty,--repeat-penalty", params_.repetition_penalty,
      "Divides logits of tokens in prompt and answer; 1: off");
  add("--presence-penalty", params_.presence_penalty, "Lowers logits of tokens in the answer; 0: off");
  add("--frequency-penalty", params_.frequency_penalty, "Lowers them for each time they are there; 0: off");
  add("--seed", seed_, "Seed of the random numbers; default: another one every time");
}

SamplingParams SamplingOptions::parse() const {
  SamplingParams params = params_;
  params.seed = seed_ ? *seed_ : std::random_device{}();
  params.validate();
  return params;
}

std::string read_text_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  if (!in) fail(ErrorCode::kNotFound, "{}: cannot be read; check the path", path);
  return text;
}

}  // namespace kivi::app
