// Storing new keys and values: the rows that the window policies pack are quantised into pages, the others go into the
// window. Codes are the CPU's to the bit: the quantiser is format/quantise.h, compiled without contraction.
//
// Two kinds of blocks of 128 threads, in one launch:
//   edge   one side (keys or values) of a sequence and some of its KV heads. Packs every unit that begins with an old
//          token, out of the window, and then writes the new rows that stay: only these blocks read the window, and
//          each before it writes there, so a slot may change hands within the launch. All of a decoding step.
//   bulk   one side and KV head of 128 rows of the step, whatever sequences they belong to: packs the units that begin
//          in these rows, and copies the rows where nothing is ever packed. Launched if there are more rows than
//          sequences.
// A unit is what one block has to own: a key group, and tokens that share words (exclusive_tokens). So a word is
// written by one thread of a launch; where other tokens' codes are in it, these bits are kept.
// Bytes: 2 per number read, and its share of the page written; a row that stays is 2 + 2 per number.
#include <algorithm>

#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/pack_tile.cuh"
#include "backend/cuda/kernels/store.h"

namespace kivi::cuda {
namespace {

using format::KvBatchView;
using format::PageLayout;
using format::WindowPolicy;

constexpr int kBulkRows = 128;

// Copies new tokens into the window. A warp has a row at a time, and two under way.
__device__ void keep(const StorePart& part, TokenRange sinks, TokenRange window) {
  constexpr int kRowsUnderWay = 2;
  const int at = static_cast<int>(threadIdx.x) % 32 * 16;  // rows have at most 512 bytes
  const int n_tokens = sinks.size() + window.size();
  const int n_rows = n_tokens * part.n_heads;
  if (at >= part.layout().head_dim * 2) return;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) / 32; first < n_rows; first += kRowsUnderWay * kStoreWarps) {
    uint4 numbers[kRowsUnderWay];
    std::byte* to[kRowsUnderWay];
#pragma unroll
    for (int i = 0; i < kRowsUnderWay; ++i) {
      const int row = first + i * kStoreWarps;
      if (row >= n_rows) continue;
      const int n = row % n_tokens;
      const int token = n < sinks.size() ? sinks.begin + n : window.begin + n - sinks.size();
      const Timeline timeline = part.timeline(part.head + row / n_tokens);
      numbers[i] = *reinterpret_cast<const uint4*>(timeline.new_row(token) + at);
      to[i] = timeline.window_row(token) + at;
    }
#pragma unroll
    for (int i = 0; i < kRowsUnderWay; ++i) {
      if (first + i * kStoreWarps < n_rows) *reinterpret_cast<uint4*>(to[i]) = numbers[i];
    }
  }
}

// ---- The two kinds of blocks ----

// What of a part is stored: tokens to pack, counted from the end of the sinks, and new tokens to keep in 16 bits.
struct Stored {
  TokenRange packed;
  TokenRange sinks;
  TokenRange window;
};

// What an edge block stores.
__device__ Stored at_the_edge(const StorePart& part) {
  const WindowPolicy& policy = part.side().policy;
  const int n_past = part.sequence.n_past;
  const int n_after = n_past + part.sequence.n_new;
  const bool bulk = part.problem.bulk;
  if (policy.keeps_all() && bulk) return {};
  const auto packed_end = static_cast<int>(policy.n_packed(n_after));
  const int first_bulk = round_up(max(n_past - policy.sinks, 0), part.side().unit);
  return {.packed = {static_cast<int>(policy.n_packed(n_past)), bulk ? min(first_bulk, packed_end) : packed_end},
          .sinks = {n_past, min(n_after, policy.sinks)},
          .window = {max(n_past, policy.sinks + packed_end), n_after}};
}

// What a bulk block stores of the part's sequence: rows begin .. end - 1 of the step.
__device__ Stored in_bulk(const StorePart& part, int begin, int end) {
  const WindowPolicy& policy = part.side().policy;
  const int n_past = part.sequence.n_past;
  const int n_after = n_past + part.sequence.n_new;
  const int row_0 = n_past - part.sequence.first_row;  // the token that row 0 would be
  if (policy.keeps_all()) return {.window = {max(row_0 + begin, n_past), min(row_0 + end, n_after)}};
  const int u_0 = row_0 - policy.sinks;
  const int unit = part.side().unit;
  return {.packed = {round_up(max(u_0 + begin, max(n_past - policy.sinks, 0)), unit),
                     min(round_up(max(u_0 + end, 0), unit), static_cast<int>(policy.n_packed(n_after)))}};
}

