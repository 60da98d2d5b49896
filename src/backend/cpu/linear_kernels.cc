// Two ways to the same bits (linear.h says which):
//   few rows of x   four rows of the weight at a time, each vector decoded once and used for all rows of x at once
//   many            strips of kStripRows rows of the weight are decoded to scratch memory, then multiplied in tiles of
//                   4 rows x kTileTokens tokens held in registers. Columns go in pieces of up to kPieceColumns, so that
//                   the tokens of a tile stay in the first-level cache and the strip in the second; between pieces the
//                   lanes of unfinished sums rest in scratch memory.
// Columns that do not fill a block (F32, F16, BF16 only) are one more block, padded with zeros.
#include <algorithm>

#include "backend/cpu/linear.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/targets.h"
#include "core/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/linear_kernels.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/codec-inl.h"

#if defined(__SANITIZE_ADDRESS__)
#define KIVI_UNROLL
#elif HWY_COMPILER_CLANG
#define KIVI_UNROLL _Pragma("unroll")
#else
#define KIVI_UNROLL _Pragma("GCC unroll 16")
#endif

HWY_BEFORE_NAMESPACE();
namespace kivi::cpu {
namespace HWY_NAMESPACE {

constexpr size_t kRows = 4;  // rows of the weight that share a load of x
constexpr size_t kStripRows = 32;
constexpr size_t kPieceColumns = 1024;
#if HWY_TARGET == HWY_AVX3
constexpr size_t kFewTokens = 4;   // accumulators: kRows * kFewTokens
constexpr size_t kTileTokens = 6;  // kRows * kTileTokens of 32 registers
#elif HWY_TARGET == HWY_AVX2
constexpr size_t kFewTokens = 2;
constexpr size_t kTileTokens = 3;  // of 16 registers
#else
constexpr size_t kFewTokens = 0;  // decoding costs so much more than the scratch memory that one way is enough
constexpr size_t kTileTokens = 3;
#endif

// Sums of the lanes of four vectors: always (((l0 + l2) + (l1 + l3)) of each 128-bit block, then blocks by halves.
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> sum_lanes(F32Vec a, F32Vec b, F32Vec c, F32Vec e) {
  const F32Tag d;
  const hn::Repartition<double, F32Tag> d64;
  const F32Vec ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const F32Vec ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto even = hn::InterleaveLower(d64, hn::BitCast(d64, ab), hn::BitCast(d64, ce));
  const auto odd = hn::InterleaveUpper(d64, hn::BitCast(d64, ab), hn::BitCast(d64, ce));
  const F32Vec blocks = hn::Add(hn::BitCast(d, even), hn::BitCast(d, odd));
#if HWY_TARGET == HWY_AVX3
  const hn::Half<F32Tag> d8;
  const auto halves = hn::Add(hn::LowerHalf(d8, blocks), hn::UpperHalf(d8, blocks));
  const hn::Half<decltype(d8)> d4;
  return hn::Add(hn::LowerHalf(d4, halves), hn::UpperHalf(d4, halves));
#elif HWY_TARGET == HWY_AVX2
  const hn::Half<F32Tag> d4;
  return hn::Add(hn::LowerHalf(d4, blocks), hn::UpperHalf(d4, blocks));
#else
  return blocks;
#endif
}

// Adds bias and what is there, and stores out[token, row .. row + n_rows), n_rows at most 4.
HWY_INLINE void store_sums(const F32Linear& args, int64_t token, int64_t row, int64_t n_rows,
                           hn::Vec<hn::FixedTag<float, 4>> sums) {
  const hn::FixedTag<float, 4> d;
  float* out = args.out.data + token * args.out.stride[0] + row;
  const float* bias = args.bias.data != nullptr ? args.bias.data + row : nullptr;
  if (n_rows == 4) {
    if (bias != nullptr) sums = hn::Add(sums, hn::LoadU(d, bias));
    if (args.accumulate) sums = hn::Add(sums, hn::LoadU(d, out));
    hn::StoreU(sums, d, out);
    return;
  }
  alignas(16) float values[4];
  hn::Store(sums, d, values);
  for (int64_t r = 0; r < n_rows; ++r) {
    float value = values[r];
    if (bias != nullptr) value += bias[r];
    if (args.accumulate) value += out[r];
    out[r] = value;
  }
}

// The rows of a weight as blocks of a codec.
template <class Codec>
struct BlockRows {
  explicit BlockRows(const WeightView& weight)
      : data(reinterpret_cast<const uint8_t*>(weight.data)),
        row_bytes(static_cast<size_t>(kivi::row_bytes(weight.format, weight.cols))),
        n_blocks(static_cast<size_t>(weight.cols) / Codec::kBlockElements),
        n_tail(static_cast<size_t>(weight.cols) % Codec::kBlockElements) {}

