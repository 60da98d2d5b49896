#include "weights/format.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "core/error.h"

namespace kivi {
namespace {

static_assert(std::endian::native == std::endian::little, "blocks are read as they lie in a little-endian file");

struct FormatInfo {
  std::string_view name;
  int64_t elements;
  int64_t bytes;
};

template <typename Block>
constexpr FormatInfo block_info(std::string_view name) {
  return {name, Block::kElements, sizeof(Block)};
}

constexpr FormatInfo info(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return {"F32", 1, 4};
    case WeightFormat::kF16:
      return {"F16", 1, 2};
    case WeightFormat::kBF16:
      return {"BF16", 1, 2};
    case WeightFormat::kQ8_0:
      return block_info<BlockQ8_0>("Q8_0");
    case WeightFormat::kQ4_0:
      return block_info<BlockQ4_0>("Q4_0");
    case WeightFormat::kQ4_1:
      return block_info<BlockQ4_1>("Q4_1");
    case WeightFormat::kQ5_0:
      return block_info<BlockQ5_0>("Q5_0");
    case WeightFormat::kQ4_K:
      return block_info<BlockQ4_K>("Q4_K");
    case WeightFormat::kQ5_K:
      return block_info<BlockQ5_K>("Q5_K");
    case WeightFormat::kQ6_K:
      return block_info<BlockQ6_K>("Q6_K");
  }
  fail(ErrorCode::kInternal, "weight format {} is not in the table", static_cast<int>(format));
}

// Element i of 32 nibbles: the low halves of 16 bytes first, then the high halves.
int nibble(const uint8_t (&qs)[16], int i) {
  return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}

void decode(float value, float* out) {
  *out = value;
}
void decode(Half value, float* out) {
  *out = to_float(value);
}
void decode(BFloat16 value, float* out) {
  *out = to_float(value);
}

void decode(const BlockQ8_0& block, float* out) {
  const float d = to_float(block.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(block.qs[i]);
}

void decode(const BlockQ4_0& block, float* out) {
  const float d = to_float(block.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(block.qs, i) - 8);
}

void decode(const BlockQ4_1& block, float* out) {
  const float d = to_float(block.d);
  const float m = to_float(block.m);
  for (int i = 0; i < 32; ++i) out[i] = std::fma(d, static_cast<float>(nibble(block.qs, i)), m);
}

void decode(const BlockQ5_0& block, float* out) {
  const float d = to_float(block.d);
  for (int i = 0; i < 32; ++i) {
    const int high = (block.qh[i / 8] >> (i % 8)) & 1;
    out[i] = d * static_cast<float>((nibble(block.qs, i) | high << 4) - 16);
  }
}

void decode(const BlockQ4_K& block, float* out) {
  for (int j = 0; j < 8; ++j) {
    const auto [scale, min] = scale_min_k4(block.scales, j);
    const float d = to_float(block.d) * static_cast<float>(scale);
    const float m = to_float(block.dmin) * static_cast<float>(min);
    for (int l = 0; l < 32; ++l) {
      const int q = (block.qs[32 * (j / 2) + l] >> (4 * (j % 2))) & 15;
      out[32 * j + l] = std::fma(d, static_cast<float>(q), -m);
    }
  }
}

void decode(const BlockQ5_K& block, float* out) {
  for (int j = 0; j < 8; ++j) {
    const auto [scale, min] = scale_min_k4(block.scales, j);
    const float d = to_float(block.d) * static_cast<float>(scale);
    const float m = to_float(block.dmin) * static_cast<float>(min);
    for (int l = 0; l < 32; ++l) {
      const int low = (block.qs[32 * (j / 2) + l] >> (4 * (j % 2))) & 15;
      const int high = (block.qh[l] >> j) & 1;
      out[32 * j + l] = std::fma(d, static_cast<float>(low | high << 4), -m);
    }
  }
}

void decode(const BlockQ6_K& block, float* out) {
  for (int j = 0; j < 16; ++j) {
    const float d = to_float(block.d) * static_cast<float>(block.scales[j]);
    for (int i = 16 * j; i < 16 * (j + 1); ++i) {
      const int h = i / 128;  // h, k and l as in the header
      const int k = (i / 32) % 4;
      const int l = i % 32;
      const int low = (block.ql[64 * h + 32 * (k % 2) + l] >> (4 * (k / 2))) & 15;
      const int high = (block.qh[32 * h + l] >> (2 * k)) & 3;
      out[i] = d * static_cast<float>((low | high << 4) - 32);
    }
  }
}

template <typename Block>
void decode_blocks(const std::byte* data, int64_t elements, std::span<float> out) {
  for (int64_t i = 0; i < std::ssize(out); i += elements, data += sizeof(Block)) {
    Block block;
    std::memcpy(&block, data, sizeof(Block));  // the file need not align it
    decode(block, out.data() + i);
  }
}

}  // namespace

std::string_view name(WeightFormat format) {
  return info(format).name;
}
int64_t block_elements(WeightFormat format) {
  return info(format).elements;
}
int64_t block_bytes(WeightFormat format) {
  return info(format).bytes;
}

int64_t row_bytes(WeightFormat format, int64_t cols) {
  const FormatInfo f = info(format);
  if (cols < 0 || cols % f.elements != 0) {
    fail(ErrorCode::kInvalidArgument, "cols {}: a row of {} must be a multiple of {} elements", cols, f.name,
         f.elements);
  }
  return cols / f.elements * f.bytes;
}

void decode_row(const WeightView& weight, int64_t row, std::span<float> out) {
  if (row < 0 || row >= weight.rows) {
    fail(ErrorCode::kInvalidArgument, "row {}: the matrix has rows 0 to {}", row, weight.rows - 1);
  }
  if (std::ssize(out) != weight.cols) {
    fail(ErrorCode::kInvalidArgument, "out has {} elements: a row of the matrix has {}", out.size(), weight.cols);
  }
  const std::byte* data = weight.row(row);
  const int64_t elements = block_elements(weight.format);
  switch (weight.format) {
    case WeightFormat::kF32:
      return decode_blocks<float>(data, elements, out);
    case WeightFormat::kF16:
      return decode_blocks<Half>(data, elements, out);
    case WeightFormat::kBF16:
      return decode_blocks<BFloat16>(data, elements, out);
    case WeightFormat::kQ8_0:
      return decode_blocks<BlockQ8_0>(data, elements, out);
    case WeightFormat::kQ4_0:
      return decode_blocks<BlockQ4_0>(data, elements, out);
    case WeightFormat::kQ4_1:
      return decode_blocks<BlockQ4_1>(data, elements, out);
    case WeightFormat::kQ5_0:
      return decode_blocks<BlockQ5_0>(data, elements, out);
    case WeightFormat::kQ4_K:
      return decode_blocks<BlockQ4_K>(data, elements, out);
    case WeightFormat::kQ5_K:
      return decode_blocks<BlockQ5_K>(data, elements, out);
    case WeightFormat::kQ6_K:
      return decode_blocks<BlockQ6_K>(data, elements, out);
  }
}

}  // namespace kivi
