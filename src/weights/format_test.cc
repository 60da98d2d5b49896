#include "weights/format.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/gguf.h"

namespace kivi {
namespace {

TEST(WeightFormat, KnowsTheSizesOfItsBlocks) {
  EXPECT_EQ(row_bytes(WeightFormat::kF32, 7), 28);
  EXPECT_EQ(row_bytes(WeightFormat::kF16, 7), 14);
  EXPECT_EQ(row_bytes(WeightFormat::kBF16, 7), 14);
  EXPECT_EQ(row_bytes(WeightFormat::kQ8_0, 64), 2 * 34);
  EXPECT_EQ(row_bytes(WeightFormat::kQ4_1, 64), 2 * 20);
  EXPECT_EQ(row_bytes(WeightFormat::kQ6_K, 512), 2 * 210);
  EXPECT_EQ(name(WeightFormat::kQ5_K), "Q5_K");
  EXPECT_EQ(block_elements(WeightFormat::kQ5_0), 32);
  EXPECT_EQ(block_bytes(WeightFormat::kQ5_0), 22);
}

TEST(WeightFormat, RefusesARowOfBrokenBlocks) {
  EXPECT_THROW(row_bytes(WeightFormat::kQ8_0, 33), Error);
  EXPECT_THROW(row_bytes(WeightFormat::kQ4_K, 128), Error);
  EXPECT_THROW(row_bytes(WeightFormat::kF32, -1), Error);
}

TEST(DecodeRow, ChecksItsArguments) {
  const std::vector<float> data(6);
  const WeightView weight{WeightFormat::kF32, 2, 3, reinterpret_cast<const std::byte*>(data.data())};
  std::vector<float> row(3);
  EXPECT_THROW(decode_row(weight, 2, row), Error);
  EXPECT_THROW(decode_row(weight, -1, row), Error);
  row.resize(4);
  EXPECT_THROW(decode_row(weight, 0, row), Error);
}

TEST(DecodeRow, ReadsBlocksAtAnyAddress) {
  std::vector<std::byte> bytes(1 + sizeof(BlockQ8_0));
  BlockQ8_0 block{.d = to_half(0.5F), .qs = {}};
  block.qs[3] = -7;
  std::memcpy(bytes.data() + 1, &block, sizeof(block));
  std::vector<float> row(32);
  decode_row({WeightFormat::kQ8_0, 1, 32, bytes.data() + 1}, 0, row);
  EXPECT_EQ(row[3], -3.5F);
  EXPECT_EQ(row[4], 0.0F);
}

class Golden : public testing::TestWithParam<WeightFormat> {};

// Equal to the bit, although gguf adds after a rounded product and decode_row fuses: no product needs rounding
// (format.h).
TEST_P(Golden, DecodesWhatGgufDequantises) {
  const ModelFile file = read_gguf(std::string(KIVI_SOURCE_DIR "/tests/golden/weights/formats.gguf"));
  const std::string format_name(name(GetParam()));
  const WeightView weight = file.tensor(format_name).view;
  const WeightView values = file.tensor(format_name + ".values").view;
  ASSERT_EQ(weight.format, GetParam());
  ASSERT_EQ(weight.rows, 2);
  ASSERT_EQ(weight.cols, 512);
  std::vector<float> decoded(512), expected(512);
  for (int64_t r = 0; r < weight.rows; ++r) {
    decode_row(weight, r, decoded);
    std::memcpy(expected.data(), values.row(r), 512 * sizeof(float));
    for (size_t i = 0; i < 512; ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(decoded[i]), std::bit_cast<uint32_t>(expected[i]))
          << "row " << r << ", element " << i << ": " << decoded[i] << ", gguf has " << expected[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryFormat, Golden, testing::ValuesIn(kWeightFormats),
                         [](const auto& param_info) { return std::string(name(param_info.param)); });

}  // namespace
}  // namespace kivi
