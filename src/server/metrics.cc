#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <atomic>

namespace kivi {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;

const Buckets kFirstToken = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                             1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
const Buckets kBetweenTokens = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
                                0.3,   0.4,    0.5,   0.75, 1,     2.5,  5,     10,  20,   40};
const Buckets kWholeRequest = {0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1,   1.5, 2,   2.5, 5,    10,
                               15,   20,   30,  40,  50,  60,  120, 240, 480, 960, 1920, 7680};
const Buckets kWrite = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5};

}  // namespace

struct Metrics::Families {
  prometheus::Registry registry{};
  prometheus::Labels model{};
  std::atomic<int64_t> n_preemptions{0};  // counted so far, as what follows
  std::atomic<int64_t> n_prefix_queries{0};
  std::atomic<int64_t> n_prefix_hits{0};

  Gauge& gauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(model);
  }
  Counter& counter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(model);
  }
  Histogram& histogram(const char* name, const char* help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(model, buckets);
  }
  explicit Families(const MetricLabels& labels) : model{{"model_name", labels.model_name}} {
    prometheus::BuildGauge()
        .Name("vllm:cache_config_info")
        .Help("The KV cache: tokens of a page, pages, preset")
        .Register(registry)
        .Add({{"block_size", std::to_string(labels.block_size)},
              {"num_gpu_blocks", std::to_string(labels.n_blocks)},
              {"cache_dtype", labels.cache_dtype}})
        .Set(1);
    for (const char* reason : {"stop", "length", "abort", "error"}) ended(reason);
  }
  Counter& ended(const std::string& reason) {
    prometheus::Labels both = model;
    both["finished_reason"] = reason;
    return success.Add(both);
  }

  Gauge& running = gauge("vllm:num_requests_running", "Requests in the batch");
  Gauge& waiting = gauge("vllm:num_requests_waiting", "Requests in the queue");
  Gauge& usage = gauge("vllm:kv_cache_usage_perc", "Part of the KV cache that is in use; 1 is all of it");
  Counter& prompt_tokens = counter("vllm:prompt_tokens_total", "Tokens of prompts");
  Counter& generation_tokens = counter("vllm:generation_tokens_total", "Tokens generated");
  Counter& preemptions =
      counter("vllm:num_preemptions_total", "Requests that gave up their pages to be computed again");
  Counter& prefix_queries = counter("vllm:prefix_cache_queries_total", "Tokens looked up for reuse of a prefix");
  Counter& prefix_hits = counter("vllm:prefix_cache_hits_total", "Tokens found for reuse of a prefix");
  Counter& queue_full = counter("kivi:requests_refused_total", "Requests refused because the queue was full");
  prometheus::Family<Counter>& success =
      prometheus::BuildCounter().Name("vllm:request_success_total").Help("Requests that ended").Register(registry);
  Histogram& first_token =
      histogram("vllm:time_to_first_token_seconds", "From a request's arrival to its first token", kFirstToken);
  Histogram& between_tokens =
      histogram("vllm:inter_token_latency_seconds", "Between tokens of a request", kBetweenTokens);
  Histogram& whole = histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token", kWholeRequest);
  Histogram& queue = histogram("vllm:request_queue_time_seconds", "From arrival to the first step", kWholeRequest);
  Histogram& write =
      histogram("kivi:write_delay_seconds", "From a token being ready to its bytes being with the socket", kWrite);
  Gauge& packed = gauge("kivi:kv_bytes_packed", "Bytes of packed keys and values, with their scales");
  Gauge& window = gauge("kivi:kv_bytes_window", "Bytes of keys and values in 16 bits: windows and sinks");
  Gauge& as_16_bit = gauge("kivi:kv_bytes_16bit", "Bytes that the same tokens would take in 16 bits");
  Gauge& bits = gauge("kivi:kv_bits_per_element", "Bits of a cached number, windows included; 0 if nothing is cached");
};

Metrics::Metrics(const MetricLabels& labels) : families_(std::make_unique<Families>(labels)) {}

Metrics::~Metrics() = default;

void Metrics::set(const EngineSnapshot& engine) {
  const auto real = [](int64_t n) { return static_cast<double>(n); };
  families_->running.Set(real(engine.n_running));
  families_->waiting.Set(real(engine.n_waiting));
  families_->usage.Set(real(engine.allocated_bytes) / real(std::max<int64_t>(1, engine.capacity_bytes)));
  families_->packed.Set(real(engine.kv.packed_bytes()));
  families_->window.Set(real(engine.kv.window_bytes));
  families_->as_16_bit.Set(real(engine.kv.elements * 2));
  families_->bits.Set(engine.kv.effective_bits_per_element());
  const auto count = [&](Counter& counter, std::atomic<int64_t>& counted, int64_t n) {
    counter.Increment(real(n - counted.exchange(n)));
  };
  count(families_->preemptions, families_->n_preemptions, engine.stats.preemptions);
  count(families_->prefix_queries, families_->n_prefix_queries, engine.stats.prefix_queries);
  count(families_->prefix_hits, families_->n_prefix_hits, engine.stats.prefix_hits);
}

void Metrics::first_token(int64_t n_prompt, double seconds_since_arrival) {
  families_->prompt_tokens.Increment(static_cast<double>(n_prompt));
  families_->generation_tokens.Increment();
  families_->first_token.Observe(seconds_since_arrival);
}

void Metrics::next_token(double seconds_since_last) {
  families_->generation_tokens.Increment();
  families_->between_tokens.Observe(seconds_since_last);
}

void Metrics::finished(const std::string& reason, double seconds_since_arrival, double queue_seconds) {
  families_->ended(reason).Increment();
  families_->whole.Observe(seconds_since_arrival);
  families_->queue.Observe(queue_seconds);
}

void Metrics::refused_for_queue() {
  families_->queue_full.Increment();
}

void Metrics::written(double seconds_since_ready) {
  families_->write.Observe(seconds_since_ready);
}

std::string Metrics::text() const {
  return prometheus::TextSerializer().Serialize(families_->registry.Collect());
}

}  // namespace kivi
