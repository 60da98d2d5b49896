// Matrix products: every instruction set of this machine, every weight format, at the shapes of real models.
//
//   linear_bench --benchmark_filter='avx512/Q4_1/.*tokens:1/threads:1'
//
// weights/s counts each weight once however many tokens share it; FLOP/s counts 2 per weight and token. `cold` cycles
// through copies of the matrix that no cache holds together, as decoding does: GB/s is then what memory delivers.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <cstring>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/isa.h"
#include "backend/tensor.h"
#include "backend/weight_samples.h"
#include "core/parallel.h"

namespace kivi {
namespace {

struct Case {
  cpu::Isa isa;
  WeightFormat format;
  int64_t rows;
  int64_t cols;
  int64_t n_tokens;
  int n_threads;
  bool cold;
};

class Copies {
 public:
  Copies(const WeightView& view, size_t n)
      : view_(view), size_(static_cast<size_t>(view.size_bytes())), bytes_(n * size_) {
    for (size_t i = 0; i < n; ++i) std::memcpy(bytes_.data() + i * size_, view.data, size_);
  }
  WeightView operator[](size_t i) const {
    WeightView copy = view_;
    copy.data = bytes_.data() + i * size_;
    return copy;
  }

 private:
  WeightView view_;
  size_t size_;
  std::vector<std::byte> bytes_;
};

void run_linear(benchmark::State& state, const Case& c) {
  constexpr size_t kBeyondCaches = size_t{192} << 20;
  const auto backend = make_backend({fmt::format("cpu:{}", name(c.isa)), c.n_threads});
  const WeightSample sample(c.format, c.rows, c.cols, 1);
  const auto size = static_cast<size_t>(sample.view().size_bytes());
  const size_t n_copies = c.cold ? kBeyondCaches / size + 1 : 1;
  const Copies copies(sample.view(), n_copies);
  std::vector<std::unique_ptr<Weight>> weights;
  for (size_t i = 0; i < n_copies; ++i) weights.push_back(backend->load_weight(copies[i]));

  const Tensor x(*backend, DType::kF32, {c.n_tokens, c.cols});
  for (int64_t i = 0; i < c.n_tokens * c.cols; ++i) {
    static_cast<float*>(x.view().data)[i] = static_cast<float>(i % 17) * 0.25F - 2.0F;
  }
  const Tensor out(*backend, DType::kF32, {c.n_tokens, c.rows});
  size_t i = 0;
  for (auto _ : state) {
    backend->linear({x.view(), weights[i].get(), {}, out.view()});
    i = (i + 1) % n_copies;
  }
  const auto n_weights = static_cast<double>(c.rows * c.cols) * static_cast<double>(state.iterations());
  using benchmark::Counter;
  state.counters["weights/s"] = Counter(n_weights, Counter::kIsRate);
  state.counters["FLOP/s"] = Counter(2.0 * n_weights * static_cast<double>(c.n_tokens), Counter::kIsRate);
  state.counters["bytes/s"] =
      Counter(static_cast<double>(size) * static_cast<double>(state.iterations()), Counter::kIsRate);
}

void add(const Case& c) {
  const std::string title = fmt::format("{}/{}/{}x{}/tokens:{}/threads:{}{}", name(c.isa), name(c.format), c.rows,
                                        c.cols, c.n_tokens, c.n_threads, c.cold ? "/cold" : "");
  benchmark::RegisterBenchmark(title.c_str(), [c](benchmark::State& state) { run_linear(state, c); })->UseRealTime();
}

void add_all() {
  const int n_cores = physical_cores();
  for (const cpu::Isa isa : cpu::available_isas()) {
    for (const WeightFormat format : kWeightFormats) {
      for (const int64_t n_tokens : {1, 2, 4, 8, 512}) add({isa, format, 1536, 1536, n_tokens, 1, false});
      add({isa, format, 1536, 1536, 1, n_cores, true});
    }
    for (const int n_threads : {1, n_cores}) {
      for (const bool cold : {false, true}) {  // SmolLM2-135M
        add({isa, WeightFormat::kQ4_1, 192, 576, 1, n_threads, cold});
        add({isa, WeightFormat::kQ4_1, 576, 576, 1, n_threads, cold});
        add({isa, WeightFormat::kQ4_1, 1536, 576, 1, n_threads, cold});
        add({isa, WeightFormat::kQ4_1, 576, 1536, 1, n_threads, cold});
        add({isa, WeightFormat::kQ8_0, 49152, 576, 1, n_threads, cold});
      }
      add({isa, WeightFormat::kQ4_1, 1536, 576, 512, n_threads, false});
      add({isa, WeightFormat::kQ4_1, 192, 576, 512, n_threads, false});
      add({isa, WeightFormat::kQ4_1, 576, 1536, 512, n_threads, false});
      add({isa, WeightFormat::kQ4_K, 8960, 1536, 512, n_threads, false});  // Qwen2.5-1.5B
      add({isa, WeightFormat::kQ6_K, 1536, 8960, 512, n_threads, false});
    }
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
