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
//
// Packing goes tile by tile: up to 128 rows (some tokens of a page, of one or several heads).
//   shared memory   pointers to the rows (1 KiB), codes as bytes [row][head_dim + 4] (17 KiB for head_dim 128)
//   keys            a warp has 32 channels of a group: a lane two channels and half the tokens, read twice
//   values          a warp has a row: a lane four channels
//   words           a thread gathers a word's codes from shared memory
// Bytes: 2 per number read, and its share of the page written; a row that stays is 2 + 2 per number.
#include <algorithm>
#include <type_traits>

#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/kernels/fragment_words.h"
#include "backend/cuda/kernels/kv_rows.cuh"
#include "backend/cuda/kernels/store.h"
#include "format/quantise.h"

namespace kivi::cuda {
namespace {

using format::GroupParams;
using format::GroupRange;
using format::kPageTokens;
using format::KvBatchView;
using format::PageLayout;
using format::WindowPolicy;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kTileRows = kPageTokens;
constexpr int kBulkRows = 128;
static_assert(kTileRows <= kThreads);

// One side (keys or values) of the cache.
struct SideProblem {
  RowsView new_rows;
  WindowPolicy policy;
  int bits;
  int group;
  int unit;   // tokens
  int codes;  // bytes from the start of a block
  int scales;
  int zeros;
  int edge_heads;  // KV heads of an edge block
  int edge_blocks;
};

struct Problem {
  KvBatchView cache;
  SideProblem keys;
  SideProblem values;
  const int32_t* seq_begin;
  int n_sequences;
  int block_bytes;
  bool bulk;  // whether there are bulk blocks, after the edge blocks of the values and those of the keys
};

// What a block works on: one side of a sequence and n_heads KV heads from `head` on.
struct Part {
  const Problem& problem;
  Side side_kind;
  int head;
  int n_heads;
  SequenceRows sequence;

  __device__ const PageLayout& layout() const { return problem.cache.layout; }
  __device__ const SideProblem& side() const { return side_kind == Side::kKeys ? problem.keys : problem.values; }
  __device__ Timeline timeline(int h) const { return {side_kind, problem.cache, side().new_rows, sequence, h}; }
};

struct Range {
  int begin;
  int end;
  __device__ int size() const { return max(end - begin, 0); }
};

// What of a part is stored: tokens to pack, counted from the end of the sinks, and new tokens to keep in 16 bits.
struct Stored {
  Range packed;
  Range sinks;
  Range window;
};

__host__ __device__ constexpr int round_up(int x, int unit) {
  return (x + unit - 1) / unit * unit;
}

// Rows that are packed together: tokens first .. end - 1 of a page, of n_heads heads; row = head, then token.
struct Tile {
  const std::byte** rows;  // where their 16-bit numbers are
  uint8_t* codes;          // [row][pitch]
  int pitch;               // four more than head_dim, so that words of several rows come from several banks
  std::byte* block;        // of the first head
  int block_bytes;
  int first;
  int end;
  int n_heads;

  __device__ int n_tokens() const { return end - first; }
  __device__ int n_rows() const { return n_heads * n_tokens(); }
};

constexpr int code_pitch(int head_dim) {
  return head_dim + 4;
}
constexpr size_t tile_bytes(int head_dim) {
  return kTileRows * (sizeof(void*) + code_pitch(head_dim));
}

// ---- Quantising ----

// n consecutive 16-bit numbers, n 2 or 4, as floats.
template <typename T, int n>
__device__ void load_numbers(const std::byte* from, float (&x)[n]) {
  using Raw = std::conditional_t<n == 2, uint32_t, uint2>;
  const Raw raw = *reinterpret_cast<const Raw*>(from);
  const auto* words = reinterpret_cast<const uint32_t*>(&raw);
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] = to_float(T{static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)))});
}

__device__ void add(GroupRange& range, float x) {
  range.min = fminf(range.min, x);
  range.max = fmaxf(range.max, x);
}

// The range of this lane's numbers and of those of the lane `distance` away.
__device__ GroupRange merge(const GroupRange& range, int distance) {
  return {fminf(range.min, __shfl_xor_sync(~0U, range.min, distance)),
          fmaxf(range.max, __shfl_xor_sync(~0U, range.max, distance))};
}

__device__ void store_params(const SideProblem& side, std::byte* block, int64_t index, GroupParams params) {
  reinterpret_cast<Half*>(block + side.scales)[index] = params.scale;
  reinterpret_cast<Half*>(block + side.zeros)[index] = params.zero;
}

