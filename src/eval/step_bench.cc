#include "eval/step_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "backend/tensor.h"
#include "eval/call_timer.h"
#include "eval/operation_tape.h"

namespace kivi {
namespace {

void check(const StepOptions& options) {
  if (options.batch < 1 || options.tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "a batch of {} sequences of {} tokens: both must be at least 1", options.batch,
         options.tokens);
  }
}

// A batch whose sequences are spread evenly over the cycle in which the keys' window fills and is packed.
struct Spread {
  int64_t cycle = 1;  // tokens
  std::vector<int64_t>
      lengths;  // stored, about as many as asked for on average; the next token packs the first's window

  Spread(const KvConfig& kv, int64_t batch, int64_t tokens) {
    const format::WindowPolicy policy = kv.key_policy();
    if (!policy.keeps_all()) cycle = policy.flush;
    const int64_t least = policy.sinks + cycle - 1;
    // The cycle whose middle is nearest: caches of other sinks or windows get as many tokens, within half a cycle.
    const int64_t first = least + std::max<int64_t>(0, (tokens - least) / cycle * cycle);
    for (int64_t b = 0; b < batch; ++b) lengths.push_back(std::max<int64_t>(1, first + b * cycle / batch));
  }
  int64_t mean() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}) / std::ssize(lengths); }
  // Of a small batch not every step packs something.
  double steps_that_pack() const {
    return std::min(1.0, static_cast<double>(std::ssize(lengths)) / static_cast<double>(cycle));
  }
};

class StepBench {
 public:
  StepBench(Backend& backend, Decoder& decoder, const KvConfig& kv, const StepOptions& options)
      : backend_(backend), decoder_(decoder), kv_(kv), options_(options), spread_(kv, options.batch, options.tokens) {}

  StepResult run() {
    StepResult result{.kv = kv_.name, .batch = options_.batch, .tokens = spread_.mean()};
    result.step_microseconds = time_engine();
    decoder_.release();  // the parts have a decoder of their own
    time_parts(result);
    result.launch_microseconds = time_smallest_operation();
    return result;
  }

 private:
  KvCapacity capacity(int64_t n_more, int64_t memory_bytes = 0) const {
    return {.max_tokens = spread_.lengths.back() + n_more,
            .max_sequences = static_cast<int>(options_.batch),
            .memory_bytes = memory_bytes};
  }

  // The mean of steps in which every window is packed as often as another.
  double time_engine() {
    const auto period = static_cast<int64_t>(std::ceil(1.0 / spread_.steps_that_pack()));
    const int64_t n_steps = (options_.n_steps + period - 1) / period * period;
    EngineOptions options = options_.engine;
    options.kv = kv_;
    options.capacity = capacity(n_steps + 2, options_.engine.capacity.memory_bytes);
    options.skip_prompts = true;
    Engine engine(backend_, decoder_, options);
    for (const int64_t length : spread_.lengths) {
      engine.submit({.prompt = std::vector<TokenId>(static_cast<size_t>(length + 1)), .max_new_tokens = n_steps + 1});
    }
    engine.warm_up();
    step(engine);  // in which sequences get their pages
    const auto start = std::chrono::steady_clock::now();
    while (!engine.idle()) step(engine);
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
    if (engine.stats().max_running < options_.batch) {
      fail(ErrorCode::kOutOfMemory, "{}: {} of {} sequences of {} tokens fit; lower --batch or --tokens", kv_.name,
           engine.stats().max_running, options_.batch, spread_.mean());
    }
    return time.count() / static_cast<double>(engine.stats().steps - 1);
  }
  static void step(Engine& engine) {
    for (const Event& event : engine.step()) {
      if (event.finish && event.finish->error) throw Error(*event.finish->error);
    }
  }

