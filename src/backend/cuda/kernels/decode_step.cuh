// What is done with each kind of piece.
#pragma once

#include "backend/cuda/kernels/decode_unit.cuh"
#include "backend/cuda/kernels/score_cap.cuh"
#include "backend/cuda/kernels/vector.cuh"

namespace kivi::cuda {

// Words of codes of a packed step: two tiles of tokens, by tiles of channels. Of 3 bits, the high ones are in registers
// of four tiles of channels at a time.
template <typename Config, int kBits>
struct StepCodes {
  static constexpr int kLowBits = format::low_bits(kBits);
  static constexpr int kPlaces = 16 / kLowBits;
  static constexpr int kWords = 2 * Config::kChannelTiles / kPlaces;
  static constexpr bool kHasHigh = format::has_high_plane(kBits);
  uint4 words[kWords];
  uint32_t high_plane;  // shared address
  uint32_t high[2][kHasHigh ? 4 : 1];

  __device__ explicit StepCodes(uint32_t address) : high_plane(address + kWords * 512 + 8 * Lane().id) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = load_shared_16(address + w * 512 + 16 * Lane().id);
  }
  // To be called for channel tiles in order, before their products.
  __device__ __forceinline__ void enter(int channel_tile) {
    if constexpr (kHasHigh) {
      if (channel_tile % 4 != 0) return;
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int fragment = t * Config::kChannelTiles + channel_tile;
        const uint2 word = load_shared_8(high_plane + fragment / 8 * 4 * format::kHighGroupWords);
        const bool last = fragment % 8 != 0;
#pragma unroll
        for (int r = 0; r < 4; ++r) high[t][r] = four_high_bits(r < 2 ? word.x : word.y, r % 2 == 1, last);
      }
    }
  }
  __device__ __forceinline__ void multiply(float (&d)[4], int token_tile, int channel_tile, uint32_t b0,
                                           uint32_t b1) const {
    const int fragment = token_tile * Config::kChannelTiles + channel_tile;
    const int place = fragment % kPlaces;
    const uint4& word = words[fragment / kPlaces];
    uint4 a = {codes_at<kLowBits>(word.x, place), codes_at<kLowBits>(word.y, place), codes_at<kLowBits>(word.z, place),
               codes_at<kLowBits>(word.w, place)};
    if constexpr (kHasHigh) {
      const uint32_t mask = 0x00040004U << (2 * (place % 4));
      a.x |= high[token_tile][0] & mask;
      a.y |= high[token_tile][1] & mask;
      a.z |= high[token_tile][2] & mask;
      a.w |= high[token_tile][3] & mask;
    }
    mma(d, a.x, a.y, a.z, a.w, b0, b1);
  }
};

// Scores of a packed step, in units of kScoreUnit and without the zeros, which are the same for all tokens.
template <typename Config>
__device__ __forceinline__ void score_packed(const UnitState<Config>& unit, uint32_t piece, StepScores& s) {
  constexpr int kSpanParams = Config::kParamBytes * format::kTileSpan;
  const uint32_t scales = piece + Config::kKeyCodes;
  const Lane lane;
  StepCodes<Config, Config::kKeyBits> codes(piece);
  s = {};
#pragma unroll
  for (int i = 0; i < Config::kChannelSpans; ++i) {
    codes.enter(2 * i);
    const auto params = load_params<Config::kByteParams>(scales + kSpanParams * i, lane.j);
#pragma unroll
    for (int c = 2 * i; c < 2 * i + 2; ++c) {
      const uint2 scale = scales_of(params, c % 2);
      const uint32_t b0 = unit.scaled_q(c, 0, scale.x);
      const uint32_t b1 = unit.scaled_q(c, 1, scale.y);
#pragma unroll
      for (int t = 0; t < 2; ++t) codes.multiply(s[t], t, c, b0, b1);
    }
  }
}

