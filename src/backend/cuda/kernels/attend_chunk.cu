// Attention of several new tokens to the stored ones and, causally, to themselves: FlashAttention-2 on mma.sync.
//
// A block has one KV head of one sequence and 128 query rows: row m is query head m % g of new token m / g, where g
// query heads share the KV head, so that keys and values are read once for all of them. Warps have 32 rows each (16 for
// head_dim 256). Blocks of a sequence's last rows see the most tokens and come first.
//   shared memory   128 query rows; one tile of 64 keys and one of 64 values; half a packed page as it is stored
//   a thread        of its warp's rows: output and scores in the layout of the product, maximum and sum of each row
// Tiles of keys and values come in turn: the values while the scores are computed, the next keys while the output is.
// Packed codes become 16-bit rows of the tile (kv_tiles.cuh); from there on they are like all others.
// Bytes: each block reads the keys and values it sees once, 4 * head_dim a token where they are in 16 bits.
#include <algorithm>

#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/attend_chunk.cuh"
#include "backend/cuda/kernels/attend_chunk.h"

namespace kivi::cuda {
namespace {

using format::KvBatchView;
using format::PageLayout;

constexpr float kLog2E = 1.4426950408889634F;

struct Problem {
  KvBatchView cache;
  RowsView q;
  SideTiles keys;
  SideTiles values;
  RowsView out;
  const int32_t* seq_begin;
  int n_sequences;
  int n_slots;       // blocks of a KV head
  int heads_per_kv;  // g
  float scale_log2;  // softmax_scale / ln 2: exponentials are powers of 2
  float cap_log2;    // score_cap / ln 2; 0: none
};

// The query rows of a block: `first` and on, of the n_rows that the sequence and the KV head have.
struct QueryRows {
  SequenceRows sequence;
  int kv_head;
  int first;
  int n_rows;
  int heads_per_kv;

  // Row m's place in q and out.
  __device__ std::byte* at(const RowsView& rows, int m) const {
    return rows.at(sequence.first_row + m / heads_per_kv, kv_head * heads_per_kv + m % heads_per_kv);
  }
  // The newest token that row m sees.
  __device__ int newest(int m) const { return sequence.n_past + min(m, n_rows - 1) / heads_per_kv; }
};

// Slots are dealt to sequences by their rows alone, so that a block finds its sequence without a sum over those before:
// sequence b has slots begin(b) .. begin(b + 1) - 1, at least as many as it has tiles of kQueryRows.
__device__ int begin_slot(const Problem& problem, int b) {
  return problem.seq_begin[b] * problem.heads_per_kv / kQueryRows + b;
}

// n_rows is 0 for a slot without rows.
__device__ QueryRows rows_of_block(const Problem& problem) {
  const int n_kv_heads = problem.cache.layout.n_kv_heads;
  const auto x = static_cast<int>(blockIdx.x);
  const int slot = problem.n_slots - 1 - x / n_kv_heads;
  const int b = last_at_most(problem.n_sequences, slot, [&](int i) { return begin_slot(problem, i); });
  QueryRows rows{sequence_rows(problem.cache, problem.seq_begin, b), x % n_kv_heads, 0, 0, problem.heads_per_kv};
  rows.first = (slot - begin_slot(problem, b)) * kQueryRows;
  rows.n_rows = rows.sequence.n_new * problem.heads_per_kv;
  if (rows.sequence.n_new <= 1 || rows.first < 0 || rows.first >= rows.n_rows) rows.n_rows = 0;
  return rows;
}

// Starts to bring the query rows; those that do not exist become zero.
template <typename C>
__device__ void start_queries(const Problem& problem, const QueryRows& rows, typename C::Number* q) {
  constexpr int kChunks = C::kHeadDim / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kQueryRows * kChunks; i += C::kThreads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const int m = rows.first + row;
    const bool inside = m < rows.n_rows;
    cp_async_16(q + row * C::kPitch + chunk * 8, rows.at(problem.q, inside ? m : 0) + chunk * 16, inside);
  }
}

// Hides tokens that a row does not see: newer ones, those that it has slid past, and those before token 0. The tile
// begins with token `first`, the warp's rows with row m.
template <typename C>
__device__ void hide(const KvBatchView& cache, const QueryRows& rows, int m, int first, typename C::Scores& scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < C::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int newest = rows.newest(m + 16 * i + 8 * h + lane / 4);
      const auto oldest = static_cast<int>(cache.first_seen(newest));
#pragma unroll
      for (int n = 0; n < kTileTokens / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int token = first + 8 * n + lane % 4 * 2 + e;
          if (token < oldest || token > newest) scores[i][n][2 * h + e] = -INFINITY;
        }
      }
    }
  }
}

