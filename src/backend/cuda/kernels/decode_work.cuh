// How the attention of a decode step is shared out. All that a step reads forms one line: sequence after sequence, KV
// head after KV head (and group of query heads), in steps of up to 128 tokens; each step costs the bytes that it reads.
// Every warp of the grid takes an equal stretch of the line. Lengths live on the device, and are the same for every
// layer: plan_decode computes the borders once a step of the model.
//
//   unit     = one sequence, KV head and group of up to 8 query heads:  b * units_per_sequence + head * groups + group
//   steps of a unit: the sinks, 128 at a time; then the pages, packed, partly packed or in the 16-bit window
#pragma once

#include <cstdint>

#include "format/kv_view.h"

namespace kivi::cuda {

inline constexpr int kHeadsPerUnit = 8;  // columns of a tensor-core fragment
inline constexpr int kStepTokens = format::kPageTokens;

// Where a warp begins. Its end is where the next one begins.
struct WorkBegin {
  int32_t unit;
  int32_t step;
  int32_t first_warp;  // the warp that has step 0 of the unit
};

// What a decode step does to one sequence.
struct SequenceWork {
  int64_t row;  // of the new token
  int32_t n_past;
  int32_t sinks;  // tokens that are sinks, at most the policy's
  int32_t sink_steps;
  int32_t n_paged;       // tokens after the sinks, the new one included
  int32_t key_packed;    // of them packed
  int32_t value_packed;  // likewise
  int32_t n_steps;       // 0: the sequence has not exactly one new token, and is not decoded here
};

__device__ inline SequenceWork sequence_work(const format::KvBatchView& cache, const int32_t* seq_begin, int64_t b) {
  SequenceWork work{};
  work.row = seq_begin[b];
  if (seq_begin[b + 1] - work.row != 1) return work;
  work.n_past = cache.n_past.data[b];
  work.sinks = min(cache.key_policy.sinks, work.n_past + 1);
  work.sink_steps = (work.sinks + kStepTokens - 1) / kStepTokens;
  work.n_paged = work.n_past + 1 - work.sinks;
  work.key_packed = static_cast<int32_t>(cache.key_policy.n_packed(work.n_past));
  work.value_packed = static_cast<int32_t>(cache.value_policy.n_packed(work.n_past));
  work.n_steps = work.sink_steps + (work.n_paged + kStepTokens - 1) / kStepTokens;
  return work;
}

// Bytes that steps read, with what a step and a unit take beside them in the time of so many bytes.
struct StepCosts {
  static constexpr int64_t kStep = 512;
  static constexpr int64_t kUnit = 4096;
  int64_t key_page = 0;  // packed, of one KV head
  int64_t value_page = 0;
  int64_t row = 0;  // 16 bits

  explicit StepCosts(const format::PageLayout& layout)
      : key_page(layout.value_codes()),
        value_page(layout.payload_bytes() - layout.value_codes()),
        row(int64_t{2} * layout.head_dim) {}

  __device__ int64_t side(int64_t tokens, int64_t packed, int64_t page) const {
    const int64_t in_pages = tokens < packed ? tokens : packed;
    return in_pages * page / kStepTokens + (tokens - in_pages) * row;
  }
  // Of the steps before `step`.
  __device__ int64_t before(const SequenceWork& work, int32_t step) const {
    if (step == 0) return 0;
    if (step <= work.sink_steps) return kUnit + step * kStep + 2 * row * min(step * kStepTokens, work.sinks);
    const int64_t tokens = min((step - work.sink_steps) * kStepTokens, work.n_paged);
    return kUnit + step * kStep + 2 * row * work.sinks + side(tokens, work.key_packed, key_page) +
           side(tokens, work.value_packed, value_page);
  }
};

}  // namespace kivi::cuda