// What the zeros of a packed step add to the scores of heads 2j and 2j + 1.
template <typename Config>
__device__ __forceinline__ void score_zeros(const UnitState<Config>& unit, uint32_t piece, float (&of_heads)[2]) {
  constexpr bool kBytes = Config::kByteParams;
  constexpr int kSpanParams = Config::kParamBytes * format::kTileSpan;
  const uint32_t zeros = piece + Config::kKeyCodes + Config::kKeyParams;
  const Lane lane;
  // Every row of A would be the zeros. As registers lie they are two halves of it, so of the first products half of
  // the rows are of use, and of the second the other half.
  float first[4] = {};
  float second[4] = {};
#pragma unroll
  for (int i = 0; i < Config::kChannelSpans; ++i) {
    const auto params = load_params<kBytes>(zeros + kSpanParams * i, lane.j);
    const uint2 z0 = zeros_of(params, 0);
    const uint2 z1 = zeros_of(params, 1);
    mma(first, z0.x, z0.y, z1.x, z1.y, unit.q_of(2 * i, 0), unit.q_of(2 * i + 1, 0));
    mma(second, z0.x, z0.y, z1.x, z1.y, unit.q_of(2 * i, 1), unit.q_of(2 * i + 1, 1));
  }
  float zero_unit = 1.0F;
  if constexpr (kBytes) {
    const uint32_t halves = load_shared_8(zeros + Config::kKeyParams).x;
    zero_unit = widen(Half{static_cast<uint16_t>(halves)});
  }
  of_heads[0] = (first[0] + second[2]) * zero_unit;
  of_heads[1] = (first[1] + second[3]) * zero_unit;
}

// Adds p V of a packed step, and p itself to the totals. With byte params zeros are a constant times the scales:
// store_unit has it.
template <typename Config>
__device__ __forceinline__ void add_packed_values(UnitState<Config>& unit, const ValueGroups<Config>& groups,
                                                  uint32_t piece, const StepProbabilities& p) {
  const Lane lane;
  const uint32_t values = piece + Config::kPackedValuesAt;
  constexpr bool kBytes = Config::kByteParams;
  const uint32_t scales = values + Config::kValueCodes;
  const int n_groups = groups.count();
  const int zeros_row = (kBytes ? 0 : n_groups) + min(lane.r, n_groups - 1);
  const auto zeros = load_params<kBytes>(scales + zeros_row * Config::kValueParams, lane.j);
  const uint2 z0 = scales_of(zeros, 0);
  const uint2 z1 = scales_of(zeros, 1);
  mma(unit.sums, z0.x, kHalfOnes, z0.y, kHalfOnes, p[0][0], p[0][1]);
  mma(unit.sums, z1.x, kHalfOnes, z1.y, kHalfOnes, p[1][0], p[1][1]);
  StepCodes<Config, Config::kValueBits> codes(values);
  uint32_t b[4];
#pragma unroll
  for (int q = 0; q < Config::kChannelSpans; ++q) {
    codes.enter(2 * q);
    if (groups.begins(q)) {
      const auto params = load_params<kBytes>(scales + groups.of(q) * Config::kValueParams, lane.j);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const uint2 scale = scales_of(params, t);
        b[2 * t] = multiply_halves(p[t][0], scale.x);
        b[2 * t + 1] = multiply_halves(p[t][1], scale.y);
      }
    }
#pragma unroll
    for (int c = 2 * q; c < 2 * q + 2; ++c) {
#pragma unroll
      for (int t = 0; t < 2; ++t) codes.multiply(unit.out[c], t, c, b[2 * t], b[2 * t + 1]);
    }
  }
}

// Scores of the tokens of a page of a step. Rows r and r + 8 are tokens two apart, which have the same swizzle; they
// are what lane row 4 * page + r % 4 has of tile r / 4 in StepScores.
template <DType dtype, typename Config>
__device__ __forceinline__ float4 score_rows(const UnitState<Config>& unit, uint32_t rows) {
  const Lane lane;
  const int token = lane.r % 4 / 2 * 8 + lane.r / 4 * 4 + lane.r % 2;
  const uint32_t row = rows + token * Config::kRowBytes;
  float d[4] = {};
#pragma unroll
  for (int i = 0; i < Config::kChannelSpans; ++i) {
    const uint32_t chunk = row + ((4 * i + lane.j) ^ key_swizzle(token)) * 16;
    const uint4 low = as_halves<dtype>(load_shared_16(chunk));
    const uint4 high = as_halves<dtype>(load_shared_16(chunk + 2 * Config::kRowBytes));
    mma(d, low.x, high.x, low.y, high.y, unit.q_of(2 * i, 0), unit.q_of(2 * i, 1));
    mma(d, low.z, high.z, low.w, high.w, unit.q_of(2 * i + 1, 0), unit.q_of(2 * i + 1, 1));
  }
  return {d[0], d[1], d[2], d[3]};
}

