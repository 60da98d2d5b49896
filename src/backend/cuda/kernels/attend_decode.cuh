// The decode attention kernel.
//
// Grid: one block a multiprocessor, kWarps warps. Each warp works alone on its stretch of the line of work
// (decode_work.cuh): it streams the packed halves (keys or values of one page and KV head) through a ring of kSlots in
// shared memory, reads 16-bit rows straight into registers, and keeps its own online softmax. Only at the end do warps
// meet: units that several warps shared are merged by the block that finishes them.
//
// Scores are  S[token, head] = K q  and outputs  O[channel, head] = V^T p, both on m16n8k16 with the cache as operand A
// and up to 8 query heads of the KV head as B:
//   codes    masked in place they are subnormal binary16 numbers, code * 2^(bits * place - 24), which the tensor cores
//            multiply exactly. For keys q carries 2^-(bits * place), for values the accumulator is scaled at the end.
//   scales   go into B: q * scale once for each key group, p * scale for each value group.
//   zeros    are a product of their own: for keys row g of A has the zeros of token group g, and the result begins the
//            accumulators of its tokens; for values rows 0..7 of A have the zeros of channel group r, and rows 8..15
//            are ones, which gives the softmax total.
// format/fragment_order.h has the places of codes, and of tokens and channels in tiles. Lane 4r + j throughout.
//
// Bytes read: each packed half and each 16-bit row of a unit once.
#pragma once

#include <array>

#include "backend/cuda/device/check.h"
#include "backend/cuda/kernels/attend_decode_table.h"
#include "backend/cuda/kernels/decode_step.cuh"

namespace kivi::cuda {

// Where the result of a unit, or of a part of it, goes: head n of the unit, channels 4 by 4.
struct OutputRows {
  uint16_t* rows;  // [heads][head_dim] of the unit
  DType dtype;
  template <typename Config>
  __device__ void store(int n, int channel, const float (&y)[4]) const {
    *reinterpret_cast<uint2*>(rows + n * Config::kHeadDim + channel) = {pack_16(dtype, y[0], y[1]),
                                                                        pack_16(dtype, y[2], y[3])};
  }
};
struct PartialRows {
  float* rows;  // [kHeadsPerUnit][head_dim]
  template <typename Config>
  __device__ void store(int n, int channel, const float (&y)[4]) const {
    __stcg(reinterpret_cast<float4*>(rows + n * Config::kHeadDim + channel), float4{y[0], y[1], y[2], y[3]});
  }
};

// Stores O of a unit, divided by the softmax total if `normalise`.
template <typename Config, typename To>
__device__ void store_unit(UnitState<Config>& unit, const Groups<Config>& groups, int n_heads, bool normalise,
                           const To& to) {
  const Lane lane;
  unit.set_units(false);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float factor = normalise ? 1.0F / unit.sums[2 + n] : 1.0F;
    const int head = 2 * lane.j + n;
#pragma unroll
    for (int q = 0; q < Config::kChannelSpans; ++q) {
      float zero = 0.0F;
      if constexpr (Config::kPacked) {
        zero = __shfl_sync(kAllLanes, unit.sums[n], 4 * (q / groups.value_spans) + lane.j);
      }
      const auto(&even) = unit.out[2 * q];
      const auto(&odd) = unit.out[2 * q + 1];
      const float y[4] = {(even[n] + zero) * factor, (even[2 + n] + zero) * factor, (odd[n] + zero) * factor,
                          (odd[2 + n] + zero) * factor};
      if (head < n_heads) to.template store<Config>(head, q * format::kTileSpan + 4 * lane.r, y);
    }
  }
}

// What the merge needs to know of a unit.
struct UnitPlace {
  int32_t b;
  int32_t kv_head;
  int32_t first_head;  // query head
  int32_t n_heads;

  __device__ UnitPlace(const DecodeArgs& args, int32_t unit) {
    b = unit / args.units_per_sequence();
    const int32_t in_sequence = unit % args.units_per_sequence();
    kv_head = in_sequence / args.groups_per_kv;
    const int32_t skipped = in_sequence % args.groups_per_kv * kHeadsPerUnit;
    first_head = kv_head * args.heads_per_kv + skipped;
    n_heads = min(args.heads_per_kv - skipped, kHeadsPerUnit);
  }
};

__device__ inline int64_t partial_row(int warp, int slot) {
  return (int64_t{warp} * 2 + slot) * kHeadsPerUnit;
}

