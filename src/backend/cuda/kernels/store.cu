// Storing new keys and values: the rows that the window policies pack are quantised into pages, the others go into the
// window. Codes are the CPU's to the bit: the quantiser is format/quantise.h, compiled without contraction.
//
// Two kernels of blocks of 128 threads. store_step stores the sequences of one new token where it can; a step of
// decoding is that alone. Its blocks are of two kinds:
//   flush  the keys that leave the window, if then all of it does (no token is kept, so token blocks do not write where
//          these read): of a sequence in so many steps, but much work, so all flush blocks share out its heads and
//          groups.
//   token  the rows of that token, and the value that leaves the window for it: a warp has four heads (store_token.cuh)
// store_rows stores the others. Its blocks are
//   edge   one side (keys or values) of a sequence and some of its KV heads. Packs every unit that begins with an old
//          token, out of the window, and then writes the new rows that stay: only these blocks read the window, and
//          each before it writes there, so a slot may change hands within the launch.
//   bulk   one side and KV head of 128 rows of the step, whatever sequences they belong to: packs the units that begin
//          in these rows, and copies the rows where nothing is ever packed.
// A unit is what one block has to own: a key group, and tokens that share words (exclusive_tokens). So a word is
// written by one thread of a launch; where other tokens' codes are in it, these bits are kept.
// Bytes: 2 per number read, and its share of the page written; a row that stays is 2 + 2 per number.
#include <algorithm>
#include <bit>

#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/pack_tile.cuh"
#include "backend/cuda/kernels/store.h"
#include "backend/cuda/kernels/store_token.cuh"