// Adds p V of page `page` of a step. Lane column j has tokens 4j .. 4j + 3 of the page, whose probabilities are those
// of tile j % 2 in lane column 2 * page + j / 2.
template <DType dtype, typename Config>
__device__ __forceinline__ void add_row_values(UnitState<Config>& unit, uint32_t rows, int page,
                                               const StepProbabilities& p) {
  const Lane lane;
  uint32_t b[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int from = 4 * lane.r + 2 * page + lane.j / 2;
    const uint32_t even = __shfl_sync(kAllLanes, p[0][k], from);
    const uint32_t odd = __shfl_sync(kAllLanes, p[1][k], from);
    b[k] = lane.j % 2 == 0 ? even : odd;
  }
  const uint32_t row = rows + 4 * lane.j * Config::kRowBytes + lane.r % 2 * 8;
  constexpr uint32_t kLow = 0x5410;
  constexpr uint32_t kHigh = 0x7632;
#pragma unroll
  for (int q = 0; q < Config::kChannelSpans; ++q) {
    const uint32_t chunk = row + ((4 * q + lane.r / 2) ^ value_swizzle(4 * lane.j)) * 16;
    uint2 v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = as_halves<dtype>(load_shared_8(chunk + k * Config::kRowBytes));
    mma(unit.out[2 * q], __byte_perm(v[0].x, v[1].x, kLow), __byte_perm(v[0].x, v[1].x, kHigh),
        __byte_perm(v[2].x, v[3].x, kLow), __byte_perm(v[2].x, v[3].x, kHigh), b[0], b[1]);
    mma(unit.out[2 * q + 1], __byte_perm(v[0].y, v[1].y, kLow), __byte_perm(v[0].y, v[1].y, kHigh),
        __byte_perm(v[2].y, v[3].y, kLow), __byte_perm(v[2].y, v[3].y, kHigh), b[0], b[1]);
  }
}

// Scores of tokens that do not exist or are not seen: those that are, are begin .. end - 1 of the step.
__device__ __forceinline__ void mask_scores(StepScores& s, int begin, int end) {
  const Lane lane;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const int token = 8 * (lane.r / 2) + 4 * t + lane.r % 2;  // of row r; of row r + 8 two more
    if (token < begin || token >= end) s[t][0] = s[t][1] = -INFINITY;
    if (token + 2 < begin || token + 2 >= end) s[t][2] = s[t][3] = -INFINITY;
  }
}

// What makes scores logarithms to base 2.
struct ScoreLine {
  float factor;
  float of_heads[2];  // added after that, to heads 2j and 2j + 1
};

// Logarithms that are capped; the line becomes the one that leaves them.
__device__ __forceinline__ void cap_scores(StepScores& s, ScoreLine& line, float log2_cap) {
#pragma unroll
  for (auto& tile : s.tiles) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile[i] = capped(fmaf(tile[i], line.factor, line.of_heads[i % 2]), log2_cap);
  }
  line = {1.0F, {}};
}

// Scores become probabilities. Lanes look for a new maximum among their own scores; only if there is one, which is
// rare, they tell each other and bring to it what was summed before.
template <typename Config>
__device__ __forceinline__ void softmax(UnitState<Config>& unit, const StepScores& s, const ScoreLine& line,
                                        StepProbabilities& p) {
  float high[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float highest = fmaxf(fmaxf(s[0][n], s[0][2 + n]), fmaxf(s[1][n], s[1][2 + n]));
    high[n] = fmaf(highest, line.factor, line.of_heads[n]);
  }
  if (__any_sync(kAllLanes, high[0] > unit.maximum[0] || high[1] > unit.maximum[1])) {
    float factor[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float maximum = fmaxf(max_over_rows(high[n]), unit.maximum[n]);
      factor[n] = exp2_approx(unit.maximum[n] - maximum);
      unit.maximum[n] = maximum;
      unit.sums[n] *= factor[n];
      unit.sums[2 + n] *= factor[n];
    }
#pragma unroll
    for (auto& out : unit.out) {
      out[0] *= factor[0];
      out[1] *= factor[1];
      out[2] *= factor[0];
      out[3] *= factor[1];
    }
  }
  const float below[2] = {line.of_heads[0] - unit.maximum[0], line.of_heads[1] - unit.maximum[1]};
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const auto probability = [&](int i) { return exp2_approx(fmaf(s[t][i], line.factor, below[i % 2])); };
    p[t][0] = transpose_8x8(pack_pair<Half>(probability(0), probability(1)));
    p[t][1] = transpose_8x8(pack_pair<Half>(probability(2), probability(3)));
  }
}