// Head n of a unit from the parts that warps first, first + 1, ... left. One warp.
template <typename Config>
__device__ void merge_head(const DecodeArgs& args, int32_t unit, int32_t first, int n, uint16_t* out) {
  constexpr int kVectors = (Config::kHeadDim + 127) / 128;  // of 4 channels a lane
  const DecodeWorkspace& w = args.workspace;
  const Lane lane;
  float maximum = -INFINITY;
  float total = 0.0F;
  float4 sum[kVectors] = {};
  for (int32_t base = first; base < w.n_warps; base += kWarpLanes) {
    // Lane i looks at warp base + i: has it a part of the unit, and where?
    const int32_t warp = base + lane.id;
    bool has_part = false;
    int64_t row = 0;
    bool beyond = true;
    if (warp < w.n_warps) {
      const WorkBegin begin = w.begins[warp];
      const WorkBegin end = w.begins[warp + 1];
      beyond = warp > first && begin.unit != unit;
      has_part = !beyond && (begin.unit != end.unit || begin.step != end.step);
      row = partial_row(warp, begin.unit == unit ? 0 : 1) + n;
    }
    const float2 part = has_part ? __ldcg(w.partial_sums + row) : float2{-INFINITY, 0.0F};
    const float highest = fmaxf(maximum, warp_max(part.x));
    const float old_factor = exp2_fast(maximum - highest);
    maximum = highest;
    const float factor = exp2_fast(part.x - maximum);
    total = total * old_factor + warp_sum(part.y * factor);
#pragma unroll
    for (float4& x : sum) x = {x.x * old_factor, x.y * old_factor, x.z * old_factor, x.w * old_factor};
    const unsigned parts = __ballot_sync(kAllLanes, has_part);
#pragma unroll 8
    for (int i = 0; i < kWarpLanes; ++i) {
      const int64_t from = __shfl_sync(kAllLanes, row, i);
      const float f = __shfl_sync(kAllLanes, factor, i);
      if ((parts >> i & 1U) == 0) continue;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int channel = 128 * v + 4 * lane.id;
        if (channel >= Config::kHeadDim) continue;
        const float4 x = __ldcg(reinterpret_cast<const float4*>(w.partial_out + from * Config::kHeadDim + channel));
        sum[v] = {sum[v].x + x.x * f, sum[v].y + x.y * f, sum[v].z + x.z * f, sum[v].w + x.w * f};
      }
    }
    if (__any_sync(kAllLanes, beyond)) break;
  }
  const float factor = 1.0F / total;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int channel = 128 * v + 4 * lane.id;
    if (channel >= Config::kHeadDim) continue;
    const float y[4] = {sum[v].x * factor, sum[v].y * factor, sum[v].z * factor, sum[v].w * factor};
    OutputRows{out, args.dtype}.store<Config>(0, channel, y);
  }
}

// A unit that this block has to merge: it did the last of its steps.
struct MergeTask {
  int32_t unit;  // -1: none
  int32_t first_warp;
};

template <typename Config>
__device__ void run_unit(const DecodeArgs& args, const SequenceWork& work, const UnitPlace& place, int32_t begin,
                         int32_t end, const Groups<Config>& groups, HalfStream<Config>& stream,
                         UnitState<Config>& unit) {
  unit.begin(args.q + work.row * args.q_stride + int64_t{place.first_head} * Config::kHeadDim, place.n_heads,
             args.dtype);
  for (int32_t i = begin; i < end; ++i) {
    const bool in_sinks = i < work.sink_steps;
    const int32_t first = (in_sinks ? i : i - work.sink_steps) * kStepTokens;
    const auto in_step = [first](int32_t n) { return max(min(n - first, kStepTokens), 0); };
    const MixedStep step{place.b,
                         place.kv_head,
                         i,
                         in_step(in_sinks ? work.sinks : work.n_paged),
                         in_sinks ? 0 : in_step(work.key_packed),
                         in_sinks ? 0 : in_step(work.value_packed)};
    if constexpr (Config::kPacked) {
      if (min(step.key_packed, step.value_packed) == kStepTokens) {
        packed_step(unit, stream, groups, args.log2_scale);
        continue;
      }
    }
    mixed_step(args, work, step, unit, stream, groups);
  }
}

// Leaves a part of a unit for whoever merges it. True if with it the unit is complete.
template <typename Config>
__device__ bool leave_part(const DecodeArgs& args, UnitState<Config>& state, const Groups<Config>& groups, int warp,
                           int slot, int32_t unit, int n_heads, int32_t n_done, int32_t n_steps) {
  const DecodeWorkspace& w = args.workspace;
  const int64_t row = partial_row(warp, slot);
  store_unit(state, groups, n_heads, false, PartialRows{w.partial_out + row * Config::kHeadDim});
  const Lane lane;
  if (lane.r == 0) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      __stcg(w.partial_sums + row + 2 * lane.j + n, float2{state.maximum[n], state.sums[2 + n]});
    }
  }
  __threadfence();
  __syncwarp();
  int32_t before = 0;
  if (lane.id == 0) before = atomicAdd(w.steps_done + unit, n_done);
  return __shfl_sync(kAllLanes, before, 0) + n_done == n_steps;
}

