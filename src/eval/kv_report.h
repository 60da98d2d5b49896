// What the cache of a model costs under each configuration.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "cache/kv_config.h"
#include "cache/kv_memory.h"

namespace kivi {

struct KvReport {
  std::string kv;
  double bits_per_element = 0.0;  // of the packed format: codes, scales and zeros; 16 for f16
  double bytes_per_token = 0.0;   // in all layers: a long sequence grows by it where no layer slides
  KvMemory at_context;            // of one sequence
};

std::vector<KvReport> report_kv(const KvShape& shape, std::span<const KvConfig> configs, int64_t context);

// [{"kv","bytes_per_token","bytes_at_context","bits_per_element",...}]
nlohmann::ordered_json to_json(std::span<const KvReport> reports);

}  // namespace kivi
