#include "study/study.h"

#include <algorithm>
#include <functional>
#include <memory>

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
constexpr int64_t kChunksAtOnce = 8;
constexpr int64_t kCacheBytes = int64_t{4} << 30;  // of all caches that run side by side
constexpr int64_t kMapBins = 64;
// What looking at a token costs, in tokens of decoding.
constexpr double kCaptureCost = 3.0;

// A step of the study that is done or not: what is kept of it depends on its description alone.
struct Task {
  Json description;
  double cost = 0;
  std::function<Json(const ProgressCallback&)> run;
};

class Study {
 public:
  Study(const StudyInput& input, const StudyOptions& options, const std::filesystem::path& folder);

  Json run();

 private:
  std::vector<Task> tasks();
  Task capture_task(int64_t chunk);
  Task quality_task(const std::vector<size_t>& pass, int64_t first_chunk, int64_t n_chunks);
  Json describe(const char* task, int64_t first_chunk) const;
  Json capture_chunk(int64_t chunk);
  Json measure(const std::vector<size_t>& pass, int64_t first_chunk, int64_t n_chunks, const ProgressCallback& tell);
  Json quality(const std::vector<Json>& parts) const;
  const ModelConfig& model() const { return input_.device.decoder->config(); }
  bool is_split() const { return input_.device.backend != input_.host.backend; }

  const StudyInput& input_;
  const StudyOptions& options_;
  Parts parts_;
  KvShape shape_;
  ChunkPlan chunks_;
  QualityPlan plan_;
  int64_t n_captured_;
};

Study::Study(const StudyInput& input, const StudyOptions& options, const std::filesystem::path& folder)
    : input_(input),
      options_(options),
      parts_(folder),
      shape_(input.device.decoder->kv_shape()),
      chunks_(plan_chunks(std::ssize(input.tokens), model().context_length, options)),
      plan_(plan_quality(shape_, options.presets, chunks_.context)),
      n_captured_(std::min(kCapturedChunks, chunks_.n_chunks)) {}

Json Study::describe(const char* task, int64_t first_chunk) const {
  return {{"version", 1},
          {"task", task},
          {"model", input_.model_sha256},
          {"text", input_.text_sha256},
          {"context", chunks_.context},
          {"first_chunk", first_chunk}};
}

Task Study::capture_task(int64_t chunk) {
  Json description = describe("capture", chunk);
  description["device"] = input_.host.backend->info().device;
  if (chunk == 0) {
    description["layers"] = options_.layers;
    description["heads"] = options_.heads;
  }
  return {std::move(description), kCaptureCost * static_cast<double>(chunks_.context),
          [this, chunk](const ProgressCallback&) { return capture_chunk(chunk); }};
}

