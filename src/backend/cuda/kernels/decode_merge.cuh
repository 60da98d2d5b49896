// Results of decode attention: a unit that one warp computed goes straight to the output; the parts of others are
// merged. A warp has at most two parts: an opening one (it began inside a unit and went on beyond it), left in global
// memory at once; and a closing one (its stretch ends inside a unit), kept in its slots of shared memory, which are
// empty by then. When all warps of a block are done, closing parts of the same unit, which are neighbours, become one
// and go to global memory too. Whoever brings the last steps of a unit there merges it.
#pragma once

#include "backend/cuda/kernels/decode_unit.cuh"

namespace kivi::cuda {

// Where a unit is.
struct UnitPlace {
  int32_t b;
  int32_t first_head;  // query head
  int32_t n_heads;

  __device__ UnitPlace(const DecodeArgs& args, int32_t unit) {
    b = unit / args.units_per_sequence();
    const int32_t in_sequence = unit % args.units_per_sequence();
    const int32_t group = in_sequence % args.groups_per_kv;
    first_head = args.first_head(in_sequence / args.groups_per_kv, group);
    n_heads = args.n_heads(group);
  }
};

// Steps of a unit that a warp, or a block, has done. unit -1: none.
struct UnitPart {
  int32_t unit;
  int32_t n_done;
  int32_t n_steps;     // of the unit
  int32_t first_warp;  // that has a part of the unit
};

// Head n of a unit, channels 4 by 4.
struct OutputRows {
  uint16_t* rows;  // [heads][head_dim]
  DType dtype;
  template <typename Config>
  __device__ void store(int n, int channel, const float4& y) const {
    *reinterpret_cast<uint2*>(rows + n * Config::kHeadDim + channel) = {pack_16(dtype, y.x, y.y),
                                                                        pack_16(dtype, y.z, y.w)};
  }
};
struct PartialRows {
  float* rows;  // [heads][head_dim]
  template <typename Config>
  __device__ void store(int n, int channel, const float4& y) const {
    *reinterpret_cast<float4*>(rows + n * Config::kHeadDim + channel) = y;
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
        zero = __shfl_sync(kAllLanes, unit.sums[n], 4 * groups.value_group(q) + lane.j);
      }
      const auto(&even) = unit.out[2 * q];
      const auto(&odd) = unit.out[2 * q + 1];
      const float4 y = {(even[n] + zero) * factor, (even[2 + n] + zero) * factor, (odd[n] + zero) * factor,
                        (odd[2 + n] + zero) * factor};
      if (head < n_heads) to.template store<Config>(head, q * format::kTileSpan + 4 * lane.r, y);
    }
  }
}

// Maximum and total of the heads of a unit.
template <typename Config>
__device__ void store_sums(const UnitState<Config>& unit, float2* sums) {
  const Lane lane;
  if (lane.r != 0) return;
#pragma unroll
  for (int n = 0; n < 2; ++n) sums[2 * lane.j + n] = {unit.maximum[n], unit.sums[2 + n]};
}

// A unit that this block has to merge: it did the last of its steps.
struct MergeTask {
  int32_t unit;  // -1: none
  int32_t first_warp;
};

template <typename Config>
struct BlockParts {
  UnitPart closing[Config::kWarps];
  float2 sums[Config::kWarps][kHeadsPerUnit];  // of the closing parts
  MergeTask tasks[Config::kWarps];             // of opening parts
  MergeTask closing_tasks[Config::kWarps];

  __device__ void reset(int warp) {
    closing[warp].unit = -1;
    tasks[warp].unit = -1;
    closing_tasks[warp].unit = -1;
  }
};

// Part of warp `warp` in global memory, 0: opening, 1: closing (of the first warp of its block that has one).
__device__ inline int64_t part_row(int warp, int which) {
  return (int64_t{warp} * 2 + which) * kHeadsPerUnit;
}

// One lane, after a part is in global memory for all to see.
__device__ inline void count_steps(const DecodeArgs& args, const UnitPart& part, MergeTask& task) {
  if (atomicAdd(args.workspace.steps_done + part.unit, part.n_done) + part.n_done == part.n_steps) {
    task = {part.unit, part.first_warp};
  }
}

template <typename Config>
__device__ void leave_opening_part(const DecodeArgs& args, UnitState<Config>& state, int n_heads, int warp,
                                   const UnitPart& part, MergeTask& task) {
  const int64_t row = part_row(warp, 0);
  store_unit(state, Groups<Config>{args}, n_heads, false,
             PartialRows{args.workspace.partial_out + row * Config::kHeadDim});
  store_sums(state, args.workspace.partial_sums + row);
  __threadfence();
  __syncwarp();
  if (Lane().id == 0) count_steps(args, part, task);
}

