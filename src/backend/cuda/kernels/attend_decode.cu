// Host side of decode attention, and the kernel that shares out its work.
#include <algorithm>
#include <array>
#include <bit>
#include <list>
#include <numbers>

#include "backend/cuda/device/buffer.h"
#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/device/warp.cuh"
#include "backend/cuda/kernels/attend_decode.h"
#include "backend/cuda/kernels/attend_decode_table.h"
#include "backend/cuda/kernels/decode_args.cuh"
#include "core/error.h"

namespace kivi::cuda {
namespace {

constexpr int kPlanThreads = 1024;

// Grid: one block. Each thread puts a run of neighbouring sequences onto the line; then thread i finds the borders of
// warps i, i + kPlanThreads, ... Reads a few numbers a sequence.
struct DecodePlan {
  format::KvBatchView cache;
  const int32_t* seq_begin;
  int32_t n_sequences;
  int32_t units_per_sequence;
  StepCosts costs;
  DecodeWorkspace workspace;

  struct Line {
    int64_t length;
    int32_t end;  // the sequence after the last that has work
  };
  // All threads of the block.
  __device__ Line lay_out_line() const {
    __shared__ int64_t totals[kPlanThreads];
    __shared__ int32_t end;
    const auto thread = static_cast<int32_t>(threadIdx.x);
    const int32_t run = (n_sequences + kPlanThreads - 1) / kPlanThreads;
    const int32_t first = min(thread * run, n_sequences);
    const int32_t last = min(first + run, n_sequences);
    int64_t sum = 0;
    for (int32_t b = first; b < last; ++b) {
      const SequenceWork work = sequence_work(cache, seq_begin, b);
      workspace.works[b] = work;
      sum += costs.before(work, work.n_steps) * units_per_sequence;
    }
    totals[thread] = sum;
    __syncthreads();
    for (int step = 1; step < kPlanThreads; step *= 2) {
      const int64_t before = thread >= step ? totals[thread - step] : 0;
      __syncthreads();
      totals[thread] += before;
      __syncthreads();
    }
    const int64_t length = totals[kPlanThreads - 1];
    if (thread == 0 && length == 0) end = 0;
    int64_t at = totals[thread] - sum;
    for (int32_t b = first; b < last; ++b) {
      workspace.line_begins[b] = at;
      const SequenceWork& work = workspace.works[b];
      at += costs.before(work, work.n_steps) * units_per_sequence;
      if (work.n_steps > 0 && at == length) end = b + 1;
    }
    __syncthreads();
    return {length, end};
  }

  // The first step of a unit that begins at `place` on the unit's line or after it.
  __device__ int32_t step_from(const SequenceWork& work, int64_t place) const {
    int32_t step = 0;
    for (int32_t n = work.n_steps; n > 0;) {
      const int32_t half = n / 2;
      if (costs.before(work, step + half) < place) {
        step += half + 1;
        n -= half + 1;
      } else {
        n = half;
      }
    }
    return step;
  }