template <typename T>
__device__ void quantise_keys(const Part& part, const Tile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int bits = part.side().bits;
  const int group_tokens = part.side().group;
  const int jobs_per_group = part.layout().head_dim / 32;
  const int groups_per_head = tile.n_tokens() / group_tokens;
  const int n_jobs = tile.n_heads * groups_per_head * jobs_per_group;
#pragma unroll 1
  for (int job = static_cast<int>(threadIdx.x) / 32; job < n_jobs; job += kWarps) {
    const int group = job / jobs_per_group;
    const int channel = job % jobs_per_group * 32 + lane % 16 * 2;
    const int first_row = group * group_tokens + lane / 16 * (group_tokens / 2);
    GroupRange range[2];
#pragma unroll 8
    for (int t = 0; t < group_tokens / 2; ++t) {
      float x[2];
      load_numbers<T>(tile.rows[first_row + t] + channel * 2, x);
      add(range[0], x[0]);
      add(range[1], x[1]);
    }
    float scale[2];
    float zero[2];
    std::byte* block = tile.block + group / groups_per_head * tile.block_bytes;
    const int token = tile.first + group % groups_per_head * group_tokens;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const GroupParams params = format::group_params(merge(range[i], 16), bits);
      if (lane < 16) store_params(part.side(), block, part.layout().key_param(token, channel + i), params);
      scale[i] = to_float(params.scale);
      zero[i] = to_float(params.zero);
    }
#pragma unroll 4
    for (int t = 0; t < group_tokens / 2; ++t) {
      float x[2];
      load_numbers<T>(tile.rows[first_row + t] + channel * 2, x);
      const uint32_t codes =
          format::quantise(x[0], scale[0], zero[0], bits) | format::quantise(x[1], scale[1], zero[1], bits) << 8;
      *reinterpret_cast<uint16_t*>(tile.codes + (first_row + t) * tile.pitch + channel) = static_cast<uint16_t>(codes);
    }
  }
}

template <typename T>
__device__ void quantise_values(const Part& part, const Tile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int bits = part.side().bits;
  const int head_dim = part.layout().head_dim;
  const int lanes_per_group = part.side().group / 4;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / 32; row < tile.n_rows(); row += kWarps) {
    const int token = tile.first + row % tile.n_tokens();
    std::byte* block = tile.block + row / tile.n_tokens() * tile.block_bytes;
#pragma unroll 1
    for (int channel = 4 * lane; channel - 4 * lane < head_dim; channel += 128) {
      const bool inside = channel < head_dim;
      float x[4] = {};
      GroupRange range;
      if (inside) {
        load_numbers<T>(tile.rows[row] + channel * 2, x);
#pragma unroll
        for (int i = 0; i < 4; ++i) add(range, x[i]);
      }
#pragma unroll 1
      for (int distance = 1; distance < lanes_per_group; distance *= 2) range = merge(range, distance);
      if (!inside) continue;
      const GroupParams params = format::group_params(range, bits);
      if (lane % lanes_per_group == 0) {
        store_params(part.side(), block, part.layout().value_param(token, channel), params);
      }
      uint32_t codes = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        codes |= format::quantise(x[i], to_float(params.scale), to_float(params.zero), bits) << (8 * i);
      }
      *reinterpret_cast<uint32_t*>(tile.codes + row * tile.pitch + channel) = codes;
    }
  }
}

// ---- Packing ----

template <int Bits>
__device__ void write_words(const Part& part, const Tile& tile) {
  const int head_dim = part.layout().head_dim;
  const int exclusive = exclusive_tokens(head_dim, Bits);
  const int begin = words_of_tokens(tile.first / exclusive * exclusive, head_dim, Bits);
  const int end = words_of_tokens(round_up(tile.end, exclusive), head_dim, Bits);
  // Decoding packs one value a step: only the words that have it are looked at.
  const bool one_value = part.side_kind == Side::kValues && tile.n_tokens() == 1;
  const int n_words = one_value ? (end - begin) / 8 : end - begin;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < tile.n_heads * n_words; i += kThreads) {
    const int head = i / n_words;
    const int word = begin + (one_value ? word_of_value(tile.first, i % n_words) : i % n_words);
    const uint8_t* codes = tile.codes + (head * tile.n_tokens() - tile.first) * tile.pitch;
    const auto code_of = [&](int token, int channel) { return uint32_t{codes[token * tile.pitch + channel]}; };
    const WordUpdate update = part.side_kind == Side::kKeys
                                  ? key_word<Bits>(word, head_dim, tile.first, tile.end, code_of)
                                  : value_word<Bits>(word, head_dim, tile.first, tile.end, code_of);
    if (update.mask == 0) continue;
    auto* words = reinterpret_cast<uint32_t*>(tile.block + head * tile.block_bytes + part.side().codes);
    words[word] = update.mask == ~0U ? update.codes : update.apply(words[word]);
  }
}