  // The operations of a step that packs and, if not all do, of one that does not, on a cache that stays as it is then.
  void time_parts(StepResult& result) {
    OperationTape tape(backend_);
    Decoder decoder(tape, decoder_.weights());
    KvCache cache(backend_, decoder.kv_shape(), kv_, capacity(2));
    std::vector<StepSequence> sequences;
    for (const int64_t length : spread_.lengths) sequences.push_back({cache.create(), static_cast<int32_t>(length)});
    if (!cache.reserve(sequences)) fail(ErrorCode::kInternal, "step bench: the cache is full");
    cache.commit();
    for (StepSequence& entry : sequences) entry.n_new = 1;
    const std::vector<TokenId> tokens(sequences.size());
    std::vector<int32_t> rows(sequences.size());
    std::iota(rows.begin(), rows.end(), 0);
    for (const double weight : {spread_.steps_that_pack(), 1.0 - spread_.steps_that_pack()}) {
      if (weight == 0.0) break;
      if (!cache.reserve(sequences)) fail(ErrorCode::kInternal, "step bench: the cache is full");
      decoder.step(cache, {.tokens = tokens, .argmax_rows = rows});
      add_times(tape.operations(), weight, result);
    }
    std::ranges::sort(result.parts, std::greater(), &StepResult::Part::microseconds);
  }

  using Operations = std::vector<OperationTape::Operation>;

  void add_times(const Operations& operations, double weight, StepResult& result) {
    const auto run = [&](std::string_view kind) {
      for (const OperationTape::Operation& operation : operations) {
        if (kind.empty() || operation.name == kind) operation.run();
      }
    };
    const std::unique_ptr<Recording> recording = backend_.record([&] { run({}); });
    result.n_launches = recording != nullptr ? recording->n_launches() : std::ssize(operations);
    result.device_microseconds += weight * time([&] { run({}); });
    if (result.parts.empty()) result.parts = count(operations);
    for (StepResult::Part& part : result.parts) part.microseconds += weight * time([&] { run(part.operation); });
  }
  static std::vector<StepResult::Part> count(const Operations& operations) {
    std::vector<StepResult::Part> parts;
    for (const OperationTape::Operation& operation : operations) {
      auto part = std::ranges::find(parts, operation.name, &StepResult::Part::operation);
      if (part == parts.end()) part = parts.insert(part, {.operation = std::string(operation.name)});
      ++part->n_calls;
    }
    return parts;
  }

  // The gather of one number.
  double time_smallest_operation() {
    const Tensor x(backend_, DType::kF32, {1, 1});
    const Tensor row(backend_, DType::kI32, {1});
    const Tensor out(backend_, DType::kF32, {1, 1});
    return time([&] { backend_.gather({x.view(), row.view(), out.view()}); });
  }

  double time(const std::function<void()>& call) const {
    const CallTimer timer(
        backend_, 1, [&call](int64_t) { call(); }, options_.sample_seconds);
    return 1e6 * timer.median_of(options_.n_samples);
  }

  Backend& backend_;
  Decoder& decoder_;
  const KvConfig& kv_;
  const StepOptions& options_;
  Spread spread_;
};

}  // namespace

std::vector<StepResult> bench_step(Backend& backend, Decoder& decoder, const StepOptions& options) {
  check(options);
  std::vector<StepResult> results;
  for (const KvConfig& kv : options.kv) {
    results.push_back(StepBench(backend, decoder, kv, options).run());
    if (options.on_result) options.on_result(results.back());
  }
  return results;
}

nlohmann::ordered_json to_json(std::span<const StepResult> results) {
  auto list = nlohmann::ordered_json::array();
  for (const StepResult& r : results) {
    auto parts = nlohmann::ordered_json::array();
    for (const StepResult::Part& part : r.parts) {
      parts.push_back({{"operation", part.operation},
                       {"calls", part.n_calls},
                       {"us", part.microseconds},
                       {"share", part.microseconds / r.step_microseconds}});
    }
    list.push_back({{"kv", r.kv},
                    {"batch", r.batch},
                    {"tokens", r.tokens},
                    {"step_us", r.step_microseconds},
                    {"device_us", r.device_microseconds},
                    {"operations", std::move(parts)},
                    {"launches", r.n_launches},
                    {"launch_us", r.launch_microseconds},
                    {"outside_us", r.outside_microseconds()},
                    {"outside_share", r.outside_microseconds() / r.step_microseconds}});
  }
  return list;
}

}  // namespace kivi