namespace kivi::cuda {
namespace {

using format::KvBatchView;
using format::PageLayout;
using format::WindowPolicy;

constexpr int kBulkRows = 128;

// Copies new tokens into the window. A thread has 16 bytes of a row, and several rows under way.
__device__ void keep(const StorePart& part, const KeptTokens& tokens) {
  constexpr int kRowsUnderWay = 4;
  const int per_row = part.layout().head_dim / 8;
  const int rows_at_once = kStoreThreads / per_row;
  const int own = static_cast<int>(threadIdx.x) / per_row;
  const int at = (static_cast<int>(threadIdx.x) - own * per_row) * 16;
  const int n_tokens = tokens.size();
  const int n_rows = n_tokens * part.n_heads;
  if (own >= rows_at_once) return;
#pragma unroll 1
  for (int first = own; first < n_rows; first += kRowsUnderWay * rows_at_once) {
    uint4 numbers[kRowsUnderWay];
    std::byte* to[kRowsUnderWay];
#pragma unroll
    for (int i = 0; i < kRowsUnderWay; ++i) {
      const int row = min(first + i * rows_at_once, n_rows - 1);
      const int head = row / n_tokens;
      const int token = tokens.token(row - head * n_tokens);
      const Timeline timeline = part.timeline(part.head + head);
      numbers[i] = *reinterpret_cast<const uint4*>(timeline.new_row(token) + at);
      to[i] = timeline.window_row(token) + at;
    }
#pragma unroll
    for (int i = 0; i < kRowsUnderWay; ++i) {
      if (first + i * rows_at_once < n_rows) *reinterpret_cast<uint4*>(to[i]) = numbers[i];
    }
  }
}

// ---- Sequences of many new tokens ----

// What a block stores of a sequence.
struct Stored {
  TokenRange packed;
  KeptTokens kept;
};

__device__ Stored stored_by_edge(const StorePart& part) {
  const WindowPolicy& policy = part.side().policy;
  const int n_past = part.sequence.n_past;
  const int n_after = n_past + part.sequence.n_new;
  if (policy.keeps_all()) return {};  // bulk blocks copy
  Stored stored{packed_range(policy, n_past, n_after), {policy, n_past, n_after}};
  stored.packed.end = min(stored.packed.end, round_up(max(n_past - policy.sinks, 0), part.side().unit));
  return stored;
}

// Of rows begin .. end - 1 of the step.
__device__ Stored stored_by_bulk(const StorePart& part, int begin, int end) {
  const WindowPolicy& policy = part.side().policy;
  const int n_past = part.sequence.n_past;
  const int n_after = n_past + part.sequence.n_new;
  const int row_0 = n_past - part.sequence.first_row;  // the token that row 0 would be
  Stored stored;
  if (policy.keeps_all()) {
    stored.kept = {policy, n_past, n_after};
    stored.kept.clip(row_0 + begin, row_0 + end);
    return stored;
  }
  const int u_0 = row_0 - policy.sinks;
  const int unit = part.side().unit;
  const TokenRange packed = packed_range(policy, n_past, n_after);
  const int first = max(u_0 + begin, max(n_past - policy.sinks, packed.begin));
  stored.packed = {round_up(max(first, 0), unit), min(round_up(max(u_0 + end, 0), unit), packed.end)};
  return stored;
}

template <typename C>
__global__ __launch_bounds__(kStoreThreads, 4) void store_rows_kernel(const __grid_constant__ StoreProblem problem) {
  auto x = static_cast<int>(blockIdx.x);
  const int n_heads = problem.cache.layout.n_kv_heads;
  const int heads = problem.edge_heads;
  const bool edge = x < problem.first_blocks;
  StorePart part{problem, Side::kKeys, 0, 1, {}};
  int begin = 0;
  int b;
  if (edge) {
    const int blocks_per_sequence = round_up(n_heads, heads) / heads;
    if (x >= problem.first_blocks / 2) {
      part.side_kind = Side::kValues;
      x -= problem.first_blocks / 2;
    }
    part.head = x % blocks_per_sequence * heads;
    part.n_heads = min(heads, n_heads - part.head);
    b = x / blocks_per_sequence;
  } else {
    x -= problem.first_blocks;
    part.head = x % n_heads;
    part.side_kind = x / n_heads % 2 == 0 ? Side::kKeys : Side::kValues;
    begin = x / n_heads / 2 * kBulkRows;
    b = last_at_most(problem.n_sequences, begin, [&](int i) { return problem.seq_begin[i]; });
  }
#pragma unroll 1
  for (bool more = true; more; more = !edge && ++b < problem.n_sequences && problem.seq_begin[b] < begin + kBulkRows) {
    part.sequence = sequence_rows(problem.cache, problem.seq_begin, b);
    if (part.sequence.n_new == 0 || (part.sequence.n_new == 1 && problem.steps)) continue;
    const Stored stored = edge ? stored_by_edge(part) : stored_by_bulk(part, begin, begin + kBulkRows);
    pack<C>(part, stored.packed);
    keep(part, stored.kept);
  }
}

// ---- Sequences of one new token ----

// Of kMost sequences from `first` on those whose new token makes keys leave the window, in order. All threads of the
// block.
struct FlushList {
  static constexpr int kMost = 1024;
  static constexpr int kLooks = 4;  // of a thread at a time
  int n;
  uint16_t sequences[kMost];  // counted from `first`
  unsigned flushing[kMost / 32];