template <typename T>
__device__ void pack_tile(const Part& part, const Tile& tile) {
  if (part.side_kind == Side::kKeys) {
    quantise_keys<T>(part, tile);
  } else {
    quantise_values<T>(part, tile);
  }
  __syncthreads();
  switch (part.side().bits) {
    case 2:
      return write_words<2>(part, tile);
    case 4:
      return write_words<4>(part, tile);
    default:
      return write_words<8>(part, tile);
  }
}

// Packs tokens. On return no thread of the block reads the window any more.
template <typename T>
__device__ void pack(const Part& part, Range tokens) {
  Tile tile;
  tile.rows = reinterpret_cast<const std::byte**>(dynamic_shared());
  tile.codes = reinterpret_cast<uint8_t*>(tile.rows + kTileRows);
  tile.pitch = code_pitch(part.layout().head_dim);
  tile.block_bytes = part.problem.block_bytes;
#pragma unroll 1
  for (int u = tokens.begin; u < tokens.end; u += tile.n_tokens()) {
    tile.first = u % kPageTokens;
    tile.end = min(kPageTokens, tile.first + tokens.end - u);
    const int heads_at_once = min(part.n_heads, kTileRows / tile.n_tokens());
#pragma unroll 1
    for (int h = 0; h < part.n_heads; h += heads_at_once) {
      tile.n_heads = min(heads_at_once, part.n_heads - h);
      tile.block = part.timeline(part.head + h).block(u);
      const auto row = static_cast<int>(threadIdx.x);
      if (row < tile.n_rows()) {
        const int token = part.side().policy.sinks + u + row % tile.n_tokens();
        tile.rows[row] = part.timeline(part.head + h + row / tile.n_tokens()).row(token);
      }
      __syncthreads();
      pack_tile<T>(part, tile);
    }
  }
}

// Copies new tokens into the window. A warp has a row at a time, and two under way.
__device__ void keep(const Part& part, Range sinks, Range window) {
  constexpr int kRowsUnderWay = 2;
  const int at = static_cast<int>(threadIdx.x) % 32 * 16;  // rows have at most 512 bytes
  const int n_tokens = sinks.size() + window.size();
  const int n_rows = n_tokens * part.n_heads;
  if (at >= part.layout().head_dim * 2) return;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) / 32; first < n_rows; first += kRowsUnderWay * kWarps) {
    uint4 numbers[kRowsUnderWay];
    std::byte* to[kRowsUnderWay];
#pragma unroll
    for (int i = 0; i < kRowsUnderWay; ++i) {
      const int row = first + i * kWarps;
      if (row >= n_rows) continue;
      const int n = row % n_tokens;
      const int token = n < sinks.size() ? sinks.begin + n : window.begin + n - sinks.size();
      const Timeline timeline = part.timeline(part.head + row / n_tokens);
      numbers[i] = *reinterpret_cast<const uint4*>(timeline.new_row(token) + at);
      to[i] = timeline.window_row(token) + at;
    }
#pragma unroll
    for (int i = 0; i < kRowsUnderWay; ++i) {
      if (first + i * kWarps < n_rows) *reinterpret_cast<uint4*>(to[i]) = numbers[i];
    }
  }
}

// ---- The two kinds of blocks ----

// What an edge block stores.
__device__ Stored at_the_edge(const Part& part) {
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
__device__ Stored in_bulk(const Part& part, int begin, int end) {
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
__global__ __launch_bounds__(kThreads, 8) void store_kv_kernel(const __grid_constant__ Problem problem) {
  const int n_heads = problem.cache.layout.n_kv_heads;
  const int n_edge = problem.keys.edge_blocks + problem.values.edge_blocks;
  const bool edge = static_cast<int>(blockIdx.x) < n_edge;
  auto x = static_cast<int>(blockIdx.x) - (edge ? 0 : n_edge);
  Part part{problem, Side::kValues, 0, 1, {}};
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

SideProblem key_problem(const StoreKvArgs& args, int n_sequences) {
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

SideProblem value_problem(const StoreKvArgs& args, int n_sequences) {
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
  const Problem problem{.cache = args.cache,
                        .keys = key_problem(args, n_sequences),
                        .values = value_problem(args, n_sequences),
                        .seq_begin = seq_begin.data,
                        .n_sequences = n_sequences,
                        .block_bytes = static_cast<int>(layout.block_bytes()),
                        .bulk = n_rows > n_sequences};
  const int64_t bulk_blocks = problem.bulk ? (n_rows + kBulkRows - 1) / kBulkRows * 2 * layout.n_kv_heads : 0;
  const auto n_blocks = static_cast<unsigned>(problem.keys.edge_blocks + problem.values.edge_blocks + bulk_blocks);
  const auto kernel = args.cache.window_dtype == DType::kF16 ? store_kv_kernel<Half> : store_kv_kernel<BFloat16>;
  launch("store_kv", kernel, n_blocks, kThreads, tile_bytes(layout.head_dim), stream, problem);
}

}  // namespace kivi::cuda
