// Which caches a study measures through decode, and what it makes of the measurements.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "eval/perplexity.h"
#include "study/fake_cache.h"

namespace kivi {

// One cache. With `fake`, the packed format does not have it, and a 16-bit cache stands in.
struct QualitySetting {
  std::string name;
  KvConfig kv;
  std::optional<FakeCacheConfig> fake{};
  bool on_host = false;  // measured there, beside a device that cannot
};

// Settings, each once, and the tables of the study, whose rows name them:
// {"presets":[{"setting"}],"axes":[{"keys","values","bits","window","setting"}],"group_size":[{"value","setting"}],
//  "residual":[{"value","setting"}]}
struct QualityPlan {
  std::vector<QualitySetting> settings;
  nlohmann::ordered_json tables;
};

// A residual that no chunk of `context` tokens outgrows is left out.
QualityPlan plan_quality(const KvShape& shape, std::span<const KvConfig> presets, int64_t context);

// What one measurement runs side by side: a few settings whose caches fit in memory_bytes together with the base's, at
// least one, all on the host or none. Indices into `settings`.
std::vector<std::vector<size_t>> quality_passes(const KvShape& shape, std::span<const QualitySetting> settings,
                                                int64_t context, int64_t n_chunks, int64_t memory_bytes);

// What a setting did, and f16 beside it, by chunk.
struct MeasuredQuality {
  std::vector<ChunkQuality> chunks;
  std::vector<ChunkQuality> f16;
};

// By setting: {"name","is_fake","bits_per_element","effective_bits_per_element","perplexity",
//   "loss"|"kl"|"top1": {"mean","low","high"}, "chunks": [[nll, kl, top1], ...]}
// Intervals are of 95 %, over chunks. The loss is that of perplexity, relative to f16, from the differences of the same
// chunks. `measured` is by setting.
nlohmann::ordered_json summarise_quality(const KvShape& shape, std::span<const QualitySetting> settings,
                                         std::span<const MeasuredQuality> measured, int64_t context);

}  // namespace kivi