  __device__ void make(const StoreProblem& problem, int first) {
    static_assert(kMost / 32 == 32 && kMost % (kLooks * kStoreThreads) == 0);
    const auto thread = static_cast<int>(threadIdx.x);
    const auto lane = static_cast<int>(threadIdx.x % 32);
    const auto warp = static_cast<int>(threadIdx.x / 32);
    const int n_looks = min(kMost, problem.n_sequences - first);
    __syncthreads();  // the list before is done with
    if (warp == 0) flushing[lane] = 0;
    __syncthreads();
#pragma unroll 1
    for (int look = 0; look < n_looks; look += kLooks * kStoreThreads) {
      unsigned flushes = 0;
#pragma unroll
      for (int i = 0; i < kLooks; ++i) {  // all under way at once
        const int b = first + look + i * kStoreThreads + thread;
        const SequenceRows rows = sequence_rows(problem.cache, problem.seq_begin, min(b, problem.n_sequences - 1));
        const bool flushes_now =
            (b < problem.n_sequences) & (rows.n_new == 1) & flushes_at(problem.keys.policy, rows.n_past);
        flushes |= unsigned{flushes_now} << i;
      }
#pragma unroll
      for (int i = 0; i < kLooks; ++i) {
        const unsigned of_warp = __ballot_sync(~0U, (flushes >> i & 1U) != 0);
        if (lane == 0) flushing[look / 32 + i * kStoreWarps + warp] = of_warp;
      }
    }
    __syncthreads();
    const int own = __popc(flushing[lane]);
    int before = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(~0U, before, distance);
      if (lane >= distance) before += other;
    }
    if (thread == 31) n = before;
    before -= own;
    if (warp == 0) {
#pragma unroll 1
      for (unsigned left = flushing[lane]; left != 0; left &= left - 1) {
        sequences[before++] = static_cast<uint16_t>(lane * 32 + __ffs(static_cast<int>(left)) - 1);
      }
    }
    __syncthreads();
  }
};

template <typename C>
__device__ void flush_keys(const StoreProblem& problem, int block) {
  __shared__ FlushList list;
  const StoreSide& keys = problem.keys;
  const WindowPolicy& policy = keys.policy;
  const int n_heads = problem.cache.layout.n_kv_heads;
  const int n_parts = policy.flush / keys.unit;  // of a flush and head
#pragma unroll 1
  for (int first = 0; first < problem.n_sequences; first += FlushList::kMost) {
    list.make(problem, first);
#pragma unroll 1
    for (int i = block; i < list.n * n_heads * n_parts; i += problem.first_blocks) {
      const int head_of_all = i / n_parts;
      const int entry = head_of_all / n_heads;
      const StorePart part{problem, Side::kKeys, head_of_all - entry * n_heads, 1,
                           sequence_rows(problem.cache, problem.seq_begin, first + list.sequences[entry])};
      const int end = part.sequence.n_past + 1 - policy.sinks;  // all that is in the window leaves
      const int begin = end - policy.flush + (i - head_of_all * n_parts) * keys.unit;
      // What is out of sight does so in whole pages, and so in whole units.
      if (policy.sliding_window != 0 && policy.sinks + begin < policy.first_stored(part.sequence.n_past + 1)) continue;
      pack_together<C, true>(part, part.head, 1, begin, keys.unit);
    }
  }
}

template <typename C>
__global__ __launch_bounds__(kStoreThreads, 8) void store_step_kernel(const __grid_constant__ StoreProblem problem) {
  const auto x = static_cast<int>(blockIdx.x);
  if (x < problem.first_blocks) return flush_keys<C>(problem, x);
  store_tokens<C>(problem, (x - problem.first_blocks) * kStoreWarps + static_cast<int>(threadIdx.x / 32));
}

// ---- The host's side ----

void require_supported_side(const char* name, int bits, int group, const WindowPolicy& policy) {
  if (bits != 0 && !format::is_packed_width(bits)) {
    fail(ErrorCode::kUnsupported, "{} of {} bits: the GPU stores 2, 3, 4, 8 or 16 bits", name, bits);
  }
  if (bits != 0 && group != 32 && group != 64 && group != 128) {
    fail(ErrorCode::kUnsupported, "{} in groups of {}: the GPU packs groups of 32, 64 or 128", name, group);
  }
  if ((bits == 0) != policy.keeps_all()) {
    fail(ErrorCode::kInternal, "store_kv: {} of {} bits contradict their window policy", name, bits);
  }
}

void require_rows(const AnyView& rows, const KvBatchView& cache) {
  const PageLayout& layout = cache.layout;
  if (rows.rank != 3 || rows.dtype != cache.window_dtype || rows.shape[1] != layout.n_kv_heads ||
      rows.shape[2] != layout.head_dim) {
    fail(ErrorCode::kInternal, "store_kv: new rows contradict the cache's {} KV heads of {} {} numbers",
         layout.n_kv_heads, layout.head_dim, name(cache.window_dtype));
  }
  if (reinterpret_cast<uintptr_t>(rows.data) % 16 != 0 || rows.stride[0] % 8 != 0 || rows.stride[1] % 8 != 0) {
    fail(ErrorCode::kInternal, "store_kv: new rows must begin at multiples of 16 bytes");
  }
}

void require_supported(const StoreKvArgs& args) {
  const KvBatchView& cache = args.cache;
  const PageLayout& layout = cache.layout;
  if (layout.head_dim % format::kTileSpan != 0 || layout.head_dim < 32 || layout.head_dim > 256) {
    fail(ErrorCode::kUnsupported, "head_dim {}: the GPU's cache takes multiples of 32 up to 256", layout.head_dim);
  }
  if (cache.window_dtype != DType::kF16 && cache.window_dtype != DType::kBF16) {
    fail(ErrorCode::kUnsupported, "a window of {}: the GPU's cache takes f16 and bf16", name(cache.window_dtype));
  }
  require_supported_side("keys", layout.key_bits, layout.key_group, cache.key_policy);
  require_supported_side("values", layout.value_bits, layout.value_group, cache.value_policy);
  if ((layout.key_bits != 0 || layout.value_bits != 0) && layout.order != format::CodeOrder::kFragment) {
    fail(ErrorCode::kInternal, "store_kv: pages in linear order; the GPU's are in fragment order");
  }
  require_aligned_pages(cache);
  require_rows(args.new_keys, cache);
  require_rows(args.new_values, cache);
  if (args.new_keys.shape[0] != args.new_values.shape[0]) {
    fail(ErrorCode::kInternal, "store_kv: {} new keys, {} new values", args.new_keys.shape[0],
         args.new_values.shape[0]);
  }
}

// KV heads of an edge block: few, so that they are spread over the device, and more where there are blocks in plenty,
// for most of a block's time goes by until it knows where its rows are, if it has any.
int edge_heads(int64_t n_heads_of_all) {
  constexpr int64_t kPlenty = 1024;
  int heads = 1;
  while (heads < 8 && n_heads_of_all / (2 * heads) >= kPlenty) heads *= 2;
  return heads;
}

// Twice what a step needs whose sequences flush one after the other, and enough to use the device where they flush
// together: each makes a list of them first.
int flush_blocks(const StoreSide& keys, int64_t n_heads_of_all) {
  if (keys.bits == 0) return 0;
  const int64_t most = n_heads_of_all * (keys.policy.flush / keys.unit);
  return static_cast<int>(std::min(most, std::clamp<int64_t>(2 * n_heads_of_all / keys.unit, 256, 512)));
}

StoreSide key_side(const StoreKvArgs& args) {
  const PageLayout& layout = args.cache.layout;
  const int exclusive = layout.key_bits == 0 ? 1 : exclusive_tokens(layout.head_dim, layout.key_bits);
  return {.new_rows = rows_view(args.new_keys),
          .policy = args.cache.key_policy,
          .bits = layout.key_bits,
          .group = layout.key_group,
          .unit = std::max(exclusive, layout.key_group),
          .codes = static_cast<int>(layout.key_codes()),
          .high_plane = static_cast<int>(layout.key_high_plane()),
          .scales = static_cast<int>(layout.key_scales()),
          .zeros = static_cast<int>(layout.key_zeros()),
          .zero_units = static_cast<int>(layout.key_zero_units()),
          .spans_shift = 0};
}

StoreSide value_side(const StoreKvArgs& args) {
  const PageLayout& layout = args.cache.layout;
  return {.new_rows = rows_view(args.new_values),
          .policy = args.cache.value_policy,
          .bits = layout.value_bits,
          .group = layout.value_group,
          .unit = layout.value_bits == 0 ? 1 : exclusive_tokens(layout.head_dim, layout.value_bits),
          .codes = static_cast<int>(layout.value_codes()),
          .high_plane = static_cast<int>(layout.value_high_plane()),
          .scales = static_cast<int>(layout.value_scales()),
          .zeros = static_cast<int>(layout.value_zeros()),
          .zero_units = 0,
          .spans_shift = std::countr_zero(static_cast<unsigned>(layout.value_group / format::kTileSpan))};
}

// A configuration's kernels.
struct StoreKernels {
  void (*step)(StoreProblem);
  void (*rows)(StoreProblem);
};

template <typename T, ParamFormat kParams>
StoreKernels kernels_of() {
  using C = StoreConfig<T, kParams>;
  return {store_step_kernel<C>, store_rows_kernel<C>};
}

StoreKernels kernels_of(DType dtype, ParamFormat params) {
  if (dtype == DType::kF16) {
    return params == ParamFormat::kByte ? kernels_of<Half, ParamFormat::kByte>()
                                        : kernels_of<Half, ParamFormat::kHalf>();
  }
  return params == ParamFormat::kByte ? kernels_of<BFloat16, ParamFormat::kByte>()
                                      : kernels_of<BFloat16, ParamFormat::kHalf>();
}

void launch_step(const StoreKernels& kernels, StoreProblem problem, cudaStream_t stream) {
  const PageLayout& layout = problem.cache.layout;
  problem.tile_rows = problem.keys.bits == 0 ? 0 : problem.keys.unit;
  problem.first_blocks = flush_blocks(problem.keys, int64_t{problem.n_sequences} * layout.n_kv_heads);
  const int n_warps = problem.n_sequences * (round_up(parts_of_token(layout), kTokenParts) / kTokenParts);
  const int n_blocks = problem.first_blocks + round_up(n_warps, kStoreWarps) / kStoreWarps;
  launch("store_kv", kernels.step, n_blocks, kStoreThreads, pack_bytes(layout, problem.tile_rows), stream, problem);
}

void launch_rows(const StoreKernels& kernels, StoreProblem problem, int64_t n_rows, cudaStream_t stream) {
  const PageLayout& layout = problem.cache.layout;
  const int n_heads = layout.n_kv_heads;
  const bool packs = problem.keys.bits != 0 || problem.values.bits != 0;
  problem.tile_rows = packs ? kPackRows : 0;
  problem.edge_heads = edge_heads(int64_t{problem.n_sequences} * n_heads);
  const int edge_blocks = 2 * problem.n_sequences * (round_up(n_heads, problem.edge_heads) / problem.edge_heads);
  problem.first_blocks = packs ? edge_blocks : 0;
  const auto n_blocks =
      static_cast<unsigned>(problem.first_blocks + (n_rows + kBulkRows - 1) / kBulkRows * 2 * n_heads);
  launch("store_kv", kernels.rows, n_blocks, kStoreThreads, pack_bytes(layout, problem.tile_rows), stream, problem);
}

}  // namespace

void store_kv(const StoreKvArgs& args, cudaStream_t stream) {
  require_supported(args);
  const auto seq_begin = args.seq_begin.as<const int32_t, 1>();
  const int64_t n_rows = args.new_keys.shape[0];
  const auto n_sequences = static_cast<int>(seq_begin.shape[0] - 1);
  if (n_rows == 0 || n_sequences < 1) return;
  const StoreProblem problem{.cache = args.cache,
                             .keys = key_side(args),
                             .values = value_side(args),
                             .seq_begin = seq_begin.data,
                             .n_sequences = n_sequences,
                             .block_bytes = static_cast<int>(args.cache.layout.block_bytes()),
                             .steps = stores_tokens(args.cache)};
  const StoreKernels kernels = kernels_of(args.cache.window_dtype, args.cache.layout.params);
  if (problem.steps) launch_step(kernels, problem, stream);
  // As many rows as sequences: each has one, or none, as padding has.
  if (!problem.steps || n_rows > n_sequences) launch_rows(kernels, problem, n_rows, stream);
}

}  // namespace kivi::cuda