template <typename Config>
__global__ void __launch_bounds__(Config::kWarps* kWarpLanes, 1)
    attend_decode(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) uint8_t ring_memory[];
  __shared__ WarpMemory memories[Config::kWarps];
  __shared__ MergeTask tasks[Config::kWarps][2];
  const Lane lane;
  const int warp_in_block = static_cast<int>(threadIdx.x) / kWarpLanes;
  // Neighbours on the line go to different multiprocessors: a long sequence then loads all of them alike.
  const int warp = warp_in_block * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  WarpMemory& memory = memories[warp_in_block];
  if (lane.id < 2) {
    tasks[warp_in_block][lane.id] = {-1, 0};
    (lane.id == 0 ? memory.begin : memory.end) = args.workspace.begins[warp + lane.id];
  }
  __syncwarp();

  const Groups<Config> groups(args.cache.layout);
  HalfStream<Config> stream(args, memory, ring_memory, warp_in_block);
  UnitState<Config> state;
  const SequenceWork& work = memory.computed;
  int32_t b = -1;
  int32_t first_step = memory.begin.step;
  for (int32_t unit = memory.begin.unit;
       unit < memory.end.unit || (unit == memory.end.unit && first_step < memory.end.step); ++unit) {
    const UnitPlace place(args, unit);
    if (place.b != b) {
      b = place.b;
      const SequenceWork next = sequence_work(args.cache, args.seq_begin, b);
      __syncwarp();
      memory.computed = next;  // every lane writes the same
      __syncwarp();
    }
    const int32_t end_step = unit == memory.end.unit ? memory.end.step : work.n_steps;
    if (first_step < end_step) {
      run_unit(args, work, place, first_step, end_step, groups, stream, state);
      const int32_t n_done = end_step - first_step;
      if (n_done == work.n_steps) {
        uint16_t* out = args.out + work.row * args.out_stride + int64_t{place.first_head} * Config::kHeadDim;
        store_unit(state, groups, place.n_heads, true, OutputRows{out, args.dtype});
      } else {
        const bool first = unit == memory.begin.unit;
        const bool complete =
            leave_part(args, state, groups, warp, first ? 0 : 1, unit, place.n_heads, n_done, work.n_steps);
        if (complete && lane.id == 0) {
          tasks[warp_in_block][first ? 0 : 1] = {unit, first ? memory.begin.first_warp : warp};
        }
      }
    }
    first_step = 0;
  }
  __threadfence();
  __syncthreads();

  int turn = 0;
  for (int i = 0; i < 2 * Config::kWarps; ++i) {
    const MergeTask task = tasks[i / 2][i % 2];
    if (task.unit < 0) continue;
    const UnitPlace place(args, task.unit);
    const int64_t row = args.seq_begin[place.b];
    for (int n = 0; n < place.n_heads; ++n, ++turn) {
      if (turn % Config::kWarps != warp_in_block) continue;
      uint16_t* out = args.out + row * args.out_stride + int64_t{place.first_head + n} * Config::kHeadDim;
      merge_head<Config>(args, task.unit, task.first_warp, n, out);
    }
    if (threadIdx.x == 0) args.workspace.steps_done[task.unit] = 0;
  }
}

template <typename Config>
void launch_attend_decode(const DecodeArgs& args, int n_blocks, cudaStream_t stream) {
  // Above 48 KiB of shared memory must be asked for; once is enough.
  static const cudaError_t allowed =
      cudaFuncSetAttribute(attend_decode<Config>, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  check(allowed, "attend_decode: shared memory");
  attend_decode<Config><<<n_blocks, Config::kWarps * kWarpLanes, Config::kSharedBytes, stream>>>(args);
  check_launch("attend_decode");
}

template <int kHeadDim, int kKeyBits, int kValueBits, int kGroup>
DecodeKernel decode_kernel() {
  using Config = DecodeConfig<kHeadDim, kKeyBits, kValueBits, kGroup>;
  return {kHeadDim, kKeyBits, kValueBits, kGroup, Config::kWarps, launch_attend_decode<Config>};
}

template <int kHeadDim>
std::array<DecodeKernel, 6> decode_kernels() {
  return {decode_kernel<kHeadDim, 0, 0, 0>(), decode_kernel<kHeadDim, 2, 2, 32>(), decode_kernel<kHeadDim, 2, 2, 0>(),
          decode_kernel<kHeadDim, 4, 4, 0>(), decode_kernel<kHeadDim, 4, 2, 0>(),  decode_kernel<kHeadDim, 2, 4, 0>()};
}

}  // namespace kivi::cuda
