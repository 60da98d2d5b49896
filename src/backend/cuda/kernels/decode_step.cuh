// The arithmetic of one step of a unit: scores, softmax, weighted sum of values, each over packed tokens (from a half
// in shared memory) or 16-bit rows (from global memory). attend_decode.cuh explains the products.
#pragma once

#include "backend/cuda/kernels/decode_state.cuh"

namespace kivi::cuda {

// Scores of the 16 tokens of a tile (rows) and up to 8 heads, as mma leaves them; two tiles are the 32 tokens of a
// span.
using TileScores = float[4];
// Their probabilities as operand B, tokens as rows.
using TileProbabilities = uint32_t[2];

struct Lane {
  int id = static_cast<int>(threadIdx.x) % kWarpLanes;
  int r = static_cast<int>(threadIdx.x) % kWarpLanes / 4;
  int j = static_cast<int>(threadIdx.x) % 4;
};

// Groups of a side, in spans of 32 numbers: known when compiling for kGroup, else read from the layout.
template <typename Config>
struct Groups {
  int key_spans = Config::kGroup / format::kTileSpan;    // token spans in a key group
  int value_spans = Config::kGroup / format::kTileSpan;  // channel spans in a value group
  int n_keys = kStepTokens / (Config::kGroup == 0 ? 1 : Config::kGroup);
  int n_values = Config::kHeadDim / (Config::kGroup == 0 ? 1 : Config::kGroup);

  __device__ explicit Groups(const format::PageLayout& layout) {
    if constexpr (Config::kGroup == 0 && Config::kPacked) {
      key_spans = layout.key_group / format::kTileSpan;
      value_spans = layout.value_group / format::kTileSpan;
      n_keys = layout.key_groups();
      n_values = layout.value_groups();
    }
  }
};

// Mask of two 16-bit numbers: those whose condition holds.
__device__ __forceinline__ uint32_t mask_pair(bool low, bool high) {
  return (low ? 0x0000FFFFU : 0U) | (high ? 0xFFFF0000U : 0U);
}

// Keys of a packed half; load() it first.
template <typename Config>
struct PackedKeys {
  static constexpr int kBits = Config::kKeyBits;
  static constexpr int kTiles = Config::kChannelTiles;
  static constexpr int kRowBytes = 2 * Config::kHeadDim;
  static constexpr int kCodesBytes = kStepTokens * Config::kHeadDim * kBits / 8;

  const UnitState<Config>& unit;
  const Groups<Config>& groups;
  uint32_t half = 0;
  Lane lane{};
  float zeros[2] = {};          // lanes 4g + j: q . zeros of token group g, heads 2j and 2j + 1
  uint32_t b[2 * kTiles] = {};  // q * scale of the current group

  __device__ PackedKeys(const UnitState<Config>& unit_, const Groups<Config>& groups_) : unit(unit_), groups(groups_) {}