  HWY_INLINE const uint8_t* block(size_t row, size_t b) const {
    return data + row * row_bytes + b * Codec::kBlockBytes;
  }
  // A copy of the unfilled block at the end of a row, padded with zeros.
  void copy_tail(size_t row, uint8_t* padded) const {
    std::memset(padded, 0, Codec::kBlockBytes);
    std::memcpy(padded, block(row, n_blocks), n_tail * Codec::kBlockBytes / Codec::kBlockElements);
  }

  const uint8_t* data;
  size_t row_bytes;
  size_t n_blocks;
  size_t n_tail;  // columns in an unfilled block
};

// ---- Few rows of x ----

// The four rows are read side by side, which hides from the processor that memory as a whole is read in order. So while
// block b of them is used, its share of the bytes that come this far behind is asked for.
constexpr size_t kPrefetchBytes = 8192;
template <class Codec>
HWY_INLINE void prefetch_behind(const uint8_t* first_row, size_t b) {
  constexpr size_t kLine = 64;
  const uint8_t* share = first_row + kPrefetchBytes + b * kRows * Codec::kBlockBytes;
  KIVI_UNROLL for (size_t i = 0; i < kRows * Codec::kBlockBytes; i += kLine) hwy::Prefetch(share + i);
}

// n_blocks blocks of four rows of the weight, and what they are multiplied with.
template <size_t kTokens>
struct Span {
  const uint8_t* rows[kRows];
  const float* x[kTokens];
  size_t n_blocks;
};

template <class Codec, size_t kTokens>
HWY_INLINE void dot_span(const Span<kTokens>& span, F32Vec (&sums)[kRows][kTokens]) {
  const F32Tag d;
  Codec codecs[kRows];
  for (size_t b = 0; b < span.n_blocks; ++b) {
    prefetch_behind<Codec>(span.rows[0], b);
    KIVI_UNROLL for (size_t r = 0; r < kRows; ++r) codecs[r].open(span.rows[r] + b * Codec::kBlockBytes);
    for (size_t g = 0; g < Codec::kBlockElements / kGroupElements; ++g) {
      const size_t k = b * Codec::kBlockElements + g * kGroupElements;
      KIVI_UNROLL for (size_t r = 0; r < kRows; ++r) codecs[r].group(g);
      KIVI_UNROLL for (size_t i = 0; i < kGroupElements / kLanes; ++i) {
        F32Vec x[kTokens];
        KIVI_UNROLL for (size_t t = 0; t < kTokens; ++t) x[t] = hn::LoadU(d, span.x[t] + k + i * kLanes);
        KIVI_UNROLL for (size_t r = 0; r < kRows; ++r) {
          const F32Vec w = codecs[r].vector(i);
          KIVI_UNROLL for (size_t t = 0; t < kTokens; ++t) sums[r][t] = hn::MulAdd(w, x[t], sums[r][t]);
        }
      }
    }
  }
}

template <class Codec, size_t kTokens>
void few_tokens(const F32Linear& args, int64_t begin, int64_t end) {
  const BlockRows<Codec> weight(args.weight);
  Span<kTokens> spans[2];  // whole blocks, and the padded one
  alignas(64) float x_tail[kTokens][Codec::kBlockElements] = {};
  alignas(64) uint8_t row_tail[kRows][Codec::kBlockBytes];
  spans[0].n_blocks = weight.n_blocks;
  spans[1].n_blocks = 1;
  for (size_t t = 0; t < kTokens; ++t) {
    spans[0].x[t] = args.x.data + static_cast<int64_t>(t) * args.x.stride[0];
    spans[1].x[t] = x_tail[t];
    std::copy_n(spans[0].x[t] + weight.n_blocks * Codec::kBlockElements, weight.n_tail, x_tail[t]);
  }
  const size_t n_spans = weight.n_tail != 0 ? 2 : 1;
  for (int64_t row = begin; row < end; row += kRows) {
    for (size_t r = 0; r < kRows; ++r) {
      const auto at = static_cast<size_t>(std::min(row + static_cast<int64_t>(r), end - 1));
      spans[0].rows[r] = weight.block(at, 0);
      spans[1].rows[r] = row_tail[r];
      if (n_spans == 2) weight.copy_tail(at, row_tail[r]);
    }
    F32Vec sums[kRows][kTokens];
    KIVI_UNROLL for (size_t r = 0; r < kRows; ++r) {
      KIVI_UNROLL for (size_t t = 0; t < kTokens; ++t) sums[r][t] = hn::Zero(F32Tag());
    }
    for (size_t s = 0; s < n_spans; ++s) dot_span<Codec, kTokens>(spans[s], sums);
    KIVI_UNROLL for (size_t t = 0; t < kTokens; ++t) {
      store_sums(args, static_cast<int64_t>(t), row, std::min<int64_t>(kRows, end - row),
                 sum_lanes(sums[0][t], sums[1][t], sums[2][t], sums[3][t]));
    }
  }
}

// few_tokens<n>, n from 1 to kMost.
template <class Codec, size_t kMost>
void few_tokens_of(int64_t n, const F32Linear& args, int64_t begin, int64_t end) {
  if constexpr (kMost > 0) {
    if (n == static_cast<int64_t>(kMost)) return few_tokens<Codec, kMost>(args, begin, end);
    few_tokens_of<Codec, kMost - 1>(n, args, begin, end);
  }
}

// ---- Many rows of x ----

template <class Codec>
HWY_NOINLINE void decode_blocks(const uint8_t* block, size_t n_blocks, float* out) {
  Codec codec;
  for (size_t b = 0; b < n_blocks; ++b) {
    codec.open(block + b * Codec::kBlockBytes);
    for (size_t g = 0; g < Codec::kBlockElements / kGroupElements; ++g) {
      codec.group(g);
      KIVI_UNROLL for (size_t i = 0; i < kGroupElements / kLanes; ++i, out += kLanes) {
        hn::StoreU(codec.vector(i), F32Tag(), out);
      }
    }
  }
}

// A piece of the columns of a strip: decoded weights [kStripRows, columns], and x [tokens, columns].
struct Piece {
  const float* weight;
  const float* x;
  size_t x_stride;
  size_t columns;  // a multiple of 32
  bool first;
  bool last;
};

// Four rows of the strip times kTokens tokens. `resting` has the lanes of the sums between pieces.
template <size_t kTokens>
HWY_INLINE void dot_tile(const Piece& piece, size_t row, size_t token, float* resting, F32Vec (&sums)[kRows][kTokens]) {
  const F32Tag d;
  KIVI_UNROLL for (size_t r = 0; r < kRows; ++r) {
    KIVI_UNROLL for (size_t t = 0; t < kTokens; ++t) {
      sums[r][t] = piece.first ? hn::Zero(d) : hn::Load(d, resting + (r * kTokens + t) * kLanes);
    }
  }
  const float* HWY_RESTRICT weight = piece.weight + row * piece.columns;
  const float* HWY_RESTRICT x = piece.x + token * piece.x_stride;
  for (size_t k = 0; k < piece.columns; k += kLanes) {
    F32Vec w[kRows];
    KIVI_UNROLL for (size_t r = 0; r < kRows; ++r) w[r] = hn::Load(d, weight + r * piece.columns + k);
    KIVI_UNROLL for (size_t t = 0; t < kTokens; ++t) {
      const F32Vec xt = hn::LoadU(d, x + t * piece.x_stride + k);
      KIVI_UNROLL for (size_t r = 0; r < kRows; ++r) sums[r][t] = hn::MulAdd(w[r], xt, sums[r][t]);
    }
  }
}

// All rows of the strip, rows begin .. end - 1 of the weight, times kTokens tokens.
template <size_t kTokens>
void multiply_tiles(const F32Linear& args, const Piece& piece, int64_t begin, int64_t end, size_t token,
                    float* resting) {
  for (int64_t row = begin; row < end; row += kRows, resting += kRows * kTokens * kLanes) {
    F32Vec sums[kRows][kTokens];
    dot_tile<kTokens>(piece, static_cast<size_t>(row - begin), token, resting, sums);
    KIVI_UNROLL for (size_t t = 0; t < kTokens; ++t) {
      if (piece.last) {
        store_sums(args, static_cast<int64_t>(token + t), row, std::min<int64_t>(kRows, end - row),
                   sum_lanes(sums[0][t], sums[1][t], sums[2][t], sums[3][t]));
      } else {
        KIVI_UNROLL for (size_t r = 0; r < kRows; ++r) {
          hn::Store(sums[r][t], F32Tag(), resting + (r * kTokens + t) * kLanes);
        }
      }
    }
  }
}

// multiply_tiles<n>, n from 1 to kMost.
template <size_t kMost, typename... Args>
void multiply_tiles_of(size_t n, const Args&... args) {
  if constexpr (kMost > 1) {
    if (n < kMost) return multiply_tiles_of<kMost - 1>(n, args...);
  }
  multiply_tiles<kMost>(args...);
}

void multiply_piece(const F32Linear& args, const Piece& piece, int64_t begin, int64_t end, float* resting) {
  const auto n = static_cast<size_t>(args.x.shape[0]);
  const size_t n_tiles = (n + kTileTokens - 1) / kTileTokens;
  for (size_t tile = 0; tile < n_tiles; ++tile) {
    const size_t token = tile * n / n_tiles;
    float* tile_resting = resting + token * kStripRows * kLanes;
    multiply_tiles_of<kTileTokens>((tile + 1) * n / n_tiles - token, args, piece, begin, end, token, tile_resting);
  }
}

// At most kStripRows rows of the weight times all tokens.
template <class Codec>
void multiply_strip(const F32Linear& args, int64_t begin, int64_t end) {
  const BlockRows<Codec> weight(args.weight);
  const auto n_tokens = static_cast<size_t>(args.x.shape[0]);
  const auto x_stride = static_cast<size_t>(args.x.stride[0]);
  const size_t n_whole = weight.n_blocks * Codec::kBlockElements;
  const size_t n_pieces = (n_whole + kPieceColumns - 1) / kPieceColumns;
  const size_t piece_blocks =
      n_pieces != 0 ? (weight.n_blocks + n_pieces - 1) / n_pieces : 0;  // at most kPieceColumns columns

  float* decoded = thread_scratch(kStripRows * kPieceColumns + n_tokens * (kStripRows * kLanes + kGroupElements));
  float* resting = decoded + kStripRows * kPieceColumns;
  float* x_tail = resting + n_tokens * kStripRows * kLanes;

  for (size_t b = 0; b < weight.n_blocks; b += piece_blocks) {
    const size_t n = std::min(piece_blocks, weight.n_blocks - b);
    const size_t columns = n * Codec::kBlockElements;
    for (int64_t row = begin; row < end; ++row) {
      decode_blocks<Codec>(weight.block(static_cast<size_t>(row), b), n,
                           decoded + static_cast<size_t>(row - begin) * columns);
    }
    const bool last = b + n == weight.n_blocks && weight.n_tail == 0;
    multiply_piece(args, {decoded, args.x.data + b * Codec::kBlockElements, x_stride, columns, b == 0, last}, begin,
                   end, resting);
  }
  if (weight.n_tail == 0) return;
  alignas(64) uint8_t block[Codec::kBlockBytes];
  for (int64_t row = begin; row < end; ++row) {
    weight.copy_tail(static_cast<size_t>(row), block);
    decode_blocks<Codec>(block, 1, decoded + static_cast<size_t>(row - begin) * Codec::kBlockElements);
  }
  std::fill_n(x_tail, n_tokens * Codec::kBlockElements, 0.0F);
  for (size_t t = 0; t < n_tokens; ++t) {
    std::copy_n(args.x.data + t * x_stride + n_whole, weight.n_tail, x_tail + t * Codec::kBlockElements);
  }
  multiply_piece(args, {decoded, x_tail, Codec::kBlockElements, Codec::kBlockElements, n_whole == 0, true}, begin, end,
                 resting);
}

// ---- By format ----

struct Rows {
  template <class Codec>
  static void run(const F32Linear& args, int64_t begin, int64_t end) {
    const int64_t n = args.x.shape[0];
    if (n > static_cast<int64_t>(kFewTokens)) {
      for (int64_t row = begin; row < end; row += kStripRows) {
        multiply_strip<Codec>(args, row, std::min<int64_t>(end, row + kStripRows));
      }
      return;
    }
    few_tokens_of<Codec, kFewTokens>(n, args, begin, end);
  }
};

struct DecodeRow {
  template <class Codec>
  static void run(const WeightView& weight, int64_t row, float* out) {
    const BlockRows<Codec> rows(weight);
    decode_blocks<Codec>(rows.block(static_cast<size_t>(row), 0), rows.n_blocks, out);
    if (rows.n_tail == 0) return;
    alignas(64) uint8_t block[Codec::kBlockBytes];
    alignas(64) float values[Codec::kBlockElements];
    rows.copy_tail(static_cast<size_t>(row), block);
    decode_blocks<Codec>(block, 1, values);
    std::copy_n(values, rows.n_tail, out + rows.n_blocks * Codec::kBlockElements);
  }
};

template <class Operation, typename... Args>
void with_codec(WeightFormat format, const Args&... args) {
  switch (format) {
    case WeightFormat::kF32:
      return Operation::template run<CodecF32>(args...);
    case WeightFormat::kF16:
      return Operation::template run<CodecF16<hwy::float16_t>>(args...);
    case WeightFormat::kBF16:
      return Operation::template run<CodecF16<hwy::bfloat16_t>>(args...);
    case WeightFormat::kQ8_0:
      return Operation::template run<CodecQ8_0>(args...);
    case WeightFormat::kQ4_0:
      return Operation::template run<CodecQ4_0>(args...);
    case WeightFormat::kQ4_1:
      return Operation::template run<CodecQ4_1>(args...);
    case WeightFormat::kQ5_0:
      return Operation::template run<CodecQ5_0>(args...);
    case WeightFormat::kQ4_K:
      return Operation::template run<CodecQ4_K>(args...);
    case WeightFormat::kQ5_K:
      return Operation::template run<CodecQ5_K>(args...);
    case WeightFormat::kQ6_K:
      return Operation::template run<CodecQ6_K>(args...);
  }
  fail(ErrorCode::kInternal, "weight format {} has no codec", static_cast<int>(format));
}

void rows(const F32Linear& args, int64_t begin, int64_t end) {
  with_codec<Rows>(args.weight.format, args, begin, end);
}

void decode_row(const WeightView& weight, int64_t row, float* out) {
  with_codec<DecodeRow>(weight.format, weight, row, out);
}

constexpr LinearKernels kLinearKernels{&rows, &decode_row};

}  // namespace HWY_NAMESPACE
}  // namespace kivi::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi::cpu {

const LinearKernels& linear_kernels(Isa isa) {
  KIVI_RETURN_FOR_ISA(isa, kLinearKernels);
}

}  // namespace kivi::cpu
#endif  // HWY_ONCE
