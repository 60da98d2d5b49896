#include "study/study.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>

#include "cache/kv_support.h"
#include "core/error.h"
#include "study/layer_study.h"
#include "study/layer_summary.h"
#include "study/parts.h"
#include "study/quality.h"
#include "study/recommendation.h"

namespace kivi {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kWantedChunks = 4;
constexpr int64_t kShortestChunk = 256;
constexpr int64_t kCapturedChunks = 4;
constexpr int64_t kChunksAtOnce = 4;
constexpr int64_t kCacheBytes = int64_t{4} << 30;  // of all caches that run side by side
constexpr int64_t kMapBins = 64;
// What looking at a token costs, in tokens of decoding.
constexpr double kCaptureCost = 3.0;

// Work that is not done yet: what it gives is kept as parts, each of which depends on its description alone.
struct Task {
  std::vector<Json> descriptions{};
  double cost = 0;  // in tokens of decoding
  std::function<std::vector<Json>(const ProgressCallback&)> run{};
};

struct ChunkRange {
  int64_t first = 0;
  int64_t n = 0;
};

class Study {
 public:
  Study(const StudyInput& input, const StudyOptions& options, const std::filesystem::path& folder);

  Json run();

 private:
  bool has_kernels(Backend& backend, const KvConfig& config) const;
  const StudyDevice& device_of(const QualitySetting& setting) const {
    return setting.on_host ? input_.host : input_.device;
  }
  Json describe(const char* part, const StudyDevice& device, const ChunkRange& chunks) const;
  Json describe_capture(int64_t chunk) const;
  Json describe_quality(const QualitySetting& setting, const ChunkRange& chunks) const;
  bool is_done(const Json& description);
  const Json& part(const Json& description) const { return parts_done_.at(description.dump()); }

  std::vector<Task> missing_tasks();
  void run_tasks(const std::vector<Task>& tasks);
  Json capture_chunk(int64_t chunk) const;
  std::vector<Json> measure(std::span<const QualitySetting> pass, const ChunkRange& chunks,
                            const ProgressCallback& tell) const;
  std::vector<ChunkRange> chunk_ranges() const;
  Json quality() const;
  const ModelConfig& model() const { return input_.device.decoder->config(); }

