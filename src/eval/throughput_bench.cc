#include "eval/throughput_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

namespace kivi {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check(const ThroughputOptions& options) {
  if (options.n_requests < 1 || options.n_prompt < 1 || options.n_output < 1) {
    fail(ErrorCode::kInvalidArgument, "{} requests of {} prompt and {} output tokens: all must be at least 1",
         options.n_requests, options.n_prompt, options.n_output);
  }
  if (options.max_sequences < 0) {
    fail(ErrorCode::kInvalidArgument, "{} sequences at a time: must not be negative", options.max_sequences);
  }
}

double per_second(int64_t n, double seconds) {
  return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
}

double ratio(int64_t a, int64_t b) {
  return b > 0 ? static_cast<double>(a) / static_cast<double>(b) : 0.0;
}

// The value that a part of the values do not pass.
double percentile(std::vector<double>& values, double part) {
  if (values.empty()) return 0.0;
  const auto at = static_cast<std::ptrdiff_t>(std::ceil(part * static_cast<double>(values.size()))) - 1;
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<size_t>(at)];
}

// One configuration.
class Run {
 public:
  Run(Backend& backend, Decoder& decoder, const KvConfig& kv, const ThroughputOptions& options)
      : backend_(&backend),
        decoder_(&decoder),
        options_(&options),
        engine_(backend, afresh(decoder), engine_options(kv, options)) {}

  // Requests that all fit at their full length: a matter of memory alone, not of how many there are.
  int64_t largest_batch() const {
    return sequences_that_fit(engine_.cache().shape(), engine_.cache().config(), n_tokens(), kv_memory());
  }

  ThroughputResult run(const std::function<void(int64_t)>& add_progress) {
    submit_all();
    engine_.warm_up();
    backend_->synchronize();
    const Clock::time_point start = Clock::now();
    while (!engine_.idle()) add_progress(step());
    backend_->synchronize();
    return result(seconds_since(start));
  }

 private:
  // Without the memory that larger steps of others needed.
  static Decoder& afresh(Decoder& decoder) {
    decoder.release();
    return decoder;
  }

  static EngineOptions engine_options(const KvConfig& kv, const ThroughputOptions& options) {
    const int64_t n_most = std::min<int64_t>(options.n_requests, 1 << 20);
    const int64_t n_sequences = options.max_sequences == 0 ? n_most : std::min(n_most, options.max_sequences);
    EngineOptions engine = options.engine;
    engine.kv = kv;
    engine.capacity.max_tokens = options.n_prompt + options.n_output;
    engine.capacity.max_sequences = static_cast<int>(n_sequences);
    engine.skip_prompts = options.decode_only;
    return engine;
  }

  void submit_all() {
    std::mt19937 random(1);
    const auto vocabulary = static_cast<uint32_t>(decoder_->config().vocab_size);
    for (int64_t i = 0; i < options_->n_requests; ++i) {
      Request request{.max_new_tokens = options_->n_output};
      for (int64_t t = 0; t < options_->n_prompt; ++t)
        request.prompt.push_back(static_cast<TokenId>(random() % vocabulary));
      engine_.submit(std::move(request));
    }
  }

  // Tokens that it has computed.
  int64_t step() {
    const EngineStats before = engine_.stats();
    const Clock::time_point start = Clock::now();
    const std::vector<Event> events = engine_.step();
    const double seconds = seconds_since(start);
    for (const Event& event : events) {
      if (event.finish && event.finish->error) throw Error(*event.finish->error);
      n_output_ += event.token ? 1 : 0;
    }
    const EngineStats after = engine_.stats();
    const int64_t n_decoded = after.decode_tokens - before.decode_tokens;
    if (after.prefill_tokens == before.prefill_tokens) {
      n_decoded_alone_ += n_decoded;
      decode_seconds_.push_back(seconds);
    }
    return n_decoded + after.prefill_tokens - before.prefill_tokens;
  }

  ThroughputResult result(double seconds) {
    const EngineStats stats = engine_.stats();
    const PageArena& arena = engine_.cache().arena();
    double decode_seconds = 0;
    for (const double s : decode_seconds_) decode_seconds += s;
    const auto p = [&](double part) { return 1000 * percentile(decode_seconds_, part); };
    return {.kv = engine_.cache().config().name,
            .n_requests = options_->n_requests,
            .n_prompt = options_->n_prompt,
            .n_output = options_->n_output,
            .seconds = seconds,
            .output_tokens_per_s = per_second(n_output_, seconds),
            .decode_tokens_per_s = per_second(n_decoded_alone_, decode_seconds),
            .prefill_tokens_per_s = stats.prefill_tokens_per_s(),
            .weight_bytes = options_->weight_bytes,
            .peak_kv_bytes = arena.peak_bytes_held(),
            .peak_memory_bytes = bytes_beside_pages() + arena.peak_bytes_held(),
            .kv_bytes = engine_.cache().capacity_bytes(),
            .kv_capacity_tokens = capacity_tokens(),
            .max_running = stats.max_running,
            .preemptions = stats.preemptions,
            .steps = stats.steps,
            .step_ms_p50 = p(0.5),
            .step_ms_p90 = p(0.9),
            .step_ms_p99 = p(0.99)};
  }

  int64_t n_tokens() const { return engine_.cache().capacity().max_tokens; }
  const SlabLayout& layout() const { return engine_.cache().arena().layout(); }
  // That pages may take; the cache takes less if its sequences need less.
  int64_t kv_memory() const {
    return std::max(engine_.cache().capacity().memory_bytes, engine_.cache().capacity_bytes());
  }
  int64_t capacity_tokens() const {
    const double each = layout().share_of_slabs(engine_.cache().most_pages(n_tokens()));
    return static_cast<int64_t>(static_cast<double>(kv_memory() / layout().slab_bytes * n_tokens()) / each);
  }

