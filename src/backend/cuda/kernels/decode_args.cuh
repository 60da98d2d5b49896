// The arguments of the decode attention kernel.
#pragma once

#include <cstdint>

#include "backend/cuda/kernels/decode_work.cuh"
#include "core/dtype.h"
#include "format/kv_view.h"

namespace kivi::cuda {

// Memory of the device that decode attention works in. One call at a time uses it.
struct DecodeWorkspace {
  int32_t n_warps = 0;             // of the grid
  WorkBegin* begins = nullptr;     // [n_warps + 1]
  SequenceWork* works = nullptr;   // [B], and a warp's lanes more to look at
  int64_t* line_begins = nullptr;  // [B]: of each sequence on the line
  int32_t* steps_done = nullptr;   // [units]: of units that several warps share; 0 between calls
  float* partial_out = nullptr;    // [n_warps][2][kHeadsPerUnit][head_dim]
  float2* partial_sums = nullptr;  // [n_warps][2][kHeadsPerUnit]: maximum (of log2) and total
};

struct DecodeArgs {
  format::KvBatchView cache;
  // 16-bit rows: [N][heads][head_dim], elements between rows.
  const uint16_t* q = nullptr;
  const uint16_t* new_keys = nullptr;
  const uint16_t* new_values = nullptr;
  uint16_t* out = nullptr;
  int64_t q_stride = 0;
  int64_t key_stride = 0;
  int64_t value_stride = 0;
  int64_t out_stride = 0;
  DType dtype = DType::kF16;  // of q and out
  int32_t heads_per_kv = 1;
  int32_t groups_per_kv = 1;  // of kHeadsPerUnit query heads
  float log2_scale = 0.0F;    // softmax_scale * log2(e)
  float log2_cap = 0.0F;      // score_cap * log2(e); 0: none
  // Of the layout, for what divides there must not be divided in a kernel.
  int32_t block_bytes = 0;
  int32_t values_at = 0;          // bytes of a block before its values
  int32_t key_group_shift = 0;    // log2 of the steps in a key group
  int32_t value_group_shift = 0;  // log2 of the channel spans in a value group
  DecodeWorkspace workspace;

  __device__ int32_t units_per_sequence() const { return cache.layout.n_kv_heads * groups_per_kv; }
};

// Where a unit is.
struct UnitPlace {
  int32_t kv_head;
  int32_t first_head;  // query head
  int32_t n_heads;     // query heads

  __device__ static UnitPlace of(const DecodeArgs& args, int32_t unit, int32_t sequence) {
    const int32_t in_sequence = unit - sequence * args.units_per_sequence();
    const int32_t kv_head = args.groups_per_kv == 1 ? in_sequence : in_sequence / args.groups_per_kv;
    const int32_t in_group = (in_sequence - kv_head * args.groups_per_kv) * kHeadsPerUnit;
    return {kv_head, kv_head * args.heads_per_kv + in_group, min(args.heads_per_kv - in_group, kHeadsPerUnit)};
  }
  __device__ static UnitPlace of(const DecodeArgs& args, int32_t unit) {
    return of(args, unit, unit / args.units_per_sequence());
  }
};

}  // namespace kivi::cuda
