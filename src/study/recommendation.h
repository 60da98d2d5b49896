// Which preset to use: the smallest whose loss stays under a limit.
#pragma once

#include <nlohmann/json.hpp>
#include <span>

#include "cache/kv_config.h"

namespace kivi {

struct RecommendationOptions {
  double max_loss = 0.01;     // of perplexity, relative
  int64_t memory_bytes = 0;   // of the KV cache
  int64_t model_context = 0;  // tokens
};

// Tokens of the longest sequence whose cache fits in memory_bytes; 0 if none does.
int64_t longest_context(const KvShape& shape, const KvConfig& config, int64_t memory_bytes);

// `qualities` is what summarise_quality gives, in which every preset has its place by name.
// {"max_loss","memory_bytes","model_context","setting": null or a name,"is_certain",
//  "candidates": [{"setting","bytes_per_token","bytes_at_context","context_in_memory","loss","is_under"}, ...]}
// Candidates are sorted by their bytes at the model's context, smallest first. is_certain: the loss's whole interval is
// under the limit, of more than one chunk.
nlohmann::ordered_json recommend(const KvShape& shape, std::span<const KvConfig> presets,
                                 const nlohmann::ordered_json& qualities, const RecommendationOptions& options);

}  // namespace kivi