  // Warp w takes what begins from  w * line / n_warps  on.
  __device__ WorkBegin begin_of(int64_t warp, const Line& line) const {
    const int64_t n_warps = workspace.n_warps;
    const int64_t x = warp * line.length / n_warps;
    // The last sequence that begins at x or before: it has work, for x is on the line.
    int32_t b = 0;
    for (int32_t n = n_sequences; n > 1;) {
      const int32_t half = n / 2;
      if (workspace.line_begins[b + half] <= x) b += half;
      n -= half;
    }
    WorkBegin begin{};
    begin.work = workspace.works[b];
    const int64_t unit_cost = costs.before(begin.work, begin.work.n_steps);
    const int64_t in_sequence = x - workspace.line_begins[b];
    auto unit = static_cast<int32_t>(in_sequence / unit_cost);
    begin.step = step_from(begin.work, in_sequence % unit_cost);
    if (begin.step == begin.work.n_steps) {
      begin.step = 0;
      if (++unit == units_per_sequence) {  // the first of the next sequence that has work, or the end
        unit = 0;
        do {
          if (++b == line.end) return end_of(line);
          begin.work = workspace.works[b];
        } while (begin.work.n_steps == 0);
      }
    }
    begin.unit = b * units_per_sequence + unit;
    const auto last_warp_from = [&](int64_t place) {  // of those whose x is at a place of the line or before it
      return static_cast<int32_t>(min(((place + 1) * n_warps - 1) / line.length, n_warps - 1));
    };
    const int64_t unit_begin = workspace.line_begins[b] + unit * costs.before(begin.work, begin.work.n_steps);
    begin.first_warp = last_warp_from(unit_begin);
    begin.last_warp = last_warp_from(unit_begin + costs.before(begin.work, begin.work.n_steps - 1));
    const auto tokens = StepTokens::of<true>(begin.work, begin.step);
    for (int lane = 0; lane < kStepPages; ++lane) begin.pages[lane] = step_page(cache, b, tokens, lane);
    return begin;
  }
  // Not that of all sequences: those that a step is padded with come last, and no warp is to walk past them.
  __device__ WorkBegin end_of(const Line& line) const {
    WorkBegin end{};
    end.unit = line.end * units_per_sequence;
    return end;
  }
};

__global__ void __launch_bounds__(kPlanThreads) plan_decode(const __grid_constant__ DecodePlan plan) {
  const DecodePlan::Line line = plan.lay_out_line();
  const int32_t n_warps = plan.workspace.n_warps;
  for (auto warp = static_cast<int32_t>(threadIdx.x); warp <= n_warps; warp += kPlanThreads) {
    plan.workspace.begins[warp] = warp < n_warps && line.length > 0 ? plan.begin_of(warp, line) : plan.end_of(line);
  }
  // Parts that this plan has not must not be taken for parts: whoever merges looks at the sums.
  for (auto i = static_cast<int32_t>(threadIdx.x); i < n_warps * 2 * kHeadsPerUnit; i += kPlanThreads) {
    plan.workspace.partial_sums[i] = {-INFINITY, 0.0F};
  }
}

std::array<std::span<const DecodeKernel>, 6> kernel_files() {
  return {decode_kernels_64_half(),  decode_kernels_64_byte(),  decode_kernels_128_half(),
          decode_kernels_128_byte(), decode_kernels_256_half(), decode_kernels_256_byte()};
}

// general: for a layer that slides, or caps its scores.
const DecodeKernel& find_kernel(const format::PageLayout& layout, bool general) {
  for (const auto kernels : kernel_files()) {
    for (const DecodeKernel& kernel : kernels) {
      if (kernel.head_dim != layout.head_dim || kernel.key_bits != layout.key_bits ||
          kernel.value_bits != layout.value_bits || (general && !kernel.is_general)) {
        continue;
      }
      const bool packed = kernel.key_bits > 0;
      if (packed && kernel.params != layout.params) continue;
      const bool bytes = layout.params == format::ParamFormat::kByte;
      const int value_group = bytes ? std::min(kernel.group, layout.head_dim) : kernel.group;
      const bool exact = kernel.group == layout.key_group && value_group == layout.value_group;
      const bool any =
          kernel.group == 0 && layout.key_group % format::kTileSpan == 0 && layout.value_group % format::kTileSpan == 0;
      if (!packed || exact || any) return kernel;
    }
  }
  fail(
      ErrorCode::kUnsupported,
      "attention on a GPU{}: no kernel for head_dim {}, keys of {} bits, values of {} bits, groups of {} and {}; there "
      "are head_dim 64, 128 and 256, both sides in 16 bits or each in 2 or 4{}, groups of 32, 64 and 128, and kivi-s, "
      "kivi-m and kivi-l",
      general ? ", with a sliding window or capped scores" : "", layout.head_dim,
      layout.key_bits == 0 ? 16 : layout.key_bits, layout.value_bits == 0 ? 16 : layout.value_bits, layout.key_group,
      layout.value_group, general ? " (both alike)" : "");
}

int32_t groups_per_kv(int64_t n_heads, int n_kv_heads) {
  return static_cast<int32_t>((n_heads / n_kv_heads + kHeadsPerUnit - 1) / kHeadsPerUnit);
}

}  // namespace

// One allocation each, zeroed, for the largest step that is supported.
struct DecodeAttention::Memory {
  explicit Memory(const Stream& stream_) : stream(stream_) {}

  template <typename T>
  T* allocate(int64_t n) {
    buffers.emplace_back(static_cast<size_t>(n) * sizeof(T), stream);
    return reinterpret_cast<T*>(buffers.back().data());
  }