template <typename Config>
__device__ float* closing_rows(uint8_t* slots, int warp) {
  return reinterpret_cast<float*>(slots + warp * Config::kSlots * Config::kSlotBytes);
}

template <typename Config>
__device__ void keep_closing_part(const DecodeArgs& args, UnitState<Config>& state, int n_heads, uint8_t* slots,
                                  int warp_in_block, const UnitPart& part, BlockParts<Config>& parts) {
  cp_async_wait<0>();
  __syncwarp();
  store_unit(state, Groups<Config>{args}, n_heads, false, PartialRows{closing_rows<Config>(slots, warp_in_block)});
  store_sums(state, parts.sums[warp_in_block]);
  if (Lane().id == 0) parts.closing[warp_in_block] = part;
}

// Stores a unit, or leaves or keeps the part of it that the warp has done.
template <typename Config>
__device__ void finish_unit(const DecodeArgs& args, const WarpMemory<Config>& memory, UnitState<Config>& state,
                            const Piece& piece, int warp, uint8_t* slots, BlockParts<Config>& parts) {
  const UnitPart part{piece.unit, piece.ends, piece.n_steps,
                      piece.unit == memory.begin.unit ? memory.begin.first_warp : warp};
  if (part.n_done == part.n_steps) {
    uint16_t* out = args.out + piece.row * args.out_stride + int64_t{piece.first_head} * Config::kHeadDim;
    store_unit(state, Groups<Config>{args}, piece.n_heads, true, OutputRows{out, args.dtype});
  } else if (piece.unit == memory.end.unit) {
    keep_closing_part(args, state, piece.n_heads, slots, warp % Config::kWarps, part, parts);
  } else {
    leave_opening_part(args, state, piece.n_heads, warp, part, parts.tasks[warp % Config::kWarps]);
  }
}

// Sums of 4 channels a lane, and of 128 more for wider heads, over parts that come 32 at a time, one a lane.
template <typename Config>
struct HeadSum {
  static constexpr int kVectors = (Config::kHeadDim + 127) / 128;
  float maximum = -INFINITY;
  float total = 0.0F;
  float4 sum[kVectors] = {};

  // `rows` of lane i: the part's row of this head, anything readable where n_parts <= i; sums {-inf, 0} there.
  __device__ void add(const float* rows, float2 sums, int n_parts) {
    const float highest = fmaxf(maximum, warp_max(sums.x));
    if (highest == -INFINITY) return;
    const float old_factor = exp2_approx(maximum - highest);
    maximum = highest;
    const float factor = exp2_approx(sums.x - maximum);
    total = total * old_factor + warp_sum(sums.y * factor);
#pragma unroll
    for (float4& x : sum) x = {x.x * old_factor, x.y * old_factor, x.z * old_factor, x.w * old_factor};
    constexpr int kAtOnce = 16 / kVectors;
    for (int first = 0; first < n_parts; first += kAtOnce) {
      float4 loaded[kAtOnce][kVectors];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const auto from = reinterpret_cast<const float*>(
            __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(rows), first + i));
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          if (channel(v) < Config::kHeadDim) loaded[i][v] = *reinterpret_cast<const float4*>(from + channel(v));
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float f = __shfl_sync(kAllLanes, factor, first + i);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const float4 x = loaded[i][v];
          sum[v] = {sum[v].x + x.x * f, sum[v].y + x.y * f, sum[v].z + x.z * f, sum[v].w + x.w * f};
        }
      }
    }
  }

  __device__ static int channel(int v) {
    return 128 * v + 4 * Lane().id;
  }
  template <typename To>
  __device__ void store(const To& to, float factor) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (channel(v) >= Config::kHeadDim) continue;
      to.template store<Config>(0, channel(v),
                                {sum[v].x * factor, sum[v].y * factor, sum[v].z * factor, sum[v].w * factor});
    }
  }
};

// Head n of the closing parts of warps first .. last of the block, to global memory. One warp.
template <typename Config>
__device__ void merge_closing(const DecodeArgs& args, uint8_t* slots, const BlockParts<Config>& parts, int first,
                              int last, int n) {
  const Lane lane;
  const int warp = min(first + lane.id, last);
  const bool has_part = first + lane.id <= last && parts.closing[warp].unit >= 0;
  HeadSum<Config> head;
  const int source = has_part ? warp : first;
  head.add(closing_rows<Config>(slots, source) + n * Config::kHeadDim,
           has_part ? parts.sums[warp][n] : float2{-INFINITY, 0.0F}, last - first + 1);
  const int64_t row = part_row(static_cast<int>(blockIdx.x) * Config::kWarps + first, 1) + n;
  head.store(PartialRows{args.workspace.partial_out + row * Config::kHeadDim}, 1.0F);
  if (lane.id == 0) args.workspace.partial_sums[row] = {head.maximum, head.total};
}

