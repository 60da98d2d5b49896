// Results of decode attention: a unit that one warp computed goes straight to the output; the parts of others are
// merged. A warp has at most two parts: an opening one (it began inside a unit and went on beyond it) and a closing one
// (its stretch ends inside a unit). Closing parts of the same unit, which neighbours have, are kept in their slots of
// shared memory, empty by then, and become one when all warps of the block are done; other parts go to global memory at
// once. So there a unit has a closing part of every block of the warps that begin in it, and of the last of those warps
// an opening one. Whoever brings the last steps of a unit merges it, at the end of the block.
#pragma once

#include "backend/cuda/kernels/decode_unit.cuh"

namespace kivi::cuda {

// Steps of a unit that a warp, or a block, has done. unit -1: none.
struct UnitPart {
  int32_t unit;
  int32_t n_done;
  int32_t n_steps;     // of the unit
  int32_t first_warp;  // of the unit's parts
  int32_t last_warp;
};

// Rows [heads][head_dim] of a unit, stored 4 channels at a time: 16-bit output, or a part in f32.
struct UnitRows {
  void* rows;
  DType dtype;

  __device__ void store(int64_t element, const float4& y) const {
    if (dtype == DType::kF32) {
      *reinterpret_cast<float4*>(static_cast<float*>(rows) + element) = y;
    } else {
      *reinterpret_cast<uint2*>(static_cast<uint16_t*>(rows) + element) = {pack_16(dtype, y.x, y.y),
                                                                           pack_16(dtype, y.z, y.w)};
    }
  }
};

// Stores O of a unit, divided by the softmax total if `normalise`.
template <typename Config>
__device__ void store_unit(UnitState<Config>& unit, const ValueGroups<Config>& groups, int n_heads, bool normalise,
                           const UnitRows& to) {
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
        zero = __shfl_sync(kAllLanes, unit.sums[n], 4 * groups.of(q) + lane.j);
        if constexpr (Config::kByteParams) zero *= format::value_zero_steps(Config::kValueBits);
      }
      const auto(&even) = unit.out[2 * q];
      const auto(&odd) = unit.out[2 * q + 1];
      const float4 y = {(even[n] + zero) * factor, (even[2 + n] + zero) * factor, (odd[n] + zero) * factor,
                        (odd[2 + n] + zero) * factor};
      if (head < n_heads) to.store(head * Config::kHeadDim + q * format::kTileSpan + 4 * lane.r, y);
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
  int32_t last_warp;
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

// The opening part of a warp in global memory.
__device__ inline int64_t opening_row(int warp) {
  return int64_t{warp} * 2 * kHeadsPerUnit;
}
// The closing part of a block and unit.
template <typename Config>
__device__ int64_t closing_row(int block, int first_warp) {
  return opening_row(max(block * Config::kWarps, first_warp)) + kHeadsPerUnit;
}

// One lane, after a part is in global memory for all to see.
__device__ inline void count_steps(const DecodeArgs& args, const UnitPart& part, MergeTask& task) {
  if (atomicAdd(args.workspace.steps_done + part.unit, part.n_done) + part.n_done == part.n_steps) {
    task = {part.unit, part.first_warp, part.last_warp};
  }
}

template <typename Config>
__device__ float* closing_rows(std::byte* slots, int warp) {
  return reinterpret_cast<float*>(slots + warp * Config::kSlots * Config::kSlotBytes);
}

// Whether other warps of the block have a closing part of the unit in which the warp ends, too.
template <typename Config>
__device__ bool shares_closing(const WorkBegin& end, int warp) {
  const bool with_next = warp % Config::kWarps != Config::kWarps - 1 && warp + 1 < end.last_warp;
  const bool with_former = warp % Config::kWarps != 0 && end.first_warp < warp;
  return with_next || with_former;
}

// Stores a unit, or leaves or keeps the part of it that the warp has done.
template <typename Config>
__device__ void finish_unit(const DecodeArgs& args, const WarpMemory<Config>& memory, UnitState<Config>& state,
                            const Piece& piece, std::byte* slots, BlockParts<Config>& parts) {
  const int warp_in_block = static_cast<int>(threadIdx.x) / kWarpLanes;
  const auto block = static_cast<int>(blockIdx.x);
  const int warp = block * Config::kWarps + warp_in_block;
  const bool is_whole = piece.ends == piece.n_steps;
  const bool is_closing = !is_whole && piece.unit == memory.end.unit;
  const bool is_kept = is_closing && shares_closing<Config>(memory.end, warp);
  if (is_kept) {
    cp_async_wait<0>();  // of the stream's last, empty groups
    __syncwarp();
  }
  const int64_t row = is_closing ? closing_row<Config>(block, memory.end.first_warp) : opening_row(warp);
  const auto unit = UnitPlace::of(args, piece.unit);
  UnitRows to{args.workspace.partial_out + row * Config::kHeadDim, DType::kF32};
  if (is_kept) to.rows = closing_rows<Config>(slots, warp_in_block);
  if (is_whole) to = {args.out + piece.row * args.out_stride + int64_t{unit.first_head} * Config::kHeadDim, args.dtype};
  store_unit(state, ValueGroups<Config>{args}, unit.n_heads, is_whole, to);
  if (is_whole) return;
  store_sums(state, is_kept ? parts.sums[warp_in_block] : args.workspace.partial_sums + row);
  const WorkBegin& place = is_closing ? memory.end : memory.begin;
  const UnitPart part{piece.unit, piece.ends, piece.n_steps, place.first_warp, place.last_warp};
  if (is_kept) {
    if (Lane().id == 0) parts.closing[warp_in_block] = part;
    return;
  }
  __threadfence();
  __syncwarp();
  if (Lane().id == 0) count_steps(args, part, (is_closing ? parts.closing_tasks : parts.tasks)[warp_in_block]);
}

// Sums of 4 channels a lane, and of 128 more for wider heads, over parts that come 32 at a time, one a lane.
template <typename Config>
struct HeadSum {
  static constexpr int kVectors = (Config::kHeadDim + 127) / 128;
  static constexpr int kAtOnce = 8 / kVectors;  // rows that are loaded before the first is used
  float maximum = -INFINITY;
  float total = 0.0F;
  float4 sum[kVectors] = {};