// From scores of a step's packed keys to probabilities.
template <typename Config>
__device__ __forceinline__ void take_packed_keys(UnitState<Config>& unit, const Piece& piece, uint32_t address,
                                                 const DecodeArgs& args, StepProbabilities& p) {
  StepScores s;
  ScoreLine line{args.log2_scale / UnitState<Config>::kScoreUnit, {}};
  score_packed(unit, address, s);
  score_zeros(unit, address, line.of_heads);
  for (float& x : line.of_heads) x *= args.log2_scale;
  if (Config::kGeneral && args.log2_cap > 0.0F) cap_scores(s, line, args.log2_cap);
  if (Config::kGeneral && piece.unseen > 0) mask_scores(s, piece.unseen, kStepTokens);
  softmax(unit, s, line, p);
}

// The same of a page of rows of keys: scores wait for those of the step's other page, each where it will be read.
template <DType dtype, typename Config>
__device__ __forceinline__ void take_key_rows(UnitState<Config>& unit, const Piece& piece, uint32_t address,
                                              const DecodeArgs& args, WarpMemory<Config>& memory,
                                              StepProbabilities& p) {
  const Lane lane;
  memory.scores[lane.r / 4][16 * piece.page + lane.id % 16] = score_rows<dtype>(unit, address);
  if (piece.kind == PieceKind::kKeyRows) return;
  __syncwarp();
  StepScores s;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const float4 tile = memory.scores[t][lane.id];
    s[t][0] = tile.x;
    s[t][1] = tile.y;
    s[t][2] = tile.z;
    s[t][3] = tile.w;
  }
  ScoreLine line{args.log2_scale, {}};
  if (Config::kGeneral && args.log2_cap > 0.0F) cap_scores(s, line, args.log2_cap);
  mask_scores(s, Config::kGeneral ? piece.unseen : 0, piece.n);
  softmax(unit, s, line, p);
  if (piece.values_in_rows_only) {  // else packed values have the totals with them
    mma(unit.sums, 0U, kHalfOnes, 0U, kHalfOnes, p[0][0], p[0][1]);
    mma(unit.sums, 0U, kHalfOnes, 0U, kHalfOnes, p[1][0], p[1][1]);
  }
}

template <DType dtype, typename Config>
__device__ __forceinline__ void take_rows(UnitState<Config>& unit, const Piece& piece, uint32_t address,
                                          const DecodeArgs& args, WarpMemory<Config>& memory, StepProbabilities& p) {
  if (piece.kind != PieceKind::kValueRows) return take_key_rows<dtype>(unit, piece, address, args, memory, p);
  unit.set_units(false);
  add_row_values<dtype>(unit, address, piece.page, p);
}

// Takes a piece in. What is between keys and values of a step, which may come as several pieces, is in p.
template <typename Config>
__device__ __forceinline__ void take_piece(UnitState<Config>& unit, const Piece& piece, uint32_t address,
                                           const DecodeArgs& args, WarpMemory<Config>& memory, StepProbabilities& p) {
  const PieceKind kind = piece.kind;
  if (Config::kPacked && (kind == PieceKind::kPacked || kind == PieceKind::kPackedValues)) {
    if constexpr (Config::kPacked) {
      if (kind == PieceKind::kPacked) take_packed_keys(unit, piece, address, args, p);
      unit.set_units(true);
      add_packed_values(unit, ValueGroups<Config>{args}, address, p);
    }
  } else if (kind == PieceKind::kQueries) {
    unit.begin(address, piece.n_heads, args.dtype);
  } else if (args.cache.window_dtype == DType::kF16) {
    take_rows<DType::kF16>(unit, piece, address, args, memory, p);
  } else {
    take_rows<DType::kBF16>(unit, piece, address, args, memory, p);
  }
}

}  // namespace kivi::cuda
