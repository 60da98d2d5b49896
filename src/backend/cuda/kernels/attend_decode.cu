// Host side of decode attention, and the kernel that shares out its work.
#include <list>
#include <numbers>

#include "backend/cuda/device/buffer.h"
#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/attend_decode.h"
#include "backend/cuda/kernels/attend_decode_table.h"
#include "backend/cuda/kernels/decode_args.cuh"
#include "core/error.h"

namespace kivi::cuda {
namespace {

constexpr int kMaxHeadDim = 256;
constexpr int kMaxWarpsPerBlock = 8;
constexpr int kPlanThreads = 1024;

// Grid: one block. Each thread puts a run of neighbouring sequences onto the line; then thread i finds the borders of
// warps i, i + kPlanThreads, ... Reads a few numbers a sequence.
__global__ void __launch_bounds__(kPlanThreads)
    plan_decode(const format::KvBatchView cache, const int32_t* seq_begin, int32_t n_sequences,
                int32_t units_per_sequence, const StepCosts costs, const DecodeWorkspace workspace) {
  __shared__ int64_t totals[kPlanThreads];
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto cost_of = [&](int32_t b) {
    const SequenceWork work = sequence_work(cache, seq_begin, b);
    return costs.before(work, work.n_steps) * units_per_sequence;
  };
  // Each thread takes a run of sequences: its sum, the sums of the threads before it, then the begins of its own.
  const int32_t run = (n_sequences + kPlanThreads - 1) / kPlanThreads;
  const int32_t first = min(thread * run, n_sequences);
  const int32_t last = min(first + run, n_sequences);
  int64_t sum = 0;
  for (int32_t b = first; b < last; ++b) sum += cost_of(b);
  totals[thread] = sum;
  __syncthreads();
  for (int step = 1; step < kPlanThreads; step *= 2) {
    const int64_t before = thread >= step ? totals[thread - step] : 0;
    __syncthreads();
    totals[thread] += before;
    __syncthreads();
  }
  int64_t at = totals[thread] - sum;
  for (int32_t b = first; b < last; ++b) {
    workspace.line_begins[b] = at;
    at += cost_of(b);
  }
  __syncthreads();

  const int64_t line = totals[kPlanThreads - 1];
  const int64_t n_warps = workspace.n_warps;
  for (int32_t warp = thread; warp <= n_warps; warp += kPlanThreads) {
    WorkBegin begin{n_sequences * units_per_sequence, 0, 0};
    const int64_t x = warp * line / n_warps;
    if (warp < n_warps && line > 0) {
      // The last sequence that begins at x or before: it has work, for x is on the line.
      int32_t b = 0;
      for (int32_t n = n_sequences; n > 1;) {
        const int32_t half = n / 2;
        if (workspace.line_begins[b + half] <= x) b += half;
        n -= half;
      }
      const SequenceWork work = sequence_work(cache, seq_begin, b);
      const int64_t unit_cost = costs.before(work, work.n_steps);
      const int64_t in_sequence = x - workspace.line_begins[b];
      auto unit = static_cast<int32_t>(in_sequence / unit_cost);
      const int64_t in_unit = in_sequence % unit_cost;
      int32_t step = 0;  // the first that begins at x or after
      for (int32_t n = work.n_steps; n > 0;) {
        const int32_t half = n / 2;
        if (costs.before(work, step + half) < in_unit) {
          step += half + 1;
          n -= half + 1;
        } else {
          n = half;
        }
      }
      if (step == work.n_steps) {
        step = 0;
        ++unit;
      }
      const int64_t unit_begin = workspace.line_begins[b] + unit * unit_cost;
      // The last warp whose x is at or before the beginning of the unit.
      const int64_t first_warp = ((unit_begin + 1) * n_warps - 1) / line;
      begin = {b * units_per_sequence + unit, step, static_cast<int32_t>(min(first_warp, n_warps - 1))};
    }
    workspace.begins[warp] = begin;
  }
}

const DecodeKernel& find_kernel(const format::PageLayout& layout) {
  for (const auto kernels : {decode_kernels_64(), decode_kernels_128(), decode_kernels_256()}) {
    for (const DecodeKernel& kernel : kernels) {
      if (kernel.head_dim != layout.head_dim || kernel.key_bits != layout.key_bits ||
          kernel.value_bits != layout.value_bits) {
        continue;
      }
      const bool packed = kernel.key_bits > 0;
      const bool exact = kernel.group == layout.key_group && kernel.group == layout.value_group;
      const bool any =
          kernel.group == 0 && layout.key_group % format::kTileSpan == 0 && layout.value_group % format::kTileSpan == 0;
      if (!packed || exact || any) return kernel;
    }
  }
  fail(ErrorCode::kUnsupported,
       "attention on a GPU: no kernel for head_dim {}, keys of {} bits, values of {} bits, groups of {} and {}; there "
       "are head_dim 64, 128 and 256, both sides in 16 bits or each in 2 or 4, groups of 32, 64 and 128",
       layout.head_dim, layout.key_bits == 0 ? 16 : layout.key_bits, layout.value_bits == 0 ? 16 : layout.value_bits,
       layout.key_group, layout.value_group);
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
  DecodeWorkspace workspace;
};

DecodeAttention::DecodeAttention(const Stream& stream) : memory_(std::make_unique<Memory>(stream)) {
  check(cudaDeviceGetAttribute(&n_multiprocessors_, cudaDevAttrMultiProcessorCount, stream.device()),
        "asking for the GPU's multiprocessors");
  const int64_t warps = int64_t{n_multiprocessors_} * kMaxWarpsPerBlock;
  DecodeWorkspace& workspace = memory_->workspace;
  workspace.begins = memory_->allocate<WorkBegin>(warps + 1);
  workspace.line_begins = memory_->allocate<int64_t>(kMaxSequences);
  workspace.steps_done = memory_->allocate<int32_t>(kMaxUnits);
  workspace.partial_out = memory_->allocate<float>(warps * 2 * kHeadsPerUnit * kMaxHeadDim);
  workspace.partial_sums = memory_->allocate<float2>(warps * 2 * kHeadsPerUnit);
}

DecodeAttention::~DecodeAttention() = default;

void DecodeAttention::plan(const PlanAttendArgs& args, cudaStream_t stream) {
  const DecodeKernel& kernel = find_kernel(args.cache.layout);
  const auto n_sequences = static_cast<int32_t>(args.seq_begin.shape[0] - 1);
  const int32_t units = args.cache.layout.n_kv_heads * groups_per_kv(args.n_heads, args.cache.layout.n_kv_heads);
  if (n_sequences > kMaxSequences || int64_t{n_sequences} * units > kMaxUnits) {
    fail(ErrorCode::kUnsupported, "decode of {} sequences x {} heads: at most {} sequences and {} together",
         n_sequences, units, kMaxSequences, kMaxUnits);
  }
  memory_->workspace.n_warps = n_multiprocessors_ * kernel.n_warps;
  launch("plan_decode", plan_decode, 1, kPlanThreads, 0, stream, args.cache, args.seq_begin.as<const int32_t, 1>().data,
         n_sequences, units, StepCosts(args.cache.layout), memory_->workspace);
}

void DecodeAttention::run(const AttendArgs& args, cudaStream_t stream) {
  const format::PageLayout& layout = args.cache.layout;
  const DecodeKernel& kernel = find_kernel(layout);
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
  decode.seq_begin = args.seq_begin.as<const int32_t, 1>().data;
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
  decode.keys_bytes = static_cast<int32_t>(layout.value_codes());
  decode.values_bytes = static_cast<int32_t>(layout.payload_bytes() - layout.value_codes());
  decode.block_bytes = static_cast<int32_t>(layout.block_bytes());
  decode.key_spans = layout.key_group / format::kTileSpan;
  decode.value_spans = layout.value_group / format::kTileSpan;
  decode.workspace = memory_->workspace;
  kernel.launch(decode, n_multiprocessors_, stream);
}

}  // namespace kivi::cuda
