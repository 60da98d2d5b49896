// What is done with each kind of piece.
#pragma once

#include "backend/cuda/kernels/decode_unit.cuh"

namespace kivi::cuda {

// Keys of a packed half.
template <typename Config>
struct PackedKeys {
  static constexpr int kBits = Config::kKeyBits;
  static constexpr int kTiles = Config::kChannelTiles;
  static constexpr int kRowBytes = 2 * Config::kHeadDim;
  static constexpr int kCodesBytes = kStepTokens * Config::kHeadDim * kBits / 8;

  const UnitState<Config>& unit;
  const Groups<Config>& groups;
  uint32_t half;
  Lane lane;
  float zeros[2];          // lanes 4g + j: q . zeros of token group g, heads 2j and 2j + 1
  uint32_t b[2 * kTiles];  // q * scale of the current group

  __device__ PackedKeys(const UnitState<Config>& unit_, const Groups<Config>& groups_, uint32_t half_)
      : unit(unit_), groups(groups_), half(half_) {
    float even[4] = {};
    float odd[4] = {};
    const int group = min(lane.r, groups.n_keys() - 1);
    const uint32_t row = half + kCodesBytes + (groups.n_keys() + group) * kRowBytes + 16 * lane.j;
#pragma unroll
    for (int i = 0; i < Config::kChannelSpans; ++i) {
      const uint4 z = load_shared_16(row + 64 * i);
      mma(even, z.x, z.x, z.y, z.y, unit.q[4 * i], unit.q[4 * i + 1]);
      mma(odd, z.z, z.z, z.w, z.w, unit.q[4 * i + 2], unit.q[4 * i + 3]);
    }
    zeros[0] = (even[0] + odd[0]) * UnitState<Config>::kScoreUnit;
    zeros[1] = (even[1] + odd[1]) * UnitState<Config>::kScoreUnit;
  }

  // Scales of the span's group become the current ones; the spans of a group have them in common.
  __device__ void load_scales(int span) {
    const uint32_t row = half + kCodesBytes + groups.key_group(span) * kRowBytes + 16 * lane.j;
#pragma unroll
    for (int i = 0; i < Config::kChannelSpans; ++i) {
      const uint4 scale = load_shared_16(row + 64 * i);
      b[4 * i] = unit.scaled_q(2 * i, 0, scale.x);
      b[4 * i + 1] = unit.scaled_q(2 * i, 1, scale.y);
      b[4 * i + 2] = unit.scaled_q(2 * i + 1, 0, scale.z);
      b[4 * i + 3] = unit.scaled_q(2 * i + 1, 1, scale.w);
    }
  }

  // Scores of the two tiles of a span.
  __device__ void score(int span, TileScores* s) const {
    const int group = groups.key_group(span);
    const float zero0 = __shfl_sync(kAllLanes, zeros[0], 4 * group + lane.j);
    const float zero1 = __shfl_sync(kAllLanes, zeros[1], 4 * group + lane.j);
    constexpr int kPlaces = 16 / kBits;
    constexpr int kWords = 2 * kTiles / kPlaces;  // groups of words for the two tiles of a span
    uint4 words[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = load_shared_16(half + (span * kWords + w) * 512 + 16 * lane.id);
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      s[t][0] = s[t][2] = zero0;
      s[t][1] = s[t][3] = zero1;
    }
#pragma unroll
    for (int p = 0; p < kTiles; ++p) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int fragment = t * kTiles + p;
        mma_codes<kBits>(s[t], words[fragment / kPlaces], fragment % kPlaces, b[2 * p], b[2 * p + 1]);
      }
    }
  }
};

