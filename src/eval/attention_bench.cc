#include "eval/attention_bench.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <random>

#include "backend/tensor.h"
#include "cache/kv_cache.h"
#include "core/error.h"
#include "eval/attention_inputs.h"
#include "eval/call_timer.h"
#include "eval/read_bandwidth.h"

namespace kivi {
namespace {

constexpr AttentionShape kShapes[] = {
    {1, 131072, 32, 32, 128}, {8, 32768, 32, 32, 128}, {64, 4096, 32, 32, 128}, {256, 512, 32, 32, 128},
    {1, 131072, 32, 8, 128},  {8, 32768, 32, 8, 128},  {64, 4096, 32, 8, 128},  {256, 512, 32, 8, 128},
};
constexpr uint32_t kSeed = 1;

using Lengths = std::vector<int64_t>;

Lengths ragged_lengths(const AttentionShape& shape) {
  std::mt19937 random(kSeed);
  Lengths lengths;
  for (int b = 0; b < shape.batch; ++b) lengths.push_back(1 + random() % (2 * shape.tokens));
  return lengths;
}

// Steps until the windows have gone through all their states.
int64_t flush_cycle(const KvConfig& config) {
  return std::max({config.key_policy().flush, config.value_policy().flush, format::kWindowPageTokens});
}

// Sequences of a cache of n_layers, each of another length.
class FilledCache {
 public:
  FilledCache(Backend& backend, const AttentionInputs& inputs, const KvConfig& config, int n_layers, int64_t max_tokens)
      : backend_(backend),
        inputs_(inputs),
        cache_(backend, {n_layers, inputs.shape().kv_heads, inputs.shape().head_dim}, config,
               {.max_tokens = max_tokens, .max_sequences = inputs.shape().batch}) {
    cache_.scatter_pages(kSeed);
    for (int b = 0; b < inputs.shape().batch; ++b) step_.push_back({.id = cache_.create(), .n_new = 1});
  }

  int n_layers() const { return cache_.shape().n_layers; }

  // Stores random tokens, a few of every sequence at a time.
  void grow_to(const Lengths& lengths) {
    for (;;) {
      std::vector<StepSequence> chunk;
      const int64_t most = std::max<int64_t>(1, AttentionInputs::kMostRows / std::ssize(lengths));
      for (size_t b = 0; b < lengths.size(); ++b) {
        const int64_t missing = lengths[b] - cache_.n_tokens(step_[b].id);
        if (missing > 0) chunk.push_back({step_[b].id, static_cast<int32_t>(std::min(missing, most))});
      }
      if (chunk.empty()) return;
      begin(chunk);
      for (int layer = 0; layer < n_layers(); ++layer) store(layer);
      cache_.commit();
    }
  }

  // One new token of every sequence; the operations that follow are those of this step.
  void begin_decoding() { begin(step_); }
  void end_step() { cache_.commit(); }

  void plan() {
    backend_.plan_attend({.seq_begin = cache_.seq_begin(),
                          .cache = cache_.view(0),
                          .n_rows = inputs_.shape().batch,
                          .n_heads = inputs_.shape().q_heads});
  }
  void attend(int64_t layer) {
    const auto [keys, values] = rows();
    backend_.attend({.q = inputs_.q(),
                     .new_keys = keys,
                     .new_values = values,
                     .seq_begin = cache_.seq_begin(),
                     .cache = cache_.view(static_cast<int>(layer)),
                     .softmax_scale = 1.0F / std::sqrt(static_cast<float>(inputs_.shape().head_dim)),
                     .out = inputs_.out()});
  }
  void store(int64_t layer) {
    const auto [keys, values] = rows();
    backend_.store_kv({keys, values, cache_.seq_begin(), cache_.view(static_cast<int>(layer))});
  }

 private:
  void begin(std::span<const StepSequence> step) {
    if (!cache_.reserve(step)) fail(ErrorCode::kInternal, "KV cache {} is full", cache_.config().name);
    n_rows_ = std::accumulate(step.begin(), step.end(), int64_t{0},
                              [](int64_t sum, const StepSequence& entry) { return sum + entry.n_new; });
    first_row_ = inputs_.random_row(random_, n_rows_);
  }
  std::pair<AnyView, AnyView> rows() const { return inputs_.keys_and_values(first_row_, n_rows_); }

