#include "eval/decode_bench.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "cache/kv_cache.h"
#include "eval/call_timer.h"

namespace kivi {
namespace {

// One sequence under one configuration.
class Run {
 public:
  Run(Backend& backend, Decoder& decoder, const KvConfig& config, int64_t max_tokens)
      : decoder_(&decoder),
        cache_(backend, decoder.kv_shape(), config, {.max_tokens = max_tokens}),
        sequence_(cache_.create()) {
    decoder.record_ahead(cache_);
  }

  // Seconds for a step that continues with `tokens`; next() is what the model says then.
  double step(std::span<const TokenId> tokens) {
    const StepSequence entry{.id = sequence_, .n_new = static_cast<int32_t>(tokens.size())};
    const int32_t last_row = entry.n_new - 1;
    const auto start = std::chrono::steady_clock::now();
    if (!cache_.reserve({&entry, 1})) fail(ErrorCode::kInternal, "KV cache {} is full", cache_.config().name);
    next_ = decoder_->step(cache_, {.tokens = tokens, .argmax_rows = {&last_row, 1}}).argmax.front();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  double decode(int64_t n) {
    double seconds = 0;
    for (int64_t i = 0; i < n; ++i) {
      const TokenId token = next_;
      seconds += step({&token, 1});
    }
    return seconds;
  }

  KvMemory memory() const { return cache_.memory(sequence_); }

 private:
  Decoder* decoder_;
  KvCache cache_;
  SequenceId sequence_;
  TokenId next_ = 0;
};

std::vector<TokenId> random_tokens(int64_t n, int64_t vocabulary) {
  std::mt19937 random(1);
  std::vector<TokenId> tokens(static_cast<size_t>(n));
  for (TokenId& token : tokens) token = static_cast<TokenId>(random() % static_cast<uint32_t>(vocabulary));
  return tokens;
}

void check(const DecodeBenchOptions& options) {
  if (options.n_decode < 1 || options.repetitions < 1) {
    fail(ErrorCode::kInvalidArgument, "{} tokens, {} repetitions: both must be at least 1", options.n_decode,
         options.repetitions);
  }
  for (const int64_t depth : options.depths) {
    if (depth < 0) fail(ErrorCode::kInvalidArgument, "depth {}: must not be negative", depth);
  }
}

// Tells progress in the tokens of a bench.
class Meter {
 public:
  explicit Meter(const DecodeBenchOptions& options) : progress_(options.progress) {
    for (const int64_t depth : options.depths) {
      total_ += static_cast<double>(options.kv.size()) * double(depth + options.n_decode * options.repetitions);
    }
  }
  void add(int64_t n_tokens) {
    done_ += static_cast<double>(n_tokens);
    if (progress_) progress_(done_ / total_);
  }

 private:
  ProgressCallback progress_;
  double total_ = 0;
  double done_ = 0;
};

void bench_depth(Backend& backend, Decoder& decoder, const DecodeBenchOptions& options, int64_t depth, Meter& meter,
                 std::vector<DecodeBenchResult>& results) {
  const std::vector<TokenId> prompt = random_tokens(depth, decoder.config().vocab_size);
  decoder.reserve(std::max<int64_t>(depth, 1), 1);
  std::vector<std::unique_ptr<Run>> runs;
  const size_t first = results.size();
  for (const KvConfig& config : options.kv) {
    runs.push_back(std::make_unique<Run>(backend, decoder, config, depth + options.n_decode * options.repetitions));
    DecodeBenchResult result{.kv = config.name, .depth = depth};
    if (depth > 0) result.prefill_tokens_per_s = static_cast<double>(depth) / runs.back()->step(prompt);
    result.kv_memory = runs.back()->memory();
    results.push_back(std::move(result));
    meter.add(depth);
  }
  std::vector<std::vector<double>> speeds(runs.size());
  for (int repetition = 0; repetition < options.repetitions; ++repetition) {
    for (size_t i = 0; i < runs.size(); ++i) {
      speeds[i].push_back(static_cast<double>(options.n_decode) / runs[i]->decode(options.n_decode));
      meter.add(options.n_decode);
    }
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    results[first + i].decode_tokens_per_s = median(speeds[i]);
    results[first + i].decode_tokens_per_s_best = *std::max_element(speeds[i].begin(), speeds[i].end());
  }
}

}  // namespace

std::vector<DecodeBenchResult> bench_decode(Backend& backend, Decoder& decoder, const DecodeBenchOptions& options) {
  check(options);
  Meter meter(options);
  std::vector<DecodeBenchResult> results;
  for (const int64_t depth : options.depths) bench_depth(backend, decoder, options, depth, meter, results);
  return results;
}

nlohmann::ordered_json to_json(std::span<const DecodeBenchResult> results) {
  auto list = nlohmann::ordered_json::array();
  for (const DecodeBenchResult& r : results) {
    list.push_back({{"kv", r.kv},
                    {"depth", r.depth},
                    {"decode_tokens_per_s", r.decode_tokens_per_s},
                    {"prefill_tokens_per_s", r.prefill_tokens_per_s},
                    {"kv_bytes", r.kv_memory.allocated_bytes()},
                    {"decode_tokens_per_s_best", r.decode_tokens_per_s_best},
                    {"kv_bits_per_element", r.kv_memory.effective_bits_per_element()}});
  }
  return list;
}

}  // namespace kivi