// Head n of a unit from the parts in global memory. One warp.
template <typename Config>
__device__ void merge_unit(const DecodeArgs& args, const MergeTask& task, int n, const OutputRows& out) {
  const DecodeWorkspace& w = args.workspace;
  const Lane lane;
  HeadSum<Config> head;
  for (int32_t base = task.first_warp; base < w.n_warps; base += kWarpLanes) {
    const int32_t warp = base + lane.id;
    bool beyond = true;
    int which = -1;
    if (warp < w.n_warps) {
      const WorkBegin begin = w.begins[warp];
      const WorkBegin end = w.begins[warp + 1];
      const bool empty = begin.unit == end.unit && begin.step == end.step;
      beyond = warp > task.first_warp && begin.unit != task.unit;
      if (!beyond && !empty) which = end.unit == task.unit ? 1 : 0;
      // A closing part is where the first warp of the block that has one put it. A warp before this one has one if
      // it had anything of the unit.
      if (which == 1 && warp > task.first_warp) {
        const int32_t block_first = max(warp / Config::kWarps * Config::kWarps, task.first_warp);
        const WorkBegin before = w.begins[block_first];
        if (before.unit != begin.unit || before.step != begin.step) which = -1;
      }
    }
    const unsigned have = __ballot_sync(kAllLanes, which >= 0);
    if (have != 0) {
      // Parts to the front, so that few lanes are looked at.
      const int n_parts = __popc(have);
      const int mine =
          lane.id < n_parts ? static_cast<int>(__fns(have, 0, lane.id + 1)) : __ffs(static_cast<int>(have)) - 1;
      const int64_t row = part_row(base + mine, __shfl_sync(kAllLanes, which, mine)) + n;
      const float2 sums = lane.id < n_parts ? __ldcg(w.partial_sums + row) : float2{-INFINITY, 0.0F};
      head.add(w.partial_out + row * Config::kHeadDim, sums, n_parts);
    }
    if (__any_sync(kAllLanes, beyond)) break;
  }
  head.store(out, 1.0F / head.total);
}

// The end of a block: all its warps together.
template <typename Config>
__device__ void merge_parts(const DecodeArgs& args, uint8_t* slots, BlockParts<Config>& parts) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  __threadfence();
  __syncthreads();
  // Runs of warps whose closing parts are of the same unit; a warp between them without any work has none.
  int turn = 0;
  const auto for_each_run = [&](auto visit) {
    for (int first = 0; first < Config::kWarps;) {
      const int32_t unit = parts.closing[first].unit;
      int last = first;
      for (int next = first + 1; next < Config::kWarps && unit >= 0; ++next) {
        if (parts.closing[next].unit == unit) last = next;
      }
      if (unit >= 0) visit(first, last);
      first = last + 1;
    }
  };
  for_each_run([&](int first, int last) {
    const int n_heads = UnitPlace(args, parts.closing[first].unit).n_heads;
    for (int n = 0; n < n_heads; ++n, ++turn) {
      if (turn % Config::kWarps == warp) merge_closing(args, slots, parts, first, last, n);
    }
  });
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    for_each_run([&](int first, int last) {
      UnitPart part = parts.closing[first];
      for (int next = first + 1; next <= last; ++next) {
        if (parts.closing[next].unit >= 0) part.n_done += parts.closing[next].n_done;
      }
      count_steps(args, part, parts.closing_tasks[first]);
    });
    __threadfence();
  }
  __syncthreads();

  turn = 0;
  for (int i = 0; i < 2 * Config::kWarps; ++i) {
    const MergeTask task = i < Config::kWarps ? parts.tasks[i] : parts.closing_tasks[i - Config::kWarps];
    if (task.unit < 0) continue;
    const UnitPlace place(args, task.unit);
    const int64_t row = args.seq_begin[place.b];
    for (int n = 0; n < place.n_heads; ++n, ++turn) {
      if (turn % Config::kWarps != warp) continue;
      uint16_t* out = args.out + row * args.out_stride + int64_t{place.first_head + n} * Config::kHeadDim;
      merge_unit<Config>(args, task, n, OutputRows{out, args.dtype});
    }
    if (threadIdx.x == 0) args.workspace.steps_done[task.unit] = 0;
  }
}

}  // namespace kivi::cuda