  __device__ void load(uint32_t half_) {
    half = half_;
    float even[4] = {};
    float odd[4] = {};
    const int group = min(lane.r, groups.n_keys - 1);
    const uint32_t row = half + kCodesBytes + (groups.n_keys + group) * kRowBytes + 16 * lane.j;
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
    const int group = span / groups.key_spans;
    const uint32_t row = half + kCodesBytes + group * kRowBytes + 16 * lane.j;
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
    const int group = span / groups.key_spans;
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

// Adds p V of span `span` of a packed half. kMasked: only of the first `limit` tokens of the step; what the half has
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
  const uint32_t zeros = scales + (groups.n_values + min(lane.r, groups.n_values - 1)) * kRowBytes;
  uint4 words[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) words[w] = load_shared_16(half + (span * kWords + w) * 512 + 16 * lane.id);

  uint4 keep{~0U, ~0U, ~0U, ~0U};
  if constexpr (kMasked) {
    const int left = limit - format::kTileSpan * span - 8 * lane.j;
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
    if (q % groups.value_spans == 0) {
      const uint4 scale = load_shared_16(scales + q / groups.value_spans * kRowBytes);
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

// Scores of span `span` from 16-bit rows.
template <typename Config>
__device__ void score_rows(const UnitState<Config>& unit, const RowSource<Config>& rows, DType dtype, int span,
                           TileScores* s) {
  const Lane lane;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    // Rows r and r + 8 of the tile (format::spread_number).
    const auto run = rows.run(format::kTileSpan * span + 8 * (lane.r / 2) + 4 * t + lane.r % 2);
    const uint16_t* low = run.row(0) + 8 * lane.j;
    const uint16_t* high = run.row(2) + 8 * lane.j;
    TileScores& d = s[t];
    d[0] = d[1] = d[2] = d[3] = 0.0F;
#pragma unroll
    for (int i = 0; i < Config::kChannelSpans; ++i) {
      const uint4 a = load_halves_16(low + i * format::kTileSpan, dtype);
      const uint4 c = load_halves_16(high + i * format::kTileSpan, dtype);
      mma(d, a.x, c.x, a.y, c.y, unit.q[4 * i], unit.q[4 * i + 1]);
      mma(d, a.z, c.z, a.w, c.w, unit.q[4 * i + 2], unit.q[4 * i + 3]);
    }
#pragma unroll
    for (float& x : d) x *= UnitState<Config>::kScoreUnit;
  }
}

// Adds p V of span `span` from 16-bit rows, but for the first `from` tokens of the step.
template <typename Config>
__device__ void add_row_values(UnitState<Config>& unit, const RowSource<Config>& rows, DType dtype, int span,
                               const TileProbabilities* p, int from) {
  const Lane lane;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const int token = format::kTileSpan * span + 8 * lane.j + 4 * t;
    const auto run = rows.run(token);
    const uint16_t* rows_of_lane[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) rows_of_lane[k] = run.row(k) + 4 * lane.r;
    const uint32_t b0 = p[t][0] & mask_pair(token >= from, token + 1 >= from);
    const uint32_t b1 = p[t][1] & mask_pair(token + 2 >= from, token + 3 >= from);
    mma(unit.sums, 0U, kHalfOnes, 0U, kHalfOnes, b0, b1);
    constexpr uint32_t kLow = 0x5410;
    constexpr uint32_t kHigh = 0x7632;
#pragma unroll
    for (int q = 0; q < Config::kChannelSpans; ++q) {
      uint2 v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = load_halves_8(rows_of_lane[k] + q * format::kTileSpan, dtype);
      mma(unit.out[2 * q], __byte_perm(v[0].x, v[1].x, kLow), __byte_perm(v[0].x, v[1].x, kHigh),
          __byte_perm(v[2].x, v[3].x, kLow), __byte_perm(v[2].x, v[3].x, kHigh), b0, b1);
      mma(unit.out[2 * q + 1], __byte_perm(v[0].y, v[1].y, kLow), __byte_perm(v[0].y, v[1].y, kHigh),
          __byte_perm(v[2].y, v[3].y, kLow), __byte_perm(v[2].y, v[3].y, kHigh), b0, b1);
    }
  }
}

// Scores become probabilities; what was summed before is brought to the new maxima.
template <int kTiles, typename Config>
__device__ void softmax(UnitState<Config>& unit, const TileScores (&s)[kTiles], float log2_scale,
                        TileProbabilities (&p)[kTiles]) {
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
      factor[n] = exp2_fast(unit.maximum[n] - maximum);
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
    const auto probability = [&](int i) { return exp2_fast(fmaf(s[t][i], scale, -unit.maximum[i % 2])); };
    p[t][0] = transpose_8x8(pack_halves(probability(0), probability(1)));
    p[t][1] = transpose_8x8(pack_halves(probability(2), probability(3)));
  }
}

// A step whose tokens are all packed: 128 tokens at a time.
template <typename Config>
__device__ void packed_step(UnitState<Config>& unit, HalfStream<Config>& stream, const Groups<Config>& groups,
                            float log2_scale) {
  TileProbabilities p[Config::kTokenTiles];
  {
    TileScores s[Config::kTokenTiles];
    PackedKeys<Config> keys(unit, groups);
    keys.load(stream.wait());
#pragma unroll
    for (int span = 0; span < Config::kTokenSpans; ++span) {
      if (span % groups.key_spans == 0) keys.load_scales(span);
      keys.score(span, s + 2 * span);
    }
    stream.release();
    softmax(unit, s, log2_scale, p);
  }
  unit.set_units(true);
  const uint32_t half = stream.wait();
#pragma unroll
  for (int span = 0; span < Config::kTokenSpans; ++span) {
    add_packed_values<Config, false>(unit, groups, half, span, p + 2 * span, kStepTokens);
  }
  stream.release();
}

// A step that is not all packed.
struct MixedStep {
  int32_t b;
  int32_t kv_head;
  int32_t step;
  int32_t n;             // valid tokens
  int32_t key_packed;    // of the first tokens: a multiple of kTileSpan
  int32_t value_packed;  // of the first tokens
};

// 32 tokens at a time; the keys of a span are packed or in rows, its values either or both.
template <typename Config>
__device__ void mixed_step(const DecodeArgs& args, const SequenceWork& work, const MixedStep& step,
                           UnitState<Config>& unit, HalfStream<Config>& stream, const Groups<Config>& groups) {
  const format::KvBatchView& cache = args.cache;
  const RowSource<Config> key_rows(args, cache.key_policy, cache.key_window_table, args.new_keys, args.key_stride, work,
                                   step.b, step.kv_head, step.step);
  const RowSource<Config> value_rows(args, cache.value_policy, cache.value_window_table, args.new_values,
                                     args.value_stride, work, step.b, step.kv_head, step.step);
  PackedKeys<Config> keys(unit, groups);
  uint32_t value_half = 0;
  if constexpr (Config::kPacked) {
    if (step.key_packed > 0) keys.load(stream.wait_all());
    if (step.value_packed > 0) value_half = stream.wait_all(step.key_packed > 0 ? 1 : 0);
  }
  const Lane lane;
#pragma unroll 1
  for (int span = 0; span * format::kTileSpan < step.n; ++span) {
    const int first = span * format::kTileSpan;
    TileScores s[2];
    if (Config::kPacked && first < step.key_packed) {
      if constexpr (Config::kPacked) {
        keys.load_scales(span);
        keys.score(span, s);
      }
    } else {
      score_rows(unit, key_rows, cache.window_dtype, span, s);
    }
#pragma unroll
    for (int t = 0; t < 2; ++t) {  // rows r and r + 8 of the tile
      const int token = first + 8 * (lane.r / 2) + 4 * t + lane.r % 2;
      if (token >= step.n) s[t][0] = s[t][1] = -INFINITY;
      if (token + 2 >= step.n) s[t][2] = s[t][3] = -INFINITY;
    }
    TileProbabilities p[2];
    softmax(unit, s, args.log2_scale, p);
    if constexpr (Config::kPacked) {
      if (first < step.value_packed) {
        unit.set_units(true);
        add_packed_values<Config, true>(unit, groups, value_half, span, p, step.value_packed);
      }
    }
    if (first + format::kTileSpan > step.value_packed) {
      unit.set_units(false);
      add_row_values(unit, value_rows, cache.window_dtype, span, p, step.value_packed);
    }
  }
  if (step.key_packed > 0) stream.release();
  if (step.value_packed > 0) stream.release();
}

}  // namespace kivi::cuda