  const StudyInput& input_;
  const StudyOptions& options_;
  Parts parts_;
  KvShape shape_;
  ChunkPlan chunks_;
  QualityPlan plan_;
  int64_t n_captured_;
  std::map<std::string, Json> parts_done_;  // by description
};

Study::Study(const StudyInput& input, const StudyOptions& options, const std::filesystem::path& folder)
    : input_(input),
      options_(options),
      parts_(folder),
      shape_(input.device.decoder->kv_shape()),
      chunks_(plan_chunks(std::ssize(input.tokens), model().context_length, options)),
      plan_(plan_quality(shape_, options.presets, chunks_.context)),
      n_captured_(std::min(kCapturedChunks, chunks_.n_chunks)) {
  if (input.device.backend == input.host.backend) return;
  for (QualitySetting& setting : plan_.settings) {
    setting.on_host = setting.fake || !has_kernels(*input.device.backend, setting.kv);
  }
}

bool Study::has_kernels(Backend& backend, const KvConfig& config) const {
  try {
    require_kernels(backend, shape_, model().n_heads, config, static_cast<float>(model().score_cap));
    return true;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;
    return false;
  }
}

Json Study::describe(const char* part, const StudyDevice& device, const ChunkRange& chunks) const {
  return {{"part", part},
          {"program", input_.program_version},
          {"device", device.backend->info().device},
          {"model", input_.model_sha256},
          {"text", input_.text_sha256},
          {"context", chunks_.context},
          {"first_chunk", chunks.first},
          {"n_chunks", chunks.n}};
}

Json Study::describe_capture(int64_t chunk) const {
  Json description = describe("capture", input_.host, {chunk, 1});
  if (chunk == 0) {  // which has the maps
    description["layers"] = options_.layers;
    description["heads"] = options_.heads;
  }
  return description;
}

Json Study::describe_quality(const QualitySetting& setting, const ChunkRange& chunks) const {
  Json description = describe("quality", device_of(setting), chunks);
  description["setting"] = setting.name;
  description["bits"] = setting.kv.layout(shape_).bits_per_element();
  return description;
}

bool Study::is_done(const Json& description) {
  std::optional<Json> found = parts_.find(description);
  if (found) parts_done_[description.dump()] = std::move(*found);
  return found.has_value();
}

// So many side by side that one setting and 16 bits fit.
std::vector<ChunkRange> Study::chunk_ranges() const {
  const int64_t chunk_bytes = memory_of(shape_, parse_kv_config("f16"), chunks_.context).allocated_bytes();
  const int64_t at_once = std::clamp<int64_t>(kCacheBytes / (2 * chunk_bytes), 1, kChunksAtOnce);
  std::vector<ChunkRange> ranges;
  for (int64_t first = 0; first < chunks_.n_chunks; first += at_once) {
    ranges.push_back({first, std::min(at_once, chunks_.n_chunks - first)});
  }
  return ranges;
}

std::vector<Task> Study::missing_tasks() {
  std::vector<Task> tasks;
  const auto tokens = static_cast<double>(chunks_.context);
  for (int64_t chunk = 0; chunk < n_captured_; ++chunk) {
    const Json description = describe_capture(chunk);
    if (is_done(description)) continue;
    const auto run = [this, chunk](const ProgressCallback&) { return std::vector<Json>{capture_chunk(chunk)}; };
    tasks.push_back({{description}, kCaptureCost * tokens, run});
  }
  for (const ChunkRange& chunks : chunk_ranges()) {
    std::vector<QualitySetting> missing;
    for (const QualitySetting& setting : plan_.settings) {
      if (!is_done(describe_quality(setting, chunks))) missing.push_back(setting);
    }
    for (const auto& indices : quality_passes(shape_, missing, chunks_.context, chunks.n, kCacheBytes)) {
      std::vector<QualitySetting> pass;
      Task task{.cost = static_cast<double>((std::ssize(indices) + 1) * chunks.n) * tokens};
      for (const size_t i : indices) {
        pass.push_back(missing[i]);
        task.descriptions.push_back(describe_quality(missing[i], chunks));
      }
      task.run = [this, pass, chunks](const ProgressCallback& tell) { return measure(pass, chunks, tell); };
      tasks.push_back(std::move(task));
    }
  }
  return tasks;
}

void Study::run_tasks(const std::vector<Task>& tasks) {
  double left = 0;
  for (const Task& task : tasks) left += task.cost;
  double spent = 0;
  for (const Task& task : tasks) {
    const auto tell = [&](double part) {
      if (options_.progress) options_.progress((spent + part * task.cost) / left);
    };
    const std::vector<Json> contents = task.run(tell);
    for (size_t i = 0; i < contents.size(); ++i) {
      parts_.keep(task.descriptions[i], contents[i]);
      parts_done_[task.descriptions[i].dump()] = contents[i];
    }
    tell(1.0);
    spent += task.cost;
  }
}

Json Study::capture_chunk(int64_t chunk) const {
  std::vector<int> layers = options_.layers;
  const auto n_layers = static_cast<int>(model().n_layers);
  if (layers.empty()) layers = {0, n_layers / 3, 2 * n_layers / 3, n_layers - 1};
  const std::vector<int> heads = options_.heads.empty() ? std::vector<int>{0} : options_.heads;
  const LayerStudyOptions options{.n_threads = input_.host.backend->info().n_threads};
  Json studied = Json::array();
  Json maps = Json::array();
  const auto look = [&](const LayerCapture& layer) {
    studied.push_back(study_layer(layer, options));
    if (chunk > 0 || std::ranges::find(layers, layer.layer) == layers.end()) return;
    for (const int head : heads) {
      for (Json& map : magnitude_maps(layer, head, kMapBins)) maps.push_back(std::move(map));
    }
  };
  std::vector<TokenId> tokens(input_.tokens.begin() + chunk * chunks_.context,
                              input_.tokens.begin() + (chunk + 1) * chunks_.context);
  tokens.front() = input_.first_token.value_or(tokens.front());
  capture(*input_.host.backend, input_.host.decoder->weights(), tokens, look);
  return {{"layers", std::move(studied)}, {"maps", std::move(maps)}};
}

struct FakeDecoder {
  FakeDecoder(Backend& inner, const FakeCacheConfig& config, const ModelWeights& weights)
      : backend(inner, config), decoder(backend, weights) {}