// Divides by the sums and writes the warp's rows, by way of its rows of shared memory (`rows_shared`), so that whole
// rows go out 16 bytes a lane. `m`: the warp's first row.
template <typename C>
__device__ void write_rows(const Problem& problem, const QueryRows& rows, int m, const Softmax<C>& softmax,
                           const typename C::Output& out, typename C::Number* rows_shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < C::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float factor = 1.0F / quad_sum(softmax.sum[i][h]);
      auto* row = rows_shared + (16 * i + 8 * h + lane / 4) * C::kPitch + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < C::kHeadDim / 8; ++n) {
        *reinterpret_cast<uint32_t*>(row + 8 * n) =
            pack_pair<typename C::Number>(out[i][n][2 * h] * factor, out[i][n][2 * h + 1] * factor);
      }
    }
  }
  __syncwarp();
  constexpr int kChunks = C::kHeadDim / 8;
#pragma unroll 4
  for (int i = lane; i < C::kWarpRows * kChunks; i += 32) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    if (m + row >= rows.n_rows) break;
    *reinterpret_cast<uint4*>(rows.at(problem.out, m + row) + chunk * 16) =
        *reinterpret_cast<const uint4*>(rows_shared + row * C::kPitch + chunk * 8);
  }
}

template <typename C>
__global__ __launch_bounds__(C::kThreads,
                             C::kBlocksPerSm) void attend_chunk_kernel(const __grid_constant__ Problem problem) {
  using T = typename C::Number;
  const QueryRows rows = rows_of_block(problem);
  if (rows.n_rows == 0) return;
  T* const q = reinterpret_cast<T*>(dynamic_shared());
  T* const key_tile = q + kQueryRows * C::kPitch;
  T* const value_tile = key_tile + kTileTokens * C::kPitch;
  std::byte* const staged = dynamic_shared() + C::kStagedAt;
  using Loader = TileLoader<T, C::kHeadDim, C::kThreads>;
  const Loader keys(Side::kKeys, problem.cache, problem.keys, rows.sequence, rows.kv_head);
  const Loader values(Side::kValues, problem.cache, problem.values, rows.sequence, rows.kv_head);

  const int warp_row = static_cast<int>(threadIdx.x) / 32 * C::kWarpRows;
  const int warp_m = rows.first + warp_row;
  Softmax<C> softmax;
  typename C::Output out = {};

  // Where something is packed, tiles are halves of pages, which count from the end of the sinks: the first tile then
  // may begin before token 0.
  const int origin = keys.packs() || values.packs() ? problem.keys.sinks : 0;
  const int end = rows.newest(rows.first + kQueryRows - 1) + 1;
  const int seen_by_all = rows.newest(warp_m) + 1;  // tokens that every row of the warp sees
  const bool idle = warp_m >= rows.n_rows;          // the warp only helps to bring tiles
  int first = origin - (origin + kTileTokens - 1) / kTileTokens * kTileTokens;
  // In a layer that slides: the first token that a row of the block sees, and that all of the warp see.
  const auto oldest = static_cast<int>(problem.cache.first_seen(rows.newest(rows.first)));
  const auto seen_from = static_cast<int>(problem.cache.first_seen(rows.newest(warp_m + C::kWarpRows - 1)));
  first += (oldest - first) / kTileTokens * kTileTokens;

  start_queries<C>(problem, rows, q);
  keys.start(first, oldest, key_tile, staged);
  for (; first < end; first += kTileTokens) {
    cp_async_wait<0>();
    __syncthreads();  // the keys are there, and nobody needs the last values any more
    keys.finish(first, key_tile, staged);
    values.start(first, oldest, value_tile, staged);
    typename C::Scores scores;
    if (!idle) multiply_keys<C>(q + warp_row * C::kPitch, key_tile, scores);
    cp_async_wait<0>();
    __syncthreads();  // the values are there, and nobody needs these keys any more
    values.finish(first, value_tile, staged);
    if (first + kTileTokens < end) keys.start(first + kTileTokens, oldest, key_tile, staged);
    if (idle) continue;
    float scale_log2 = problem.scale_log2;
    if (problem.cap_log2 > 0.0F) {
      cap_scores<C>(scale_log2, problem.cap_log2, scores);
      scale_log2 = 1.0F;
    }
    if (first < seen_from || first + kTileTokens > seen_by_all) {
      hide<C>(problem.cache, rows, warp_m, first, scores);
    }
    softmax_step<C>(scale_log2, scores, softmax, out);
    multiply_values<C>(scores, value_tile, out);
  }
  write_rows<C>(problem, rows, warp_m, softmax, out, q + warp_row * C::kPitch);
}

