// Attention of a decode step by itself, on caches as the engine has them: how much of the memory's read bandwidth it
// reaches, whatever the model.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_config.h"
#include "core/progress.h"

namespace kivi {

struct AttentionShape {
  int batch = 0;
  int64_t tokens = 0;  // stored of each sequence; attention sees these and the new one
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;

  friend bool operator==(const AttentionShape&, const AttentionShape&) = default;
};

// The eight that are quoted: from one long sequence to many short ones, with as many KV heads as query heads and with a
// quarter of them.
std::span<const AttentionShape> attention_shapes();
// "64x4096x32x8x128": batch, tokens, query heads, KV heads, head_dim. Throws Error{kInvalidArgument}.
AttentionShape parse_attention_shape(std::string_view text);
std::string to_string(const AttentionShape& shape);

struct AttentionResult {
  std::string kv;
  int group_size = 0;  // 0 where nothing is packed
  AttentionShape shape;
  bool is_ragged = false;        // lengths drawn evenly from 1 to twice shape.tokens
  double microseconds = 0;       // of a call: one layer
  int64_t bytes = 0;             // of keys and values that a call reads: codes, scales, zeros and rows in 16 bits
  double read_bandwidth = 0;     // of the device, bytes a second
  double plan_microseconds = 0;  // plan_attend, which a step calls once for all its layers
  int64_t n_layers = 0;          // that calls went round, so that none finds its cache in the second-level cache

  double bytes_per_s() const { return static_cast<double>(bytes) / (microseconds * 1e-6); }
  double fraction_of_read_bandwidth() const { return bytes_per_s() / read_bandwidth; }
};

// store_kv of decode steps, appending and packing.
struct StoreResult {
  std::string kv;
  int group_size = 0;
  AttentionShape shape;
  double microseconds = 0;  // of a layer, the mean of n_steps steps: as many as a window takes to fill
  double microseconds_longest = 0;
  int64_t n_steps = 0;
};

struct AttentionReport {
  double read_bandwidth = 0;  // bytes a second, of a plain reading operation
  std::vector<AttentionResult> results{};
  std::vector<StoreResult> stores{};
};

struct AttentionBenchOptions {
  std::vector<KvConfig> kv{};
  std::vector<AttentionShape> shapes{};
  bool ragged = false;  // also with ragged lengths, where there are several sequences and something is packed
  bool stores = false;  // also time store_kv
  double sample_seconds = 0.02;
  int n_samples = 7;  // the median counts
  // Calls go round as many layers as hold this: several times what a GPU's second-level cache does.
  int64_t cold_bytes = int64_t{256} << 20;
  int64_t read_bytes = 0;  // for measure_read_bandwidth
  ProgressCallback progress{};
  std::function<void(const AttentionResult&)> on_result{};
};

// Random numbers fill real caches by store_kv, in chunks, pages in a random order. Results by shape, then
// configuration. Throws Error{kInvalidArgument} on shapes that cannot be, Error{kOutOfMemory} naming the shape,
// Error{kInternal} if a result is not finite or always the same.
AttentionReport bench_attention(Backend& backend, const AttentionBenchOptions& options);

// Bytes of the keys and values that attention of one new token of each sequence reads, n_past tokens being stored:
// those of every KV head once.
int64_t attend_bytes(const KvConfig& config, const AttentionShape& shape, std::span<const int64_t> n_past);

// {"read_bandwidth_gb_s","results":[{"kv","group_size","batch",...}],"stores":[...]}
nlohmann::ordered_json to_json(const AttentionReport& report);

}  // namespace kivi