  Backend& backend_;
  const AttentionInputs& inputs_;
  KvCache cache_;
  std::vector<StepSequence> step_;  // of decoding
  std::mt19937 random_{kSeed};
  int64_t first_row_ = 0;  // of this step's keys and values among the inputs
  int64_t n_rows_ = 0;
};

class AttentionBench {
 public:
  AttentionBench(Backend& backend, const AttentionBenchOptions& options) : backend_(backend), options_(options) {}

  AttentionReport run();

 private:
  void measure(const AttentionInputs& inputs, const KvConfig& config, bool is_ragged);
  FilledCache fill(const AttentionInputs& inputs, const KvConfig& config, const Lengths& lengths) const;
  void measure_attend(const AttentionInputs& inputs, FilledCache& cache, AttentionResult result);
  void measure_store(const AttentionInputs& inputs, FilledCache& cache, const KvConfig& config);

  Backend& backend_;
  const AttentionBenchOptions& options_;
  AttentionReport report_;
};

void check(const AttentionShape& shape) {
  const bool is_positive =
      shape.batch > 0 && shape.tokens > 0 && shape.q_heads > 0 && shape.kv_heads > 0 && shape.head_dim > 0;
  if (!is_positive || shape.q_heads % shape.kv_heads != 0) {
    fail(ErrorCode::kInvalidArgument,
         "shape {}: all numbers must be at least 1, and query heads a multiple of KV heads", to_string(shape));
  }
}

AttentionReport AttentionBench::run() {
  for (const AttentionShape& shape : options_.shapes) check(shape);
  report_.read_bandwidth = measure_read_bandwidth(backend_, options_.read_bytes);
  double n_done = 0;
  const auto n_all = static_cast<double>(options_.shapes.size() * options_.kv.size());
  for (const AttentionShape& shape : options_.shapes) {
    const AttentionInputs inputs(backend_, shape);
    for (const KvConfig& config : options_.kv) {
      measure(inputs, config, false);
      if (options_.ragged && config.is_packed() && shape.batch > 1) measure(inputs, config, true);
      if (options_.progress) options_.progress(++n_done / n_all);
    }
  }
  return std::move(report_);
}

void AttentionBench::measure(const AttentionInputs& inputs, const KvConfig& config, bool is_ragged) {
  const AttentionShape& shape = inputs.shape();
  const Lengths lengths = is_ragged ? ragged_lengths(shape) : Lengths(static_cast<size_t>(shape.batch), shape.tokens);
  FilledCache cache = fill(inputs, config, lengths);
  measure_attend(inputs, cache,
                 {.kv = config.name,
                  .group_size = config.is_packed() ? config.group_size : 0,
                  .shape = shape,
                  .is_ragged = is_ragged,
                  .bytes = attend_bytes(config, shape, lengths),
                  .read_bandwidth = report_.read_bandwidth});
  if (options_.stores && !is_ragged) measure_store(inputs, cache, config);
}

FilledCache AttentionBench::fill(const AttentionInputs& inputs, const KvConfig& config, const Lengths& lengths) const {
  const int64_t layer_bytes = attend_bytes(config, inputs.shape(), lengths);
  const auto n_layers = static_cast<int>((options_.cold_bytes + layer_bytes - 1) / layer_bytes);
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  const int64_t later = options_.stores ? 2 * flush_cycle(config) : 0;
  try {
    FilledCache cache(backend_, inputs, config, std::max(n_layers, 1), longest + 1 + later);
    cache.grow_to(lengths);
    return cache;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    fail(ErrorCode::kOutOfMemory, "attention of {} from {}: {}; or give other --shapes", to_string(inputs.shape()),
         config.name, error.what());
  }
}

void AttentionBench::measure_attend(const AttentionInputs& inputs, FilledCache& cache, AttentionResult result) {
  const auto time = [&](int64_t n_round, const std::function<void(int64_t)>& call) {
    return 1e6 * CallTimer(backend_, n_round, call, options_.sample_seconds).median_of(options_.n_samples);
  };
  cache.begin_decoding();
  result.plan_microseconds = time(1, [&](int64_t /*i*/) { cache.plan(); });
  result.n_layers = cache.n_layers();
  result.microseconds = time(result.n_layers, [&](int64_t layer) { cache.attend(layer); });
  cache.end_step();
  inputs.check_output();
  report_.results.push_back(result);
  if (options_.on_result) options_.on_result(result);
}

// Lengths lie evenly in the cycle of the windows, as those of requests do, so that in every step some sequences pack.
void AttentionBench::measure_store(const AttentionInputs& inputs, FilledCache& cache, const KvConfig& config) {
  const AttentionShape& shape = inputs.shape();
  StoreResult result{.kv = config.name,
                     .group_size = config.is_packed() ? config.group_size : 0,
                     .shape = shape,
                     .n_steps = flush_cycle(config)};
  Lengths lengths;
  for (int b = 0; b < shape.batch; ++b) lengths.push_back(shape.tokens + b * result.n_steps / shape.batch);
  cache.grow_to(lengths);
  std::optional<CallTimer> timer;
  for (int64_t i = 0; i < result.n_steps; ++i) {
    cache.begin_decoding();
    constexpr double kPartOfSample = 0.1;  // there are many steps
    if (!timer) {
      timer.emplace(
          backend_, cache.n_layers(), [&](int64_t layer) { cache.store(layer); },
          kPartOfSample * options_.sample_seconds);
    }
    const double microseconds = 1e6 * timer->sample();
    result.microseconds += microseconds / static_cast<double>(result.n_steps);
    result.microseconds_longest = std::max(result.microseconds_longest, microseconds);
    cache.end_step();
  }
  report_.stores.push_back(result);
}

nlohmann::ordered_json shape_json(const std::string& kv, int group_size, const AttentionShape& shape) {
  return {{"kv", kv},
          {"group_size", group_size},
          {"batch", shape.batch},
          {"tokens", shape.tokens},
          {"q_heads", shape.q_heads},
          {"kv_heads", shape.kv_heads},
          {"head_dim", shape.head_dim}};
}

}  // namespace

std::span<const AttentionShape> attention_shapes() {
  return kShapes;
}

AttentionShape parse_attention_shape(std::string_view text) {
  std::vector<int64_t> numbers;
  const char* at = text.data();
  const char* end = at + text.size();
  for (;;) {
    int64_t number = 0;
    const auto [next, error] = std::from_chars(at, end, number);
    if (error != std::errc() || number < 1 || number > std::numeric_limits<int32_t>::max() / 2) break;
    numbers.push_back(number);
    at = next;
    if (at == end || *at != 'x') break;
    ++at;
  }
  if (at != end || numbers.size() != 5) {
    fail(ErrorCode::kInvalidArgument,
         "shape {}: give batch, tokens, query heads, KV heads and head_dim, as 64x4096x32x8x128", text);
  }
  const AttentionShape shape{static_cast<int>(numbers[0]), numbers[1], static_cast<int>(numbers[2]),
                             static_cast<int>(numbers[3]), static_cast<int>(numbers[4])};
  check(shape);
  return shape;
}

std::string to_string(const AttentionShape& shape) {
  return fmt::format("{}x{}x{}x{}x{}", shape.batch, shape.tokens, shape.q_heads, shape.kv_heads, shape.head_dim);
}

int64_t attend_bytes(const KvConfig& config, const AttentionShape& shape, std::span<const int64_t> n_past) {
  const KvShape layer{.n_layers = 1, .n_kv_heads = shape.kv_heads, .head_dim = shape.head_dim};
  constexpr int64_t kRowBytes = 2;  // of a number
  int64_t bytes = 0;
  for (const int64_t n : n_past)
    bytes += memory_of(layer, config, n).used_bytes() + kRowBytes * layer.elements_per_token();
  return bytes;
}

AttentionReport bench_attention(Backend& backend, const AttentionBenchOptions& options) {
  return AttentionBench(backend, options).run();
}

nlohmann::ordered_json to_json(const AttentionReport& report) {
  auto results = nlohmann::ordered_json::array();
  for (const AttentionResult& r : report.results) {
    results.push_back(shape_json(r.kv, r.group_size, r.shape));
    results.back().update({{"microseconds", r.microseconds},
                           {"bytes", r.bytes},
                           {"gb_s", 1e-9 * r.bytes_per_s()},
                           {"fraction_of_read_bandwidth", r.fraction_of_read_bandwidth()},
                           {"ragged", r.is_ragged},
                           {"plan_microseconds", r.plan_microseconds},
                           {"layers", r.n_layers}});
  }
  auto stores = nlohmann::ordered_json::array();
  for (const StoreResult& r : report.stores) {
    stores.push_back(shape_json(r.kv, r.group_size, r.shape));
    stores.back().update(
        {{"microseconds", r.microseconds}, {"microseconds_longest", r.microseconds_longest}, {"steps", r.n_steps}});
  }
  return {{"read_bandwidth_gb_s", 1e-9 * report.read_bandwidth},
          {"results", std::move(results)},
          {"stores", std::move(stores)}};
}

}  // namespace kivi
