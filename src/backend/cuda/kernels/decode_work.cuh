// How the attention of a decode step is shared out. All that a step of the model reads forms one line: sequence after
// sequence, KV head after KV head (and group of query heads), in steps of up to 32 tokens; each has a price
// (StepCosts). Every warp of the grid takes an equal stretch of the line. Lengths live on the device, and are the same
// for every layer: plan_decode computes the borders once a step of the model.
//
//   unit     = one sequence, KV head and group of up to 8 query heads:  b * units_per_sequence + head * groups + group
//   steps of a unit: the sinks, 32 at a time; then the tokens after them, packed, partly packed or in the window;
//                    in a layer that slides without the steps of which nothing is seen
#pragma once

#include <cstdint>

#include "format/kv_view.h"

namespace kivi::cuda {

inline constexpr int kHeadsPerUnit = 8;  // columns of a tensor-core fragment
inline constexpr int kStepTokens = format::kTileSpan;
inline constexpr int kPageSteps = format::kPageTokens / kStepTokens;
inline constexpr int kRowPages = kStepTokens / format::kWindowPageTokens;  // 16-bit pages of a side in a step

// What a decode step does to one sequence.
struct SequenceWork {
  int32_t row;           // of the new token
  int32_t n_past;        // tokens stored before it
  int32_t first_seen;    // token; 0 in a layer that does not slide
  int32_t sinks;         // tokens that are sinks, at most the policy's
  int32_t key_packed;    // tokens after the sinks whose keys are packed: a multiple of kStepTokens
  int32_t value_packed;  // likewise values: any number
  int32_t n_steps;       // 0: the sequence has not exactly one new token, and is not decoded here

  // Tokens before the first step of the sinks, and of those after them: multiples of kStepTokens.
  __device__ int32_t sink_begin() const { return first_seen / kStepTokens * kStepTokens; }
  __device__ int32_t paged_begin() const { return max(first_seen - sinks, 0) / kStepTokens * kStepTokens; }
  // kSlides false: nothing does, and first_seen is 0.
  template <bool kSlides = true>
  __device__ int32_t sink_steps() const {
    if (!kSlides) return (sinks + kStepTokens - 1) / kStepTokens;
    return first_seen < sinks ? (sinks - sink_begin() + kStepTokens - 1) / kStepTokens : 0;
  }
  __device__ int32_t n_paged() const { return n_past + 1 - sinks; }  // tokens after the sinks, the new one included
};

__device__ inline SequenceWork sequence_work(const format::KvBatchView& cache, const int32_t* seq_begin, int64_t b) {
  SequenceWork work{};
  work.row = seq_begin[b];
  if (seq_begin[b + 1] - work.row != 1) return work;
  work.n_past = cache.n_past.data[b];
  work.first_seen = static_cast<int32_t>(cache.first_seen(work.n_past));
  work.sinks = min(cache.key_policy.sinks, work.n_past + 1);
  work.key_packed = static_cast<int32_t>(cache.key_policy.n_packed(work.n_past));
  work.value_packed = static_cast<int32_t>(cache.value_policy.n_packed(work.n_past));
  work.n_steps = work.sink_steps() + (work.n_paged() - work.paged_begin() + kStepTokens - 1) / kStepTokens;
  return work;
}

// One step of a unit.
struct StepTokens {
  bool in_sinks;
  bool key_packed;
  int32_t first;         // token, counted from the first sink or from the end of the sinks
  int32_t n;             // those that there are, at least 1
  int32_t unseen;        // the first of them, fewer than n
  int32_t value_packed;  // of them with packed values; the others are rows of 16 bits

