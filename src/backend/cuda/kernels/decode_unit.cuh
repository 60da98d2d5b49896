// What a warp of decode attention keeps of a unit: queries and the online softmax over the steps that it has seen.
// attend_decode.cuh explains the products.
#pragma once

#include "backend/cuda/kernels/decode_stream.cuh"

namespace kivi::cuda {

// Of the 32 tokens of a step, two tiles (format::spread_place), and up to 8 heads: scores as mma leaves them, tokens as
// rows; and probabilities as operand B, tokens as rows.
struct StepScores {
  float tiles[2][4];
  __device__ float (&operator[](int tile))[4] { return tiles[tile]; }
  __device__ const float (&operator[](int tile) const)[4] { return tiles[tile]; }
};
struct StepProbabilities {
  uint32_t tiles[2][2];
  __device__ uint32_t (&operator[](int tile))[2] { return tiles[tile]; }
  __device__ const uint32_t (&operator[](int tile) const)[2] { return tiles[tile]; }
};

// The registers of operand A for place `place` (of 16 / kBits) of the words of a lane, kBits those of the low plane.
template <int kBits>
__device__ __forceinline__ uint32_t codes_at(uint32_t word, int place) {
  constexpr int kInByte = 8 / kBits;  // beyond a byte the codes would leave the subnormal numbers
  const uint32_t mask = ((1U << kBits) - 1U) * 0x00010001U << (kBits * (place % kInByte));
  return (place >= kInByte ? word >> 8 : word) & mask;
}
// A lane's word of the high plane with the bits of an even or odd register, and of the first or last four places, two
// apart: that of place p is at bit 2 + 2 * (p % 4) of each half, left of codes_at<2>.
__device__ __forceinline__ uint32_t four_high_bits(uint32_t word, bool odd_register, bool last_places) {
  return odd_register ? (last_places ? word >> 7 : word >> 6) : (last_places ? word << 1 : word << 2);
}

// The params of eight numbers side by side, those of a lane in a span: halves or bytes.
template <bool kBytes>
__device__ __forceinline__ auto load_params(uint32_t row, int j) {
  if constexpr (kBytes) {
    return load_shared_8(row + 8 * j);
  } else {
    return load_shared_16(row + 16 * j);
  }
}
// Scales of the first or last four of them, as halves. A scale's byte is the middle of a half (format::scale_of_byte).
__device__ __forceinline__ uint2 scales_of(const uint4& halves, int last) {
  return last == 0 ? uint2{halves.x, halves.y} : uint2{halves.z, halves.w};
}
__device__ __forceinline__ uint2 scales_of(const uint2& bytes, int last) {
  const uint32_t four = last == 0 ? bytes.x : bytes.y;
  return {__byte_perm(four, 0, 0x1404) >> 1, __byte_perm(four, 0, 0x3424) >> 1};
}
// Zeros, bytes of which are units + 128: 0x6400 + byte is 1024 + byte.
__device__ __forceinline__ uint2 zeros_of(const uint4& halves, int last) {
  return scales_of(halves, last);
}
__device__ __forceinline__ uint2 zeros_of(const uint2& bytes, int last) {
  constexpr uint32_t kMinus1152 = 0xE480E480U;
  const uint32_t four = last == 0 ? bytes.x : bytes.y;
  return {add_halves(__byte_perm(four, 0x64646464U, 0x4140), kMinus1152),
          add_halves(__byte_perm(four, 0x64646464U, 0x4342), kMinus1152)};
}

// 16-bit numbers as binary16.
template <DType dtype>
__device__ __forceinline__ uint4 as_halves(uint4 v) {
  if constexpr (dtype == DType::kF16) return v;
  return {bfloats_to_halves(v.x), bfloats_to_halves(v.y), bfloats_to_halves(v.z), bfloats_to_halves(v.w)};
}
template <DType dtype>
__device__ __forceinline__ uint2 as_halves(uint2 v) {
  if constexpr (dtype == DType::kF16) return v;
  return {bfloats_to_halves(v.x), bfloats_to_halves(v.y)};
}

template <typename Config>
struct UnitState {
  static constexpr int kTiles = Config::kChannelTiles;
  // Scores are kept as products with codes come out: q carries 2^kQueryShift at place 0 (more would overflow earlier,
  // less would lose small q * scale), codes 2^-24.
  static constexpr int kQueryShift = 1;
  static constexpr float kScoreUnit = Config::kPacked ? 0x1p-23F : 1.0F;

  uint32_t q[2 * kTiles];  // q_of
  float out[kTiles][4];    // channels of the tile x heads
  float sums[4];           // [0], [1]: of zeros, row r is channel group r; [2], [3]: softmax totals
  float maximum[2];        // of log2 scores, heads 2j and 2j + 1
  bool in_code_units;      // out is scaled as products with codes are

  // queries: shared address of the rows of n_heads query heads.
  __device__ void begin(uint32_t queries, int32_t n_heads, DType dtype) {
    const Lane lane;
    const uint32_t row = queries + min(lane.r, n_heads - 1) * Config::kRowBytes + 16 * lane.j;
#pragma unroll
    for (int i = 0; i < Config::kChannelSpans; ++i) {
      uint4 v = load_shared_16(row + 64 * i);
      if (dtype == DType::kBF16) v = as_halves<DType::kBF16>(v);
      q[4 * i] = v.x;
      q[4 * i + 1] = v.z;
      q[4 * i + 2] = v.y;
      q[4 * i + 3] = v.w;
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) out[t][0] = out[t][1] = out[t][2] = out[t][3] = 0.0F;
    sums[0] = sums[1] = sums[2] = sums[3] = 0.0F;
    maximum[0] = maximum[1] = -INFINITY;
    in_code_units = Config::kPacked;
  }

  // Products with codes of value tile t are too small by 2^(24 - bits * place).
  __device__ void set_units(bool codes) {
    if (!Config::kPacked || codes == in_code_units) return;
    in_code_units = codes;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      constexpr int kPlaceBits = format::low_bits(Config::kValueBits);
      constexpr int kInByte = Config::kPacked ? 8 / kPlaceBits : 1;
      const int exponent = 24 - kPlaceBits * (t % kInByte);
      const float factor = __int_as_float((127 + (codes ? -exponent : exponent)) << 23);
      for (float& x : out[t]) x *= factor;
    }
  }

  // Register `half` of q as operand B of channel tile t. Those of a span's two tiles are neighbours, as score_zeros has
  // them.
  __device__ __forceinline__ uint32_t q_of(int t, int half) const {
    return q[t / 2 * 4 + half * 2 + t % 2];
  }
  // The same for codes: with the inverse of their place's power of two.
  __device__ __forceinline__ uint32_t scaled_q(int t, int half, uint32_t scale) const {
    constexpr int kPlaceBits = format::low_bits(Config::kKeyBits);
    constexpr int kInByte = Config::kPacked ? 8 / kPlaceBits : 1;
    static_assert(kTiles % kInByte == 0, "the place of a code must depend on its channel tile alone");
    const int exponent = kQueryShift - kPlaceBits * (t % kInByte);
    return multiply_halves(multiply_halves(q_of(t, half), halves_of_power(exponent)), scale);
  }
};

}  // namespace kivi::cuda
