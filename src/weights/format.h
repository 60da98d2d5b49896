// How model weights are stored: GGUF's block formats. A matrix is rows of blocks; a block is decoded as its type's
// comment says. The blocks are read in place from the mapped file: kernels decode them in registers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/half.h"

namespace kivi {

enum class WeightFormat : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ4_K, kQ5_K, kQ6_K };
inline constexpr std::array kWeightFormats = {
    WeightFormat::kF32,  WeightFormat::kF16,  WeightFormat::kBF16, WeightFormat::kQ8_0, WeightFormat::kQ4_0,
    WeightFormat::kQ4_1, WeightFormat::kQ5_0, WeightFormat::kQ4_K, WeightFormat::kQ5_K, WeightFormat::kQ6_K};

// Element i of the block is `value(i)` below; d, m are binary16. All blocks are byte-packed, little-endian.
//
// Values are float, and the same bits on every machine: products from left to right; the one addition of Q4_1, Q4_K and
// Q5_K as std::fma(d, q, m) and std::fma(d * scale, q, -(dmin * min)). No product rounds (binary16 has 11 significant
// bits, scale and q together at most 12), so the addition alone does: a kernel may fuse or not and still agree to the
// bit.

// value(i) = d * qs[i]
struct BlockQ8_0 {
  static constexpr int kElements = 32;
  Half d;
  int8_t qs[32];
};

// value(i) = d * (nibble(i) - 8); nibbles 0..15 are the low halves of qs[0..15], 16..31 the high halves.
struct BlockQ4_0 {
  static constexpr int kElements = 32;
  Half d;
  uint8_t qs[16];
};

// value(i) = d * nibble(i) + m; nibbles as in Q4_0.
struct BlockQ4_1 {
  static constexpr int kElements = 32;
  Half d;
  Half m;
  uint8_t qs[16];
};

// value(i) = d * ((nibble(i) | bit i of qh << 4) - 16); nibbles as in Q4_0, qh is a little-endian 32-bit word.
struct BlockQ5_0 {
  static constexpr int kElements = 32;
  Half d;
  uint8_t qh[4];
  uint8_t qs[16];
};

// Eight sub-blocks of 32: value(i) = d * scale(i/32) * q(i) - dmin * min(i/32). The 6-bit scales and mins are packed in
// `scales` (see scale_min_k4). q: sub-blocks 2j and 2j+1 are the low and high nibbles of qs[32j .. 32j+31].
struct BlockQ4_K {
  static constexpr int kElements = 256;
  Half d;
  Half dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};

// As Q4_K, with bit 4 of q in qh: sub-block j's fifth bits are bit j of qh[0..31].
struct BlockQ5_K {
  static constexpr int kElements = 256;
  Half d;
  Half dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};

// Sixteen sub-blocks of 16: value(i) = d * scales[i/16] * (q(i) - 32). q has 4 low bits in ql and 2 high bits in qh:
// for each half h (128 elements) and l in 0..31, elements 128h + l + {0, 32, 64, 96} have low bits {ql[64h+l] low,
// ql[64h+32+l] low, ql[64h+l] high, ql[64h+32+l] high} and high bits 2k..2k+1 of qh[32h+l], k = 0..3.
struct BlockQ6_K {
  static constexpr int kElements = 256;
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  Half d;
};

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// The scale and the min (6 bits each) of sub-block j of a Q4_K or Q5_K block.
struct ScaleMin {
  uint8_t scale;
  uint8_t min;
};
inline ScaleMin scale_min_k4(const uint8_t (&packed)[12], int j) {
  if (j < 4) return {static_cast<uint8_t>(packed[j] & 63), static_cast<uint8_t>(packed[j + 4] & 63)};
  return {static_cast<uint8_t>((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4),
          static_cast<uint8_t>((packed[j + 4] >> 4) | (packed[j] >> 6) << 4)};
}

std::string_view name(WeightFormat format);            // "Q4_K"
int64_t block_elements(WeightFormat format);           // elements in one block; 1 for F32, F16, BF16
int64_t block_bytes(WeightFormat format);              // bytes of one block
int64_t row_bytes(WeightFormat format, int64_t cols);  // throws kInvalidArgument unless cols is whole blocks

// A matrix [rows, cols] (or a vector: rows 1) in the memory of somebody else, rows contiguous and in order.
struct WeightView {
  WeightFormat format = WeightFormat::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;  // as aligned as the file has it; may be unaligned for its element type

  const std::byte* row(int64_t r) const { return data + r * row_bytes(format, cols); }
  int64_t size_bytes() const { return rows * row_bytes(format, cols); }
};

// Decodes row `row` of a matrix into out[0 .. cols): the plain definition that every kernel is tested against.
// Throws Error{kInvalidArgument} if there is no such row or out is not of `cols` elements.
void decode_row(const WeightView& weight, int64_t row, std::span<float> out);

}  // namespace kivi