  // Counted by the backend if it does: that includes what libraries and recordings take.
  int64_t bytes_beside_pages() const {
    const auto n_free = static_cast<int64_t>(backend_->free_bytes());
    if (n_free == 0 || options_->free_bytes_at_start == 0) {
      return options_->weight_bytes + decoder_->activation_bytes();
    }
    return options_->free_bytes_at_start - n_free - engine_.cache().capacity_bytes();
  }

  Backend* backend_;
  Decoder* decoder_;
  const ThroughputOptions* options_;
  Engine engine_;
  int64_t n_output_ = 0;
  int64_t n_decoded_alone_ = 0;
  std::vector<double> decode_seconds_;  // of every step that only decodes
};

}  // namespace

std::vector<ThroughputResult> bench_throughput(Backend& backend, Decoder& decoder, const ThroughputOptions& options) {
  check(options);
  const int64_t n_all = options.n_requests * (options.n_output - 1 + (options.decode_only ? 1 : options.n_prompt));
  std::vector<ThroughputResult> results;
  for (const KvConfig& kv : options.kv) {
    int64_t n_done = 0;
    results.push_back(Run(backend, decoder, kv, options).run([&](int64_t n_tokens) {
      n_done += n_tokens;  // more than n_all where sequences are computed again
      if (options.progress) options.progress(std::min(1.0, static_cast<double>(n_done) / static_cast<double>(n_all)));
    }));
    if (options.on_result) options.on_result(results.back());
  }
  return results;
}

std::vector<ThroughputResult> sweep_batches(Backend& backend, Decoder& decoder, const ThroughputOptions& options) {
  check(options);
  std::vector<ThroughputResult> results;
  std::set<int64_t> largest;  // of the configurations so far
  for (const KvConfig& kv : options.kv) {
    ThroughputOptions one = options;
    one.kv = {kv};
    one.max_sequences = 0;
    const int64_t that_fit = Run(backend, decoder, kv, one).largest_batch();
    const int64_t most = std::clamp<int64_t>(that_fit, 1, options.n_requests);  // one that does not fit says so
    largest.insert(most);
    std::set<int64_t> batches = largest;
    for (int64_t batch = 1; batch < most; batch *= 2) batches.insert(batch);
    for (const int64_t batch : batches) {
      if (batch > most) break;
      one.n_requests = batch;
      results.push_back(bench_throughput(backend, decoder, one).front());
    }
  }
  return results;
}

std::vector<MemoryComparison> compare_memory(std::span<const ThroughputResult> sweep) {
  const auto find = [&](const std::string& kv, int64_t batch) {
    return std::ranges::find_if(sweep, [&](const auto& r) { return r.kv == kv && r.n_requests == batch; });
  };
  std::vector<MemoryComparison> rows;
  for (const ThroughputResult& result : sweep) {
    if (rows.empty() || rows.back().kv != result.kv) rows.push_back({.kv = result.kv});
    rows.back().kv_capacity_tokens = result.kv_capacity_tokens;
    rows.back().largest_batch = result.n_requests;
  }
  for (MemoryComparison& row : rows) {
    const MemoryComparison& first = rows.front();
    row.capacity_ratio = ratio(row.kv_capacity_tokens, first.kv_capacity_tokens);
    row.batch_ratio = ratio(row.largest_batch, first.largest_batch);
    const auto at = find(row.kv, first.largest_batch);
    if (at == sweep.end()) continue;
    row.peak_memory_bytes = at->peak_memory_bytes;
    row.peak_memory_ratio = ratio(find(first.kv, first.largest_batch)->peak_memory_bytes, at->peak_memory_bytes);
  }
  return rows;
}

nlohmann::ordered_json to_json(std::span<const ThroughputResult> results) {
  auto list = nlohmann::ordered_json::array();
  for (const ThroughputResult& r : results) {
    list.push_back({{"kv", r.kv},
                    {"requests", r.n_requests},
                    {"prompt", r.n_prompt},
                    {"output", r.n_output},
                    {"seconds", r.seconds},
                    {"output_tokens_per_s", r.output_tokens_per_s},
                    {"decode_only_tokens_per_s", r.decode_tokens_per_s},
                    {"peak_memory_bytes", r.peak_memory_bytes},
                    {"weight_bytes", r.weight_bytes},
                    {"kv_capacity_tokens", r.kv_capacity_tokens},
                    {"max_running", r.max_running},
                    {"preemptions", r.preemptions},
                    {"prefill_tokens_per_s", r.prefill_tokens_per_s},
                    {"kv_bytes", r.kv_bytes},
                    {"peak_kv_bytes", r.peak_kv_bytes},
                    {"steps", r.steps},
                    {"decode_step_ms", {{"p50", r.step_ms_p50}, {"p90", r.step_ms_p90}, {"p99", r.step_ms_p99}}}});
  }
  return list;
}

nlohmann::ordered_json to_json(std::span<const MemoryComparison> rows) {
  auto list = nlohmann::ordered_json::array();
  for (const MemoryComparison& row : rows) {
    list.push_back({{"kv", row.kv},
                    {"kv_capacity_tokens", row.kv_capacity_tokens},
                    {"capacity_ratio", row.capacity_ratio},
                    {"largest_batch", row.largest_batch},
                    {"batch_ratio", row.batch_ratio},
                    {"peak_memory_bytes", row.peak_memory_bytes},
                    {"peak_memory_ratio", row.peak_memory_ratio}});
  }
  return list;
}

}  // namespace kivi