  // `rows` of lane i: the part's row of this head, anything readable where n_parts <= i; sums {-inf, 0} there and where
  // there is no part.
  __device__ void add(const float* rows, float2 sums, int n_parts) {
    float4 loaded[kAtOnce][kVectors];
    load(loaded, rows, 0);
    const float highest = fmaxf(maximum, warp_max(sums.x));
    const float old_factor = highest == maximum ? 1.0F : exp2_approx(maximum - highest);
    maximum = highest;
    const float factor = sums.x == -INFINITY ? 0.0F : exp2_approx(sums.x - maximum);
    total = total * old_factor + warp_sum(sums.y * factor);
#pragma unroll
    for (float4& x : sum) x = {x.x * old_factor, x.y * old_factor, x.z * old_factor, x.w * old_factor};
    for (int first = 0; first < n_parts; first += kAtOnce) {
      if (first > 0) load(loaded, rows, first);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float f = __shfl_sync(kAllLanes, factor, first + i);
        if (f == 0.0F) continue;  // what is there may be old
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const float4 x = loaded[i][v];
          sum[v] = {sum[v].x + x.x * f, sum[v].y + x.y * f, sum[v].z + x.z * f, sum[v].w + x.w * f};
        }
      }
    }
  }
  __device__ static void load(float4 (&loaded)[kAtOnce][kVectors], const float* rows, int first) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const auto from =
          reinterpret_cast<const float*>(__shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(rows), first + i));
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (channel(v) < Config::kHeadDim) loaded[i][v] = *reinterpret_cast<const float4*>(from + channel(v));
      }
    }
  }

  __device__ static int channel(int v) {
    return 128 * v + 4 * Lane().id;
  }
  __device__ void store(const UnitRows& to, float factor) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (channel(v) >= Config::kHeadDim) continue;
      to.store(channel(v), {sum[v].x * factor, sum[v].y * factor, sum[v].z * factor, sum[v].w * factor});
    }
  }
};

