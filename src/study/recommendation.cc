#include "study/recommendation.h"

#include <algorithm>

#include "core/error.h"
#include "eval/kv_report.h"

namespace kivi {
namespace {

using Json = nlohmann::ordered_json;

const Json& quality_of(const Json& qualities, const std::string& name) {
  for (const Json& quality : qualities) {
    if (quality["name"] == name) return quality;
  }
  fail(ErrorCode::kInternal, "preset {} was not measured", name);
}

}  // namespace

int64_t longest_context(const KvShape& shape, const KvConfig& config, int64_t memory_bytes) {
  int64_t fits = 0;
  int64_t fails = int64_t{1} << 30;
  while (fails - fits > 1) {
    const int64_t middle = fits + (fails - fits) / 2;
    (memory_of(shape, config, middle).allocated_bytes() <= memory_bytes ? fits : fails) = middle;
  }
  return fits;
}

Json recommend(const KvShape& shape, std::span<const KvConfig> presets, const Json& qualities,
               const RecommendationOptions& options) {
  Json candidates = Json::array();
  for (const KvConfig& preset : presets) {
    const KvReport report = report_kv(shape, {&preset, 1}, options.model_context).front();
    const Json& loss = quality_of(qualities, preset.name)["loss"];
    candidates.push_back({{"setting", preset.name},
                          {"bytes_per_token", report.bytes_per_token},
                          {"bytes_at_context", report.at_context.allocated_bytes()},
                          {"context_in_memory", longest_context(shape, preset, options.memory_bytes)},
                          {"loss", loss},
                          {"is_under", loss["mean"].get<double>() <= options.max_loss}});
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const Json& a, const Json& b) {
    return a["bytes_at_context"].get<int64_t>() < b["bytes_at_context"].get<int64_t>();
  });
  Json result = {{"max_loss", options.max_loss},
                 {"memory_bytes", options.memory_bytes},
                 {"model_context", options.model_context},
                 {"setting", nullptr},
                 {"is_certain", false}};
  const auto best =
      std::find_if(candidates.begin(), candidates.end(), [](const Json& c) { return c["is_under"].get<bool>(); });
  if (best != candidates.end()) {
    const Json& quality = quality_of(qualities, (*best)["setting"]);
    result["setting"] = (*best)["setting"];
    result["is_certain"] = quality["chunks"].size() > 1 && (*best)["loss"]["high"].get<double>() <= options.max_loss;
  }
  result["candidates"] = std::move(candidates);
  return result;
}

}  // namespace kivi
