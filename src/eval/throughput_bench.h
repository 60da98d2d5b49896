// Throughput: many requests at once, served by the engine as fast as it can.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_config.h"
#include "core/progress.h"
#include "engine/engine.h"
#include "model/decoder.h"

namespace kivi {

struct ThroughputResult {
  std::string kv;
  int64_t n_requests = 0;
  int64_t n_prompt = 0;
  int64_t n_output = 0;
  double seconds = 0.0;               // of the whole run
  double output_tokens_per_s = 0.0;   // of the whole run
  double decode_tokens_per_s = 0.0;   // of the steps that only decode
  double prefill_tokens_per_s = 0.0;  // of the steps with prompts, their decoding rows apart
  int64_t weight_bytes = 0;
  int64_t peak_kv_bytes = 0;       // of the slabs of pages
  int64_t peak_memory_bytes = 0;   // weights, pages in use and everything else
  int64_t kv_bytes = 0;            // room for pages
  int64_t kv_capacity_tokens = 0;  // of sequences as long as these, in the memory that pages may take
  int64_t max_running = 0;
  int64_t preemptions = 0;
  int64_t steps = 0;
  double step_ms_p50 = 0.0;  // of the steps that only decode
  double step_ms_p90 = 0.0;
  double step_ms_p99 = 0.0;
};

struct ThroughputOptions {
  std::vector<KvConfig> kv{};  // at least one
  int64_t n_requests = 0;
  int64_t n_prompt = 0;       // random tokens of each
  int64_t n_output = 0;       // tokens of each; nothing ends an output earlier
  int64_t max_sequences = 0;  // that run at a time; 0: all
  EngineOptions engine{};     // memory and steps; the rest follows from what is above
  bool decode_only = false;   // prompts are not computed: the speed of decoding alone, at their length
  // What the backend had free before the weights were loaded (0 where it does not say), and their bytes.
  int64_t free_bytes_at_start = 0;
  int64_t weight_bytes = 0;
  ProgressCallback progress{};                               // of the configuration or batch that runs
  std::function<void(const ThroughputResult&)> on_result{};  // as soon as there is one
};

// All requests are submitted at once and decode greedily; prompts are the same for every configuration. Throws Error if
// a request fails.
std::vector<ThroughputResult> bench_throughput(Backend& backend, Decoder& decoder, const ThroughputOptions& options);

// The same for batches of 1, 2, 4 ... requests and at last the most that the memory holds, and also for the most that
// it held under each configuration before; n_requests is the most that is tried.
std::vector<ThroughputResult> sweep_batches(Backend& backend, Decoder& decoder, const ThroughputOptions& options);

// What a sweep says of memory, each configuration beside the first.
struct MemoryComparison {
  std::string kv;
  int64_t kv_capacity_tokens = 0;
  double capacity_ratio = 0.0;  // to the first's
  int64_t largest_batch = 0;    // that was run
  double batch_ratio = 0.0;
  int64_t peak_memory_bytes = 0;   // at the first's largest batch, weights included; 0 if that was not run
  double peak_memory_ratio = 0.0;  // the first's to this
};
std::vector<MemoryComparison> compare_memory(std::span<const ThroughputResult> sweep);

// [{"kv","requests","prompt","output","seconds","output_tokens_per_s","decode_only_tokens_per_s","peak_memory_bytes",
//   "weight_bytes","kv_capacity_tokens","max_running","preemptions",...}]
nlohmann::ordered_json to_json(std::span<const ThroughputResult> results);
// [{"kv","kv_capacity_tokens","capacity_ratio","largest_batch","batch_ratio","peak_memory_bytes","peak_memory_ratio"}]
nlohmann::ordered_json to_json(std::span<const MemoryComparison> rows);

}  // namespace kivi