  const Stream& stream;
  std::list<DeviceBuffer> buffers;
  std::array<DecodeWorkspace, format::kMostLayerGroups> workspaces;  // of each group of layers
};

DecodeAttention::DecodeAttention(const Stream& stream) : memory_(std::make_unique<Memory>(stream)) {
  check(cudaDeviceGetAttribute(&n_multiprocessors_, cudaDevAttrMultiProcessorCount, stream.device()),
        "asking for the GPU's multiprocessors");
  check(cudaDeviceGetAttribute(&capability_, cudaDevAttrComputeCapabilityMajor, stream.device()),
        "asking for the GPU's compute capability");
  int64_t warps = 0;
  int64_t channels = 0;  // of all warps
  for (const auto kernels : kernel_files()) {
    for (const DecodeKernel& kernel : kernels) {
      const int64_t n_warps = int64_t{n_multiprocessors_} * launch_of(kernel).n_warps;
      warps = std::max(warps, n_warps);
      channels = std::max(channels, n_warps * kernel.head_dim);
    }
  }
  for (DecodeWorkspace& workspace : memory_->workspaces) {
    workspace.begins = memory_->allocate<WorkBegin>(warps + 1);
    workspace.works = memory_->allocate<SequenceWork>(kMaxSequences + kWarpLanes);
    workspace.line_begins = memory_->allocate<int64_t>(kMaxSequences);
    workspace.steps_done = memory_->allocate<int32_t>(kMaxUnits);
    workspace.partial_out = memory_->allocate<float>(channels * 2 * kHeadsPerUnit);
    workspace.partial_sums = memory_->allocate<float2>(warps * 2 * kHeadsPerUnit);
  }
}

DecodeWorkspace& DecodeAttention::workspace_of(const format::KvBatchView& cache) const {
  if (cache.group < 0 || cache.group >= format::kMostLayerGroups) {
    fail(ErrorCode::kInternal, "attend: layers of group {}, there are at most {}", cache.group,
         format::kMostLayerGroups);
  }
  return memory_->workspaces[static_cast<size_t>(cache.group)];
}

DecodeAttention::~DecodeAttention() = default;

const DecodeLaunch& DecodeAttention::launch_of(const DecodeKernel& kernel) const {
  return capability_ >= 9 ? kernel.wide : kernel.narrow;
}

void DecodeAttention::plan(const PlanAttendArgs& args, cudaStream_t stream) {
  const DecodeKernel& kernel = find_kernel(args.cache.layout, args.cache.sliding_window() > 0);
  const auto n_sequences = static_cast<int32_t>(args.seq_begin.shape[0] - 1);
  const int32_t units = args.cache.layout.n_kv_heads * groups_per_kv(args.n_heads, args.cache.layout.n_kv_heads);
  if (n_sequences > kMaxSequences || int64_t{n_sequences} * units > kMaxUnits) {
    fail(ErrorCode::kUnsupported,
         "decoding {} sequences of {} KV heads at once: a GPU takes at most {} sequences, and {} heads of all; lower "
         "--max-sequences",
         n_sequences, units, kMaxSequences, kMaxUnits);
  }
  DecodeWorkspace& workspace = workspace_of(args.cache);
  workspace.n_warps = n_multiprocessors_ * launch_of(kernel).n_warps;
  launch("plan_decode", plan_decode, 1, kPlanThreads, 0, stream,
         DecodePlan{args.cache, args.seq_begin.as<const int32_t, 1>().data, n_sequences, units,
                    StepCosts(args.cache.layout), workspace});
}

void DecodeAttention::run(const AttendArgs& args, cudaStream_t stream) {
  const format::PageLayout& layout = args.cache.layout;
  const DecodeKernel& kernel = find_kernel(layout, args.cache.sliding_window() > 0 || args.score_cap > 0);
  const int64_t n_heads = args.q.shape[1];
  if (args.q.shape[2] != layout.head_dim || n_heads % layout.n_kv_heads != 0 || args.q.dtype != args.out.dtype ||
      args.new_keys.dtype != args.cache.window_dtype || args.q.stride[1] != layout.head_dim ||
      args.out.stride[1] != layout.head_dim || args.new_keys.stride[1] != layout.head_dim ||
      args.new_values.stride[1] != layout.head_dim) {
    fail(ErrorCode::kInternal, "attend: the shapes of q, new keys and values, and the cache contradict each other");
  }
  const auto rows = [](const AnyView& view) { return static_cast<uint16_t*>(view.data); };
  DecodeArgs decode;
  decode.cache = args.cache;
  decode.q = rows(args.q);
  decode.new_keys = rows(args.new_keys);
  decode.new_values = rows(args.new_values);
  decode.out = rows(args.out);
  decode.q_stride = args.q.stride[0];
  decode.key_stride = args.new_keys.stride[0];
  decode.value_stride = args.new_values.stride[0];
  decode.out_stride = args.out.stride[0];
  decode.dtype = args.q.dtype;
  decode.heads_per_kv = static_cast<int32_t>(n_heads / layout.n_kv_heads);
  decode.groups_per_kv = groups_per_kv(n_heads, layout.n_kv_heads);
  decode.log2_scale = args.softmax_scale * std::numbers::log2e_v<float>;
  decode.log2_cap = args.score_cap * std::numbers::log2e_v<float>;
  decode.block_bytes = static_cast<int32_t>(layout.block_bytes());
  decode.values_at = static_cast<int32_t>(layout.value_codes());
  const auto log2_spans = [](int group) {
    return std::bit_width(static_cast<unsigned>(group / format::kTileSpan)) - 1;
  };
  if (layout.key_bits > 0) decode.key_group_shift = log2_spans(layout.key_group);
  if (layout.value_bits > 0) decode.value_group_shift = log2_spans(layout.value_group);
  decode.workspace = workspace_of(args.cache);
  launch_of(kernel).run(decode, n_multiprocessors_, stream);
}

}  // namespace kivi::cuda