Json Study::capture_chunk(int64_t chunk) {
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

Task Study::quality_task(const std::vector<size_t>& pass, int64_t first_chunk, int64_t n_chunks) {
  Json description = describe("quality", first_chunk);
  description["n_chunks"] = n_chunks;
  for (const size_t i : pass) description["settings"].push_back(plan_.settings[i].name);
  const bool is_fake = plan_.settings[pass.front()].fake.has_value();
  description["device"] = (is_fake ? input_.host : input_.device).backend->info().device;
  return {std::move(description), static_cast<double>((std::ssize(pass) + 1) * n_chunks * chunks_.context),
          [=, this](const ProgressCallback& tell) { return measure(pass, first_chunk, n_chunks, tell); }};
}

// {"settings": {NAME: [[nll, kl, top1], of each chunk]}, with "f16" among them}
Json Study::measure(const std::vector<size_t>& pass, int64_t first_chunk, int64_t n_chunks,
                    const ProgressCallback& tell) {
  PerplexityOptions options{.kv = {parse_kv_config("f16")},
                            .context = chunks_.context,
                            .first_chunk = first_chunk,
                            .n_chunks = n_chunks,
                            .first_token = input_.first_token,
                            .batch = static_cast<int>(n_chunks),
                            .progress = tell};
  struct Fake {
    FakeCacheBackend backend;
    Decoder decoder;
    Fake(Backend& inner, const FakeCacheConfig& config, const ModelWeights& weights)
        : backend(inner, config), decoder(backend, weights) {}
  };
  std::vector<std::unique_ptr<Fake>> fakes;
  for (const size_t i : pass) {
    const QualitySetting& setting = plan_.settings[i];
    if (!setting.fake) {
      if (setting.kv.is_packed()) options.kv.push_back(setting.kv);
      continue;
    }
    fakes.push_back(std::make_unique<Fake>(*input_.host.backend, *setting.fake, input_.host.decoder->weights()));
    options.variants.push_back({setting.name, &fakes.back()->decoder});
  }
  const StudyDevice& device = fakes.empty() ? input_.device : input_.host;
  Json settings;
  for (const PerplexityResult& result : measure_perplexity(*device.backend, *device.decoder, input_.tokens, options)) {
    for (const ChunkQuality& c : result.chunks) settings[result.kv].push_back({c.nll, c.kl, c.top1_agreement});
  }
  return {{"settings", std::move(settings)}};
}

std::vector<Task> Study::tasks() {
  std::vector<Task> all;
  for (int64_t chunk = 0; chunk < n_captured_; ++chunk) all.push_back(capture_task(chunk));
  const int64_t at_once = std::min(kChunksAtOnce, chunks_.n_chunks);
  for (int64_t first = 0; first < chunks_.n_chunks; first += at_once) {
    const int64_t n = std::min(at_once, chunks_.n_chunks - first);
    for (const auto& pass : quality_passes(shape_, plan_.settings, chunks_.context, n, kCacheBytes, is_split())) {
      all.push_back(quality_task(pass, first, n));
    }
  }
  return all;
}

Json Study::quality(const std::vector<Json>& parts) const {
  std::vector<MeasuredQuality> measured(plan_.settings.size());
  const auto append = [](std::vector<ChunkQuality>& list, const Json& rows) {
    for (const Json& row : rows) list.push_back({row[0], row[1], row[2]});
  };
  for (size_t i = 0; i < plan_.settings.size(); ++i) {
    const std::string& name = plan_.settings[i].kv.is_packed() ? plan_.settings[i].name : "f16";
    for (const Json& part : parts) {
      if (!part.contains("settings") || !part["settings"].contains(name)) continue;
      append(measured[i].chunks, part["settings"][name]);
      append(measured[i].f16, part["settings"]["f16"]);
    }
  }
  Json tables = plan_.tables;
  tables["settings"] = summarise_quality(shape_, plan_.settings, measured, chunks_.context);
  return tables;
}

Json Study::run() {
  const std::vector<Task> all = tasks();
  std::vector<std::optional<Json>> found;
  double left = 0;
  for (const Task& task : all) {
    found.push_back(parts_.find(task.description));
    if (!found.back()) left += task.cost;
  }
  std::vector<Json> done;
  double spent = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!found[i]) {
      const auto tell = [&](double part) {
        if (options_.progress) options_.progress((spent + part * all[i].cost) / left);
      };
      found[i] = all[i].run(tell);
      parts_.keep(all[i].description, *found[i]);
      spent += all[i].cost;
      if (options_.progress) options_.progress(spent / left);
    }
    done.push_back(std::move(*found[i]));
  }
  const std::span captured(done.data(), static_cast<size_t>(n_captured_));
  Json result = {{"chunks", {{"context", chunks_.context}, {"n", chunks_.n_chunks}, {"captured", n_captured_}}}};
  result["layers"] = summarise_layers(captured, shape_.head_dim);
  result["errors"] = summarise_errors(captured);
  result["maps"] = done.front()["maps"];
  result["quality"] = quality(done);
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