// Head n of the closing parts of some warps of the block, to global memory. One warp.
template <typename Config>
__device__ void merge_closing(const DecodeArgs& args, std::byte* slots, const BlockParts<Config>& parts, unsigned warps,
                              int n) {
  const int n_parts = __popc(warps);
  const int source = static_cast<int>(__fns(warps, 0, min(Lane().id, n_parts - 1) + 1));
  HeadSum<Config> head;
  head.add(closing_rows<Config>(slots, source) + n * Config::kHeadDim,
           Lane().id < n_parts ? parts.sums[source][n] : float2{-INFINITY, 0.0F}, n_parts);
  const int64_t row = closing_row<Config>(static_cast<int>(blockIdx.x), parts.closing[source].first_warp) + n;
  head.store({args.workspace.partial_out + row * Config::kHeadDim, DType::kF32}, 1.0F);
  if (Lane().id == 0) args.workspace.partial_sums[row] = {head.maximum, head.total};
}

// Head n of a unit from the parts in global memory. One warp.
template <typename Config>
__device__ void merge_unit(const DecodeArgs& args, const MergeTask& task, int n, const UnitRows& out) {
  const DecodeWorkspace& w = args.workspace;
  const int first_block = task.first_warp / Config::kWarps;
  const int n_closing = (task.last_warp - 1) / Config::kWarps - first_block + 1;  // of warps before the last
  HeadSum<Config> head;
  for (int base = 0; base <= n_closing; base += kWarpLanes) {
    const int i = min(base + Lane().id, n_closing);
    const int64_t row =
        n + (i < n_closing ? closing_row<Config>(first_block + i, task.first_warp) : opening_row(task.last_warp));
    const float2 sums = base + Lane().id == i ? __ldcg(w.partial_sums + row) : float2{-INFINITY, 0.0F};
    head.add(w.partial_out + row * Config::kHeadDim, sums, min(n_closing + 1 - base, kWarpLanes));
  }
  head.store(out, 1.0F / head.total);
}

// Shares out the heads of units among the warps of a block: units come one a lane, where `has`.
template <typename Config, typename Do>
__device__ void for_each_head(bool has, Do run) {
  const unsigned units = __ballot_sync(kAllLanes, has);
  const int n_units = __popc(units);
  for (int turn = static_cast<int>(threadIdx.x) / kWarpLanes; turn < n_units * kHeadsPerUnit; turn += Config::kWarps) {
    run(static_cast<int>(__fns(units, 0, turn % n_units + 1)), turn / n_units);
  }
}

// The end of a block: all its warps together.
template <typename Config>
__device__ void merge_parts(const DecodeArgs& args, std::byte* slots, BlockParts<Config>& parts) {
  const Lane lane;
  __syncthreads();
  // Lane i: the closing part of warp i, and the warps that have one of the same unit. The first of them leads.
  const UnitPart part = lane.id < Config::kWarps ? parts.closing[lane.id] : UnitPart{-1, 0, 0, 0, 0};
  const unsigned same = __match_any_sync(kAllLanes, part.unit);
  for_each_head<Config>(part.unit >= 0 && __ffs(static_cast<int>(same)) - 1 == lane.id, [&](int warp, int n) {
    const unsigned warps = __shfl_sync(kAllLanes, same, warp);
    if (n < UnitPlace::of(args, parts.closing[warp].unit).n_heads) merge_closing(args, slots, parts, warps, n);
  });
  __threadfence();
  __syncthreads();
  if (threadIdx.x < Config::kWarps && part.unit >= 0) {
    count_steps(args, part, parts.closing_tasks[lane.id]);
    __threadfence();
  }
  __syncthreads();

  const auto tasks = [&](int i) {
    return i < Config::kWarps ? parts.tasks[i] : parts.closing_tasks[i - Config::kWarps];
  };
  const bool has_task = lane.id < 2 * Config::kWarps && tasks(lane.id).unit >= 0;
  for_each_head<Config>(has_task, [&](int i, int n) {
    const MergeTask task = tasks(i);
    const int32_t sequence = task.unit / args.units_per_sequence();
    const auto place = UnitPlace::of(args, task.unit, sequence);
    if (n == 0 && lane.id == 0) args.workspace.steps_done[task.unit] = 0;
    if (n >= place.n_heads) return;
    uint16_t* out = args.out + args.workspace.works[sequence].row * args.out_stride +
                    int64_t{place.first_head + n} * Config::kHeadDim;
    merge_unit<Config>(args, task, n, {out, args.dtype});
  });
}

}  // namespace kivi::cuda
