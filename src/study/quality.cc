#include "study/quality.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cache/kv_memory.h"
#include "eval/tasks/confidence.h"

namespace kivi {
namespace {

using Json = nlohmann::ordered_json;

// Settings of a pass. More would save little of the base's time, and lose more to an interruption.
constexpr size_t kMostAtOnce = 8;

class Planner {
 public:
  explicit Planner(const KvShape& shape) : shape_(shape) {}

  // The name of the setting, which is added if there is none of that name.
  std::string add(QualitySetting setting) {
    const auto has_name = [&](const QualitySetting& known) { return known.name == setting.name; };
    if (std::ranges::none_of(plan.settings, has_name)) plan.settings.push_back(setting);
    return setting.name;
  }
  std::string add(const KvConfig& config) {
    config.validate(shape_);
    return add({.name = config.name, .kv = config});
  }
  // The paper's preset with one field changed, or itself.
  std::string add_kivi2(const char* field, int value) {
    const KvConfig changed = parse_kv_config(fmt::format("kivi2:{}={}", field, value));
    const KvConfig plain = parse_kv_config("kivi2");
    const bool is_plain = changed.group_size == plain.group_size && changed.residual_length == plain.residual_length;
    return add(is_plain ? plain : changed);
  }
  std::string add_axes(GroupAxis keys, GroupAxis values, int bits, bool has_window) {
    const bool is_packed = keys == GroupAxis::kChannel && values == GroupAxis::kToken;
    KvConfig config = parse_kv_config(bits == 2 ? "kivi2" : "kivi4");
    if (!has_window) config = parse_kv_config(config.name + ":residual=0");
    if (is_packed) return add(config);
    FakeCacheConfig fake = with_axes(config, shape_, keys, values);
    fake.name = fmt::format("{} with K per {}, V per {}", config.name, name(keys), name(values));
    return add({.name = fake.name, .kv = config, .fake = fake});
  }

  QualityPlan plan;

 private:
  const KvShape& shape_;
};

Json to_json(const MeanEstimate& mean) {
  return {{"mean", mean.value}, {"low", mean.interval.low}, {"high", mean.interval.high}};
}

template <typename Measure>
MeanEstimate over_chunks(size_t n_chunks, Measure measure) {
  std::vector<double> x;
  for (size_t i = 0; i < n_chunks; ++i) x.push_back(measure(i));
  return mean_of(x);
}

Json summarise(const KvShape& shape, const QualitySetting& setting, const MeasuredQuality& measured, int64_t context) {
  const std::vector<ChunkQuality>& chunks = measured.chunks;
  const size_t n = chunks.size();
  const MeanEstimate nll = over_chunks(n, [&](size_t i) { return chunks[i].nll; });
  const MeanEstimate difference = over_chunks(n, [&](size_t i) { return chunks[i].nll - measured.f16[i].nll; });
  const MeanEstimate loss = {std::expm1(difference.value),
                             {std::expm1(difference.interval.low), std::expm1(difference.interval.high)}};
  Json list = Json::array();
  for (const ChunkQuality& chunk : chunks) list.push_back({chunk.nll, chunk.kl, chunk.top1_agreement});
  return {{"name", setting.name},
          {"is_fake", setting.fake.has_value()},
          {"bits_per_element", setting.kv.layout(shape).bits_per_element()},
          {"effective_bits_per_element", memory_of(shape, setting.kv, context).effective_bits_per_element()},
          {"perplexity", std::exp(nll.value)},
          {"loss", to_json(loss)},
          {"kl", to_json(over_chunks(n, [&](size_t i) { return chunks[i].kl; }))},
          {"top1", to_json(over_chunks(n, [&](size_t i) { return chunks[i].top1_agreement; }))},
          {"chunks", std::move(list)}};
}

}  // namespace

QualityPlan plan_quality(const KvShape& shape, std::span<const KvConfig> presets, int64_t context) {
  Planner planner(shape);
  Json& tables = planner.plan.tables;
  for (const KvConfig& preset : presets) tables["presets"].push_back({{"setting", planner.add(preset)}});
  const auto add_axes = [&](GroupAxis keys, GroupAxis values, int bits, bool has_window) {
    tables["axes"].push_back({{"keys", name(keys)},
                              {"values", name(values)},
                              {"bits", bits},
                              {"window", has_window},
                              {"setting", planner.add_axes(keys, values, bits, has_window)}});
  };
  using enum GroupAxis;
  add_axes(kToken, kToken, 4, false);  // what other engines call int4
  for (const bool has_window : {false, true}) {
    for (const GroupAxis keys : {kChannel, kToken}) {
      for (const GroupAxis values : {kToken, kChannel}) add_axes(keys, values, 2, has_window);
    }
  }
  for (const int size : {16, 32, 64, 128}) {
    tables["group_size"].push_back({{"value", size}, {"setting", planner.add_kivi2("group-size", size)}});
  }
  for (const int length : {0, 32, 64, 128, 256}) {
    if (length >= context) continue;
    tables["residual"].push_back({{"value", length}, {"setting", planner.add_kivi2("residual", length)}});
  }
  return std::move(planner.plan);
}

std::vector<std::vector<size_t>> quality_passes(const KvShape& shape, std::span<const QualitySetting> settings,
                                                int64_t context, int64_t n_chunks, int64_t memory_bytes) {
  const KvConfig f16 = parse_kv_config("f16");
  const auto bytes_of = [&](const KvConfig& config) {
    return n_chunks * memory_of(shape, config, context).allocated_bytes();
  };
  std::vector<size_t> order(settings.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_partition(order, [&](size_t i) { return !settings[i].on_host; });
  std::vector<std::vector<size_t>> passes;
  int64_t room = 0;
  for (const size_t i : order) {
    const int64_t bytes = bytes_of(settings[i].fake ? f16 : settings[i].kv);
    const bool moves = !passes.empty() && settings[passes.back().front()].on_host != settings[i].on_host;
    if (passes.empty() || moves || bytes > room || passes.back().size() == kMostAtOnce) {
      passes.emplace_back();
      room = memory_bytes - bytes_of(f16);
    }
    passes.back().push_back(i);
    room -= bytes;
  }
  return passes;
}

Json summarise_quality(const KvShape& shape, std::span<const QualitySetting> settings,
                       std::span<const MeasuredQuality> measured, int64_t context) {
  Json list = Json::array();
  for (size_t i = 0; i < settings.size(); ++i) list.push_back(summarise(shape, settings[i], measured[i], context));
  return list;
}

}  // namespace kivi