// Adds p V of span `span` of a packed half. kMasked: only of the first `limit` tokens of the span; what the half has
// beyond them has never been written.
template <typename Config, bool kMasked>
__device__ void add_packed_values(UnitState<Config>& unit, const Groups<Config>& groups, uint32_t half, int span,
                                  const TileProbabilities* p, int limit) {
  constexpr int kBits = Config::kValueBits;
  constexpr int kTiles = Config::kChannelTiles;
  constexpr int kRowBytes = 2 * kStepTokens;
  constexpr int kPlaces = 16 / kBits;
  constexpr int kWords = 2 * kTiles / kPlaces;
  const Lane lane;
  const uint32_t scales = half + kStepTokens * Config::kHeadDim * kBits / 8 + 64 * span + 16 * lane.j;
  const uint32_t zeros = scales + (groups.n_values() + min(lane.r, groups.n_values() - 1)) * kRowBytes;
  uint4 words[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) words[w] = load_shared_16(half + (span * kWords + w) * 512 + 16 * lane.id);

  uint4 keep{~0U, ~0U, ~0U, ~0U};
  if constexpr (kMasked) {
    const int left = limit - 8 * lane.j;
    keep = {mask_pair(left > 0, left > 1), mask_pair(left > 2, left > 3), mask_pair(left > 4, left > 5),
            mask_pair(left > 6, left > 7)};
  }
  const auto masked = [](uint32_t x, uint32_t mask) { return kMasked ? x & mask : x; };
  const uint32_t p0 = masked(p[0][0], keep.x);
  const uint32_t p1 = masked(p[0][1], keep.y);
  const uint32_t p2 = masked(p[1][0], keep.z);
  const uint32_t p3 = masked(p[1][1], keep.w);
  const uint4 z = load_shared_16(zeros);
  mma(unit.sums, masked(z.x, keep.x), kHalfOnes, masked(z.y, keep.y), kHalfOnes, p0, p1);
  mma(unit.sums, masked(z.z, keep.z), kHalfOnes, masked(z.w, keep.w), kHalfOnes, p2, p3);

  uint32_t b[4];
#pragma unroll
  for (int q = 0; q < Config::kChannelSpans; ++q) {
    if (groups.begins_value_group(q)) {
      const uint4 scale = load_shared_16(scales + groups.value_group(q) * kRowBytes);
      b[0] = masked(multiply_halves(p0, scale.x), keep.x);
      b[1] = masked(multiply_halves(p1, scale.y), keep.y);
      b[2] = masked(multiply_halves(p2, scale.z), keep.z);
      b[3] = masked(multiply_halves(p3, scale.w), keep.w);
    }
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int c = 2 * q; c < 2 * q + 2; ++c) {
        const int fragment = t * kTiles + c;
        mma_codes<kBits>(unit.out[c], words[fragment / kPlaces], fragment % kPlaces, b[2 * t], b[2 * t + 1]);
      }
    }
  }
}

// Scores of the two tiles of a span from its 16-bit rows.
template <typename Config>
__device__ void score_rows(const UnitState<Config>& unit, uint32_t rows, DType dtype, TileScores* s) {
  const Lane lane;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    // Rows r and r + 8 of the tile are tokens two apart (format::spread_number): the same swizzle.
    const int token = 8 * (lane.r / 2) + 4 * t + lane.r % 2;
    const uint32_t row = rows + token * Config::kRowBytes;
    TileScores& d = s[t];
    d[0] = d[1] = d[2] = d[3] = 0.0F;
#pragma unroll
    for (int i = 0; i < Config::kChannelSpans; ++i) {
      const uint32_t chunk = row + ((4 * i + lane.j) ^ key_swizzle(token)) * 16;
      const uint4 low = as_halves(load_shared_16(chunk), dtype);
      const uint4 high = as_halves(load_shared_16(chunk + 2 * Config::kRowBytes), dtype);
      mma(d, low.x, high.x, low.y, high.y, unit.q[4 * i], unit.q[4 * i + 1]);
      mma(d, low.z, high.z, low.w, high.w, unit.q[4 * i + 2], unit.q[4 * i + 3]);
    }
#pragma unroll
    for (float& x : d) x *= UnitState<Config>::kScoreUnit;
  }
}

// Adds p V of a span from its 16-bit rows, but for its first `from` tokens, which are packed.
template <typename Config>
__device__ void add_row_values(UnitState<Config>& unit, uint32_t rows, DType dtype, const TileProbabilities* p,
                               int from) {
  const Lane lane;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const int token = 8 * lane.j + 4 * t;  // and the three after it: the same swizzle
    const uint32_t row = rows + token * Config::kRowBytes + lane.r % 2 * 8;
    const uint32_t b0 = p[t][0] & mask_pair(token >= from, token + 1 >= from);
    const uint32_t b1 = p[t][1] & mask_pair(token + 2 >= from, token + 3 >= from);
    mma(unit.sums, 0U, kHalfOnes, 0U, kHalfOnes, b0, b1);
    constexpr uint32_t kLow = 0x5410;
    constexpr uint32_t kHigh = 0x7632;
#pragma unroll
    for (int q = 0; q < Config::kChannelSpans; ++q) {
      const uint32_t chunk = row + ((4 * q + lane.r / 2) ^ value_swizzle(token)) * 16;
      uint2 v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = as_halves(load_shared_8(chunk + k * Config::kRowBytes), dtype);
      mma(unit.out[2 * q], __byte_perm(v[0].x, v[1].x, kLow), __byte_perm(v[0].x, v[1].x, kHigh),
          __byte_perm(v[2].x, v[3].x, kLow), __byte_perm(v[2].x, v[3].x, kHigh), b0, b1);
      mma(unit.out[2 * q + 1], __byte_perm(v[0].y, v[1].y, kLow), __byte_perm(v[0].y, v[1].y, kHigh),
          __byte_perm(v[2].y, v[3].y, kLow), __byte_perm(v[2].y, v[3].y, kHigh), b0, b1);
    }
  }
}

