#include "eval/throughput_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/engine.h"

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
  if (options.max_sequences < 0 || options.kv_memory_bytes < 0) {
    fail(ErrorCode::kInvalidArgument, "{} sequences, {} bytes of KV cache: must not be negative", options.max_sequences,
         options.kv_memory_bytes);
  }
}

double per_second(int64_t n, double seconds) {
  return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
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
        engine_(backend, decoder, engine_options(kv, options)) {
    std::mt19937 random(1);
    const auto vocabulary = static_cast<uint32_t>(decoder.config().vocab_size);
    for (int64_t i = 0; i < options.n_requests; ++i) {
      Request request{.max_new_tokens = options.n_output};
      for (int64_t t = 0; t < options.n_prompt; ++t)
        request.prompt.push_back(static_cast<TokenId>(random() % vocabulary));
      engine_.submit(std::move(request));
    }
    engine_.warm_up();
    backend.synchronize();
  }

  ThroughputResult run(const std::function<void(int64_t)>& add_progress) {
    const Clock::time_point start = Clock::now();
    while (!engine_.idle()) add_progress(step());
    backend_->synchronize();
    return result(seconds_since(start));
  }

 private:
  static EngineOptions engine_options(const KvConfig& kv, const ThroughputOptions& options) {
    const int64_t n_most = std::min<int64_t>(options.n_requests, 1 << 20);
    const int64_t n_sequences = options.max_sequences == 0 ? n_most : std::min(n_most, options.max_sequences);
    return {.kv = kv,
            .capacity = {.max_tokens = options.n_prompt + options.n_output,
                         .max_sequences = static_cast<int>(n_sequences),
                         .memory_bytes = options.kv_memory_bytes},
            .memory_fraction = options.memory_fraction,
            .max_step_tokens = options.max_step_tokens,
            .skip_prompts = options.decode_only};
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
    const int64_t n_tokens = options_->n_prompt + options_->n_output;
    const double each = arena.layout().share_of_slabs(most_pages_of(engine_.cache().config(), n_tokens));
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
            .kv_capacity_tokens = static_cast<int64_t>(static_cast<double>(arena.n_slabs() * n_tokens) / each),
            .max_running = stats.max_running,
            .preemptions = stats.preemptions,
            .steps = stats.steps,
            .step_ms_p50 = p(0.5),
            .step_ms_p90 = p(0.9),
            .step_ms_p99 = p(0.99)};
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
  for (const KvConfig& kv : options.kv) {
    ThroughputOptions one = options;
    one.kv = {kv};
    one.on_result = {};
    const auto run = [&](int64_t batch) {
      one.n_requests = one.max_sequences = batch;
      return bench_throughput(backend, decoder, one).front();
    };
    const auto keep = [&](const ThroughputResult& result) {
      results.push_back(result);
      if (options.on_result) options.on_result(result);
    };
    for (int64_t batch = 1;;) {
      const ThroughputResult result = run(batch);
      if (result.kv_capacity_tokens < batch * (options.n_prompt + options.n_output)) {  // memory ends before the batch
        if (result.max_running > batch / 2) keep(run(result.max_running));
        break;
      }
      keep(result);
      if (batch == options.n_requests) break;
      batch = std::min(2 * batch, options.n_requests);
    }
  }
  return results;
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

}  // namespace kivi
