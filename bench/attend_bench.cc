// Attention of one layer: every instruction set of this machine and every preset, decoding at a depth and prefill.
//
//   attend_bench --benchmark_filter='decode/avx512/kivi2/.*/threads:1'
//
// elements/s counts each cached number of the layer once however many query heads share it. bytes/s counts what the
// preset stores for them: codes, scales, zeros and 16-bit rows. `cold` cycles through all layers, which no cache holds
// together, as a model does.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <random>
#include <vector>

#include "backend/cpu/isa.h"
#include "backend/tensor.h"
#include "cache/kv_cache.h"

namespace kivi {
namespace {

struct Case {
  cpu::Isa isa;
  const char* kv;
  int n_kv_heads;
  int heads_per_kv;
  int head_dim;
  int64_t n_past;
  int64_t n_new;
  int n_threads;
  int n_layers;  // 1: warm
};

void fill(const AnyView& view, int64_t n, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0F, 1.0F);
  for (int64_t i = 0; i < n; ++i) {
    const float x = normal(random);
    if (view.dtype == DType::kF32) static_cast<float*>(view.data)[i] = x;
    if (view.dtype == DType::kF16) static_cast<Half*>(view.data)[i] = to_half(x);
  }
}

class Layers {
 public:
  explicit Layers(const Case& c)
      : c_(c),
        backend_(make_backend({fmt::format("cpu:{}", name(c.isa)), c.n_threads})),
        cache_(*backend_, {c.n_layers, c.n_kv_heads, c.head_dim}, parse_kv_config(c.kv),
               {.max_tokens = c.n_past + c.n_new}),
        id_(cache_.create()) {
    if (c.n_past > 0) {
      reserve(c.n_past);
      const Tensor keys = rows(DType::kF16, c.n_past, c.n_kv_heads);
      const Tensor values = rows(DType::kF16, c.n_past, c.n_kv_heads);
      for (int layer = 0; layer < c.n_layers; ++layer) {
        backend_->store_kv({.new_keys = keys.view(),
                            .new_values = values.view(),
                            .seq_begin = cache_.seq_begin(),
                            .cache = cache_.view(layer)});
      }
      cache_.commit();
    }
    memory_ = cache_.memory();
    reserve(c.n_new);
    q_ = rows(DType::kF32, c.n_new, c.n_kv_heads * c.heads_per_kv);
    out_ = rows(DType::kF32, c.n_new, c.n_kv_heads * c.heads_per_kv);
    keys_ = rows(DType::kF16, c.n_new, c.n_kv_heads);
    values_ = rows(DType::kF16, c.n_new, c.n_kv_heads);
  }

  void attend(int layer) {
    backend_->attend({.q = q_.view(),
                      .new_keys = keys_.view(),
                      .new_values = values_.view(),
                      .seq_begin = cache_.seq_begin(),
                      .cache = cache_.view(layer),
                      .softmax_scale = 0.1F,
                      .out = out_.view()});
  }
  const KvMemory& memory() const { return memory_; }

 private:
  void reserve(int64_t n) {
    const StepSequence step[] = {{id_, static_cast<int32_t>(n)}};
    if (!cache_.reserve(step)) fail(ErrorCode::kInternal, "the cache of the benchmark is full");
  }
  Tensor rows(DType dtype, int64_t n, int64_t heads) {
    Tensor tensor(*backend_, dtype, {n, heads, c_.head_dim});
    fill(tensor.view(), n * heads * c_.head_dim, random_);
    return tensor;
  }

  Case c_;
  std::mt19937 random_{1};
  std::unique_ptr<Backend> backend_;
  KvCache cache_;
  SequenceId id_;
  KvMemory memory_;
  Tensor q_, out_, keys_, values_;
};

void run_attend(benchmark::State& state, const Case& c) {
  Layers layers(c);
  int layer = 0;
  for (auto _ : state) {
    layers.attend(layer);
    layer = (layer + 1) % c.n_layers;
  }
  const auto per_layer = [&](int64_t total) { return static_cast<double>(total) / c.n_layers; };
  const auto rate = [&](double x) { return benchmark::Counter(x, benchmark::Counter::kIsIterationInvariantRate); };
  if (c.n_past > 0) state.counters["elements/s"] = rate(per_layer(layers.memory().elements));
  if (c.n_past > 0) state.counters["bytes/s"] = rate(per_layer(layers.memory().used_bytes()));
  const double pairs =
      static_cast<double>(c.n_new) * (static_cast<double>(c.n_past) + 0.5 * static_cast<double>(c.n_new + 1));
  state.counters["FLOP/s"] = rate(4.0 * pairs * c.n_kv_heads * c.heads_per_kv * c.head_dim);
}

void add(const char* what, const Case& c) {
  const std::string label = fmt::format("{}/{}/{}/heads:{}/kv_heads:{}/head_dim:{}/past:{}/new:{}/threads:{}{}", what,
                                        name(c.isa), c.kv, c.n_kv_heads * c.heads_per_kv, c.n_kv_heads, c.head_dim,
                                        c.n_past, c.n_new, c.n_threads, c.n_layers > 1 ? "/cold" : "");
  benchmark::RegisterBenchmark(label.c_str(), run_attend, c)->Unit(benchmark::kMicrosecond);
}

void add_all() {
  for (const cpu::Isa isa : cpu::available_isas()) {
    for (const char* kv : {"f16", "kivi4", "kivi2"}) {
      for (const int threads : {1, 2}) {
        add("decode", {isa, kv, 3, 3, 64, 8192, 1, threads, 30});   // SmolLM2-135M
        add("decode", {isa, kv, 2, 6, 128, 8192, 1, threads, 28});  // Qwen2.5-1.5B
      }
      add("decode", {isa, kv, 3, 3, 64, 1024, 1, 1, 1});
      add("decode", {isa, kv, 3, 3, 64, 8192, 1, 1, 1});
      add("decode", {isa, kv, 3, 3, 64, 4096, 1, 1, 30});
      add("chunk", {isa, kv, 3, 3, 64, 2048, 512, 1, 1});
    }
    add("prefill", {isa, "f16", 3, 3, 64, 0, 512, 1, 1});
    add("prefill", {isa, "f16", 2, 6, 128, 0, 2048, 1, 1});
  }
}

}  // namespace
}  // namespace kivi

int main(int argc, char** argv) {
  kivi::add_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