  template <bool kSlides>
  __device__ static StepTokens of(const SequenceWork& work, int32_t step) {
    StepTokens s;
    const int32_t sink_steps = work.sink_steps<kSlides>();
    s.in_sinks = step < sink_steps;
    s.first = (s.in_sinks ? step : step - sink_steps) * kStepTokens;
    if (kSlides) s.first += s.in_sinks ? work.sink_begin() : work.paged_begin();
    s.n = min((s.in_sinks ? work.sinks : work.n_paged()) - s.first, kStepTokens);
    s.unseen = kSlides ? max(work.first_seen - (s.in_sinks ? 0 : work.sinks) - s.first, 0) : 0;
    s.key_packed = !s.in_sinks && s.first < work.key_packed;
    s.value_packed = s.in_sinks ? 0 : max(min(work.value_packed - s.first, kStepTokens), 0);
    return s;
  }
  __device__ bool all_packed() const { return key_packed && value_packed == kStepTokens; }
};

// Where the tokens of a step lie: a page for each of kStepPages lanes, 16-bit ones of keys, of values, and the packed
// one. What does not exist is anything.
inline constexpr int kPackedLane = 2 * kRowPages;
inline constexpr int kStepPages = kPackedLane + 1;

__device__ inline int32_t step_page(const format::KvBatchView& cache, int32_t b, const StepTokens& tokens, int lane) {
  if (lane == kPackedLane) {
    if (!tokens.key_packed && tokens.value_packed == 0) return 0;
    return __ldg(cache.packed_table.data + b * cache.packed_table.stride[0] + tokens.first / format::kPageTokens);
  }
  if (tokens.all_packed() || lane > kPackedLane) return 0;
  const auto& table = lane < kRowPages ? cache.key_window_table : cache.value_window_table;
  const int32_t sink_slots = cache.key_policy.sink_slots();  // the same on both sides
  const auto slots = static_cast<int32_t>(table.shape[1]);
  const int32_t page = tokens.first / format::kWindowPageTokens + lane % kRowPages;
  const int32_t slot = tokens.in_sinks ? page : sink_slots + page % (slots - sink_slots);
  return slot < slots ? __ldg(table.data + b * table.stride[0] + slot) : 0;
}

// Where a warp begins, and all that it needs there. Its end is where the next one begins.
struct alignas(64) WorkBegin {
  int32_t unit;
  int32_t step;
  // Of those that begin in the unit: the first has its step 0 (it may begin before it), the last its last.
  int32_t first_warp;
  int32_t last_warp;
  SequenceWork work;
  int32_t pages[kStepPages];
};
static_assert(sizeof(WorkBegin) == 64);

// What steps cost: every piece (decode_stream.cuh) takes its bytes, and a turn of the warp that waits for it; a unit
// some turns more. Fitted to the times at which the warps of an H100 were done.
struct StepCosts {
  int64_t packed = 0;  // a packed step
  int64_t row = 0;     // a token's row of one side
  int64_t unit = 0;

  explicit StepCosts(const format::PageLayout& layout) {
    constexpr int64_t kTurn = 4096;  // bytes that a warp could have had instead
    packed = layout.payload_bytes() / kPageSteps + kTurn;
    row = int64_t{2} * layout.head_dim + kTurn / format::kWindowPageTokens;
    unit = 13 * kTurn / 2;
  }

  // Of the steps before `n`. Partly packed steps count as packed for their packed side.
  __device__ int64_t before(const SequenceWork& work, int32_t n) const {
    if (n == 0) return 0;
    const int32_t sink_steps = work.sink_steps();
    const int32_t sinks = sink_steps == 0 ? 0 : work.sinks - work.sink_begin();
    if (n <= sink_steps) return unit + 2 * row * min(n * kStepTokens, sinks);
    const int64_t begin = work.paged_begin();
    const int64_t tokens = min(int64_t{n - sink_steps} * kStepTokens, work.n_paged() - begin);
    const int64_t keys = min(tokens, max(work.key_packed - begin, int64_t{0}));
    const int64_t values = min(tokens, max(work.value_packed - begin, int64_t{0}));
    return unit + 2 * row * sinks + (keys + values) * packed / (2 * kStepTokens) + (2 * tokens - keys - values) * row;
  }
};

}  // namespace kivi::cuda
