// Decode speed at a depth: how fast the next tokens come when a cache already holds some.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_config.h"
#include "cache/kv_memory.h"
#include "core/progress.h"
#include "model/decoder.h"

namespace kivi {

struct DecodeBenchOptions {
  std::vector<KvConfig> kv{};     // at least one
  std::vector<int64_t> depths{};  // tokens in the cache before decoding starts; may pass the model's context
  int64_t n_decode = 32;          // tokens of a repetition
  int repetitions = 3;            // one after the other, so that the k-th starts at depth + k * n_decode
  ProgressCallback progress{};
};

struct DecodeBenchResult {
  std::string kv;
  int64_t depth = 0;
  double decode_tokens_per_s = 0.0;       // median of the repetitions
  double decode_tokens_per_s_best = 0.0;  // on a machine with neighbours this says more
  double prefill_tokens_per_s = 0.0;      // of the prompt that fills the depth; 0 at depth 0, which has none
  KvMemory kv_memory{};                   // at the depth
};

// For each depth every cache is filled by one prefill; then the repetitions of the configurations take turns, so that a
// neighbour's load hits all of them. Greedy decoding of pseudo-random tokens. Results by depth, then configuration.
std::vector<DecodeBenchResult> bench_decode(Backend& backend, Decoder& decoder, const DecodeBenchOptions& options);

// [{"kv","depth","decode_tokens_per_s","prefill_tokens_per_s","kv_bytes",...}]
nlohmann::ordered_json to_json(std::span<const DecodeBenchResult> results);

}  // namespace kivi