template <typename T>
__global__ __launch_bounds__(kStoreThreads, 8) void store_kv_kernel(const __grid_constant__ StoreProblem problem) {
  const int n_heads = problem.cache.layout.n_kv_heads;
  const int n_edge = problem.keys.edge_blocks + problem.values.edge_blocks;
  const bool edge = static_cast<int>(blockIdx.x) < n_edge;
  auto x = static_cast<int>(blockIdx.x) - (edge ? 0 : n_edge);
  StorePart part{problem, Side::kValues, 0, 1, {}};
  int b = 0;
  int begin = 0;
  if (edge) {
    // Values first: while decoding they take longer, but for a step in 128.
    if (x >= problem.values.edge_blocks) {
      part.side_kind = Side::kKeys;
      x -= problem.values.edge_blocks;
    }
    const int heads = part.side().edge_heads;
    const int blocks_per_sequence = round_up(n_heads, heads) / heads;
    part.head = x % blocks_per_sequence * heads;
    part.n_heads = min(heads, n_heads - part.head);
    b = x / blocks_per_sequence;
  } else {
    part.head = x % n_heads;
    part.side_kind = x / n_heads % 2 == 0 ? Side::kKeys : Side::kValues;
    begin = x / n_heads / 2 * kBulkRows;
    b = last_at_most(problem.n_sequences, begin, [&](int i) { return problem.seq_begin[i]; });
  }
  do {
    part.sequence = sequence_rows(problem.cache, problem.seq_begin, b);
    if (part.sequence.n_new > 0) {
      const Stored stored = edge ? at_the_edge(part) : in_bulk(part, begin, begin + kBulkRows);
      pack<T>(part, stored.packed);
      keep(part, stored.sinks, stored.window);
    }
  } while (!edge && ++b < problem.n_sequences && problem.seq_begin[b] < begin + kBulkRows);
}

// ---- The host's side ----

void require_supported_side(const char* name, int bits, int group, const WindowPolicy& policy) {
  if (bits != 0 && !format::is_packed_width(bits)) {
    fail(ErrorCode::kUnsupported, "{} of {} bits: the GPU stores 2, 4, 8 or 16 bits", name, bits);
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

// Heads of an edge block of the keys: one, so that the heads of a flush are spread over the device, and up to four
// where there are blocks in plenty.
int edge_heads_of_keys(int64_t n_heads_of_all) {
  constexpr int64_t kPlenty = 2048;
  int heads = 1;
  while (heads < 4 && n_heads_of_all / (2 * heads) >= kPlenty) heads *= 2;
  return heads;
}
constexpr int kEdgeHeadsOfValues = 4;  // a decoding step packs one row a head: a warp's work

StoreSide key_problem(const StoreKvArgs& args, int n_sequences) {
  const PageLayout& layout = args.cache.layout;
  const int heads = edge_heads_of_keys(int64_t{n_sequences} * layout.n_kv_heads);
  const int exclusive = layout.key_bits == 0 ? 1 : exclusive_tokens(layout.head_dim, layout.key_bits);
  return {.new_rows = rows_view(args.new_keys),
          .policy = args.cache.key_policy,
          .bits = layout.key_bits,
          .group = layout.key_group,
          .unit = std::max(exclusive, layout.key_group),
          .codes = static_cast<int>(layout.key_codes()),
          .scales = static_cast<int>(layout.key_scales()),
          .zeros = static_cast<int>(layout.key_zeros()),
          .edge_heads = heads,
          .edge_blocks = n_sequences * (round_up(layout.n_kv_heads, heads) / heads)};
}

StoreSide value_problem(const StoreKvArgs& args, int n_sequences) {
  const PageLayout& layout = args.cache.layout;
  const int heads = kEdgeHeadsOfValues;
  return {.new_rows = rows_view(args.new_values),
          .policy = args.cache.value_policy,
          .bits = layout.value_bits,
          .group = layout.value_group,
          .unit = layout.value_bits == 0 ? 1 : exclusive_tokens(layout.head_dim, layout.value_bits),
          .codes = static_cast<int>(layout.value_codes()),
          .scales = static_cast<int>(layout.value_scales()),
          .zeros = static_cast<int>(layout.value_zeros()),
          .edge_heads = heads,
          .edge_blocks = n_sequences * (round_up(layout.n_kv_heads, heads) / heads)};
}

}  // namespace

void store_kv(const StoreKvArgs& args, cudaStream_t stream) {
  require_supported(args);
  const auto seq_begin = args.seq_begin.as<const int32_t, 1>();
  const int64_t n_rows = args.new_keys.shape[0];
  const auto n_sequences = static_cast<int>(seq_begin.shape[0] - 1);
  if (n_rows == 0 || n_sequences < 1) return;
  const PageLayout& layout = args.cache.layout;
  const StoreProblem problem{.cache = args.cache,
                             .keys = key_problem(args, n_sequences),
                             .values = value_problem(args, n_sequences),
                             .seq_begin = seq_begin.data,
                             .n_sequences = n_sequences,
                             .block_bytes = static_cast<int>(layout.block_bytes()),
                             .bulk = n_rows > n_sequences};
  const int64_t bulk_blocks = problem.bulk ? (n_rows + kBulkRows - 1) / kBulkRows * 2 * layout.n_kv_heads : 0;
  const auto n_blocks = static_cast<unsigned>(problem.keys.edge_blocks + problem.values.edge_blocks + bulk_blocks);
  const auto kernel = args.cache.window_dtype == DType::kF16 ? store_kv_kernel<Half> : store_kv_kernel<BFloat16>;
  launch("store_kv", kernel, n_blocks, kStoreThreads, pack_bytes(layout.head_dim), stream, problem);
}

}  // namespace kivi::cuda