// ---- The host's side ----

struct Kernel {
  DType dtype;
  int head_dim;
  void (*function)(Problem);
  int n_threads;
  size_t shared_bytes;  // without what is staged
};

template <typename T, int kHeadDim>
constexpr Kernel kernel_of() {
  using C = ChunkConfig<T, kHeadDim>;
  return {kDTypeOf<T>, kHeadDim, attend_chunk_kernel<C>, C::kThreads, C::kStagedAt};
}

constexpr Kernel kKernels[] = {kernel_of<Half, 64>(),      kernel_of<Half, 96>(),     kernel_of<Half, 128>(),
                               kernel_of<Half, 256>(),     kernel_of<BFloat16, 64>(), kernel_of<BFloat16, 96>(),
                               kernel_of<BFloat16, 128>(), kernel_of<BFloat16, 256>()};

bool is_side_supported(int bits, int group) {
  return bits == 0 || (format::is_packed_width(bits) && (group == 32 || group == 64 || group == 128));
}

const Kernel& find_kernel(const AttendArgs& args) {
  const PageLayout& layout = args.cache.layout;
  if (is_side_supported(layout.key_bits, layout.key_group) &&
      is_side_supported(layout.value_bits, layout.value_group)) {
    for (const Kernel& kernel : kKernels) {
      if (kernel.dtype == args.q.dtype && kernel.dtype == args.cache.window_dtype &&
          kernel.head_dim == layout.head_dim) {
        return kernel;
      }
    }
  }
  fail(ErrorCode::kUnsupported,
       "attention with q {}, window {}, head_dim {}, keys of {} bits in groups of {}, values of {} in {}: the GPU has "
       "f16 or bf16 for both, head_dim 64, 96, 128 and 256, 2, 3, 4, 8 or 16 bits, groups of 32, 64 and 128",
       name(args.q.dtype), name(args.cache.window_dtype), layout.head_dim, layout.key_bits, layout.key_group,
       layout.value_bits, layout.value_group);
}

void require_rows(const char* what, const AnyView& rows, DType dtype, int64_t n, int64_t heads, int64_t head_dim) {
  if (rows.rank != 3 || rows.dtype != dtype || rows.shape[0] != n || rows.shape[1] != heads ||
      rows.shape[2] != head_dim) {
    fail(ErrorCode::kInternal, "attend: {} is not {} [{}, {}, {}]", what, name(dtype), n, heads, head_dim);
  }
  if (reinterpret_cast<uintptr_t>(rows.data) % 16 != 0 || rows.stride[0] % 8 != 0 || rows.stride[1] % 8 != 0) {
    fail(ErrorCode::kInternal, "attend: rows of {} must begin at multiples of 16 bytes", what);
  }
}