// Scores become probabilities; what was summed before is brought to the new maxima.
template <int kTiles, typename Config>
__device__ void softmax(UnitState<Config>& unit, const TileScores* s, float log2_scale, TileProbabilities* p) {
  const float scale = log2_scale / UnitState<Config>::kScoreUnit;
  float high[2] = {s[0][0], s[0][1]};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    high[0] = fmaxf(high[0], fmaxf(s[t][0], s[t][2]));
    high[1] = fmaxf(high[1], fmaxf(s[t][1], s[t][3]));
  }
  high[0] = max_over_rows(high[0]) * scale;
  high[1] = max_over_rows(high[1]) * scale;
  if (__any_sync(kAllLanes, high[0] > unit.maximum[0] || high[1] > unit.maximum[1])) {
    float factor[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float maximum = fmaxf(high[n], unit.maximum[n]);
      factor[n] = exp2_approx(unit.maximum[n] - maximum);
      unit.maximum[n] = maximum;
    }
#pragma unroll
    for (auto& out : unit.out) {
      out[0] *= factor[0];
      out[1] *= factor[1];
      out[2] *= factor[0];
      out[3] *= factor[1];
    }
    unit.sums[0] *= factor[0];
    unit.sums[1] *= factor[1];
    unit.sums[2] *= factor[0];
    unit.sums[3] *= factor[1];
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const auto probability = [&](int i) { return exp2_approx(fmaf(s[t][i], scale, -unit.maximum[i % 2])); };
    p[t][0] = transpose_8x8(pack_pair<Half>(probability(0), probability(1)));
    p[t][1] = transpose_8x8(pack_pair<Half>(probability(2), probability(3)));
  }
}

// Takes a piece in. Keys leave the probabilities of their tokens in `p`, of one span or of all, for the values that
// follow.
template <typename Config>
__device__ void take_piece(UnitState<Config>& unit, const Piece& piece, uint32_t address, const DecodeArgs& args,
                           TileProbabilities (&p)[Config::kTokenTiles]) {
  const Groups<Config> groups{args};
  const DType row_dtype = args.cache.window_dtype;
  if constexpr (Config::kPacked) {
    if (piece.kind == PieceKind::kWholeKeys) {
      TileScores s[Config::kTokenTiles];
      PackedKeys<Config> keys(unit, groups, address);
#pragma unroll
      for (int span = 0; span < Config::kTokenSpans; ++span) {
        if (groups.begins_key_group(span)) keys.load_scales(span);
        keys.score(span, s + 2 * span);
      }
      softmax<Config::kTokenTiles>(unit, s, args.log2_scale, p);
      return;
    }
    if (piece.kind == PieceKind::kWholeValues) {
      unit.set_units(true);
#pragma unroll
      for (int span = 0; span < Config::kTokenSpans; ++span) {
        add_packed_values<Config, false>(unit, groups, address, span, p + 2 * span, kStepTokens);
      }
      return;
    }
    if (piece.kind == PieceKind::kPackedValues) {
      unit.set_units(true);
      add_packed_values<Config, true>(unit, groups, address, piece.span, p, piece.value_packed);
      return;
    }
  }
  if (piece.kind == PieceKind::kValueRows) {
    unit.set_units(false);
    add_row_values(unit, address, row_dtype, p, piece.value_packed);
    return;
  }
  TileScores s[2];
  if (Config::kPacked && piece.kind == PieceKind::kPackedKeys) {
    if constexpr (Config::kPacked) {
      PackedKeys<Config> keys(unit, groups, address);
      keys.load_scales(piece.span);
      keys.score(piece.span, s);
    }
  } else {
    score_rows(unit, address, row_dtype, s);
  }
  const Lane lane;
#pragma unroll
  for (int t = 0; t < 2; ++t) {  // rows r and r + 8 of the tile
    const int token = 8 * (lane.r / 2) + 4 * t + lane.r % 2;
    if (token >= piece.n) s[t][0] = s[t][1] = -INFINITY;
    if (token + 2 >= piece.n) s[t][2] = s[t][3] = -INFINITY;
  }
  softmax<2>(unit, s, args.log2_scale, p);
}

}  // namespace kivi::cuda