  FakeCacheBackend backend;
  Decoder decoder;
};

// By setting: {"chunks": [[nll, kl, top1], ...], "f16": likewise}.
std::vector<Json> Study::measure(std::span<const QualitySetting> pass, const ChunkRange& chunks,
                                 const ProgressCallback& tell) const {
  PerplexityOptions options{.kv = {parse_kv_config("f16")},
                            .context = chunks_.context,
                            .first_chunk = chunks.first,
                            .n_chunks = chunks.n,
                            .first_token = input_.first_token,
                            .batch = static_cast<int>(chunks.n),
                            .progress = tell};
  const StudyDevice& device = device_of(pass.front());
  std::vector<std::unique_ptr<FakeDecoder>> fakes;
  for (const QualitySetting& setting : pass) {
    if (setting.fake) {
      fakes.push_back(std::make_unique<FakeDecoder>(*device.backend, *setting.fake, device.decoder->weights()));
      options.variants.push_back({setting.name, &fakes.back()->decoder});
    } else if (setting.kv.is_packed()) {
      options.kv.push_back(setting.kv);
    }
  }
  std::map<std::string, Json> rows;
  for (const PerplexityResult& result : measure_perplexity(*device.backend, *device.decoder, input_.tokens, options)) {
    for (const ChunkQuality& c : result.chunks) rows[result.kv].push_back({c.nll, c.kl, c.top1_agreement});
  }
  std::vector<Json> contents;
  for (const QualitySetting& setting : pass) {
    const Json& own = rows[setting.kv.is_packed() ? setting.name : "f16"];
    contents.push_back({{"chunks", own}, {"f16", rows["f16"]}});
  }
  return contents;
}

Json Study::quality() const {
  const auto append = [](std::vector<ChunkQuality>& list, const Json& rows) {
    for (const Json& row : rows) list.push_back({row[0], row[1], row[2]});
  };
  std::vector<MeasuredQuality> measured(plan_.settings.size());
  for (size_t i = 0; i < plan_.settings.size(); ++i) {
    for (const ChunkRange& chunks : chunk_ranges()) {
      const Json& content = part(describe_quality(plan_.settings[i], chunks));
      append(measured[i].chunks, content["chunks"]);
      append(measured[i].f16, content["f16"]);
    }
  }
  Json tables = plan_.tables;
  tables["settings"] = summarise_quality(shape_, plan_.settings, measured, chunks_.context);
  return tables;
}

Json Study::run() {
  run_tasks(missing_tasks());
  std::vector<Json> captured;
  for (int64_t chunk = 0; chunk < n_captured_; ++chunk) captured.push_back(part(describe_capture(chunk)));
  Json result = {{"chunks", {{"context", chunks_.context}, {"n", chunks_.n_chunks}, {"captured", n_captured_}}}};
  result["layers"] = summarise_layers(captured, shape_.head_dim);
  result["errors"] = summarise_errors(captured);
  result["maps"] = captured.front()["maps"];
  result["quality"] = quality();
  result["recommendation"] = recommend(
      shape_, options_.presets, result["quality"]["settings"],
      {.max_loss = options_.max_loss, .memory_bytes = options_.memory_bytes, .model_context = model().context_length});
  return result;
}

}  // namespace

ChunkPlan plan_chunks(int64_t n_text_tokens, int64_t model_context, const StudyOptions& options) {
  const int64_t wanted = options.n_tokens > 0 ? options.n_tokens : options.is_quick ? 3072 : 16384;
  const int64_t n_tokens = std::min(n_text_tokens, wanted);
  const int64_t context =
      options.context > 0
          ? options.context
          : std::min<int64_t>({options.is_quick ? 768 : 2048, model_context, n_tokens / kWantedChunks / 128 * 128});
  if (context > model_context || (options.context > 0 && context < 16)) {
    fail(ErrorCode::kInvalidArgument, "--context {}: must be 16 to {}, the model's context", context, model_context);
  }
  if (options.context == 0 && context < std::min(kShortestChunk, model_context)) {
    fail(ErrorCode::kInvalidArgument,
         "text of {} tokens, {} of them wanted: too short; a study needs {} ({} chunks of {}): use a longer --text{}",
         n_text_tokens, wanted, kWantedChunks * kShortestChunk, kWantedChunks, kShortestChunk,
         wanted < n_text_tokens ? " and more --tokens" : "");
  }
  if (n_tokens / context < 2) {
    fail(ErrorCode::kInvalidArgument,
         "text of {} tokens: makes {} chunks of {}, and a study needs 2; use a longer --text", n_tokens,
         n_tokens / context, context);
  }
  return {context, n_tokens / context};
}

void check_study(const ModelConfig& model, const StudyOptions& options) {
  const KvShape shape = kv_shape(model);
  if (shape.head_dim % format::kGroupUnit != 0) {
    fail(ErrorCode::kUnsupported, "head_dim {}: the packed format needs a multiple of {}, so there is nothing to study",
         shape.head_dim, format::kGroupUnit);
  }
  for (const KvConfig& preset : options.presets) preset.validate(shape);
  const auto check = [](const char* what, const std::vector<int>& chosen, int64_t n) {
    for (const int i : chosen) {
      if (i < 0 || i >= n) fail(ErrorCode::kInvalidArgument, "--{} {}: must be 0 to {}", what, i, n - 1);
    }
  };
  check("layers", options.layers, model.n_layers);
  check("heads", options.heads, model.n_kv_heads);
}

Json run_study(const StudyInput& input, const StudyOptions& options, const std::filesystem::path& folder) {
  check_study(input.device.decoder->config(), options);
  return Study(input, options, folder).run();
}

}  // namespace kivi