void require_consistent(const AttendArgs& args) {
  const PageLayout& layout = args.cache.layout;
  const DType dtype = args.cache.window_dtype;
  const int64_t n = args.q.shape[0];
  const int64_t heads = args.q.shape[1];
  require_rows("q", args.q, dtype, n, heads, layout.head_dim);
  require_rows("out", args.out, dtype, n, heads, layout.head_dim);
  require_rows("new_keys", args.new_keys, dtype, n, layout.n_kv_heads, layout.head_dim);
  require_rows("new_values", args.new_values, dtype, n, layout.n_kv_heads, layout.head_dim);
  if (heads % layout.n_kv_heads != 0) {
    fail(ErrorCode::kInternal, "attend: {} query heads, {} KV heads", heads, layout.n_kv_heads);
  }
  if ((layout.key_bits != 0 || layout.value_bits != 0) && layout.order != format::CodeOrder::kFragment) {
    fail(ErrorCode::kInternal, "attend: pages in linear order; the GPU's are in fragment order");
  }
  require_aligned_pages(args.cache);
  if (!(args.softmax_scale > 0.0F)) {
    fail(ErrorCode::kUnsupported, "softmax_scale {}: must be positive", args.softmax_scale);
  }
}

SideTiles key_tiles(const AttendArgs& args) {
  const PageLayout& layout = args.cache.layout;
  SideTiles tiles{
      rows_view(args.new_keys), layout.key_bits, layout.params, layout.key_group, args.cache.key_policy.sinks, {}};
  for (int half = 0; layout.key_bits != 0 && half < 2; ++half) tiles.halves[half] = key_half_page(layout, half);
  return tiles;
}

SideTiles value_tiles(const AttendArgs& args) {
  const PageLayout& layout = args.cache.layout;
  SideTiles tiles{rows_view(args.new_values),
                  layout.value_bits,
                  layout.params,
                  layout.value_group,
                  args.cache.value_policy.sinks,
                  {}};
  for (int half = 0; layout.value_bits != 0 && half < 2; ++half) tiles.halves[half] = value_half_page(layout, half);
  return tiles;
}

}  // namespace

void attend_chunk(const AttendArgs& args, cudaStream_t stream) {
  const Kernel& kernel = find_kernel(args);
  require_consistent(args);
  const auto seq_begin = args.seq_begin.as<const int32_t, 1>();
  const int64_t n_sequences = seq_begin.shape[0] - 1;
  const PageLayout& layout = args.cache.layout;
  const int64_t heads_per_kv = args.q.shape[1] / layout.n_kv_heads;
  const int64_t n_slots = args.q.shape[0] * heads_per_kv / kQueryRows + n_sequences;
  if (args.q.shape[0] == 0 || n_sequences < 1) return;
  const Problem problem{.cache = args.cache,
                        .q = rows_view(args.q),
                        .keys = key_tiles(args),
                        .values = value_tiles(args),
                        .out = rows_view(args.out),
                        .seq_begin = seq_begin.data,
                        .n_sequences = static_cast<int>(n_sequences),
                        .n_slots = static_cast<int>(n_slots),
                        .heads_per_kv = static_cast<int>(heads_per_kv),
                        .scale_log2 = args.softmax_scale * kLog2E,
                        .cap_log2 = args.score_cap * kLog2E};
  const int staged_bytes = std::max(problem.keys.halves[0].bytes(), problem.values.halves[0].bytes());
  launch("attend_chunk", kernel.function, static_cast<unsigned>(n_slots * layout.n_kv_heads),
         static_cast<unsigned>(kernel.n_threads), kernel.shared_bytes + staged_bytes, stream, problem);
}

}  // namespace kivi::cuda
