#include "format/fragment_order.h"

#include <gtest/gtest.h>

#include <vector>

#include "format/packed_word.h"

namespace kivi::format {
namespace {

constexpr int kTokens = 128;  // of a page

// What a kernel does to read element (row, column) of a fragment: load 16 bytes a lane, mask the word, take a half.
// With 3 bits it loads 8 bytes more, which one shift for every four fragments brings to the low bits' left.
uint32_t read_as_kernel(const uint32_t* words, int fragment, int row, int column, int bits, int64_t first_high) {
  const int low = low_bits(bits);
  const int per_half = 16 / low;
  const int lane = row % 8 * 4 + column % 8 / 2;
  const int in_lane = row / 8 + 2 * (column / 8);
  const int group = fragment / per_half;
  const int i = fragment % per_half;
  uint32_t pair = words[group * kFragmentGroupWords + lane * 4 + in_lane] >> (low * i) & max_code(low) * 0x00010001U;
  if (has_high_plane(bits)) {
    const uint32_t high = words[first_high + group * kHighGroupWords + lane * 2 + in_lane / 2];
    const uint32_t fourfold = in_lane % 2 == 0 ? high << (i < 4 ? 2 : 1) : high >> (i < 4 ? 6 : 7);
    pair |= fourfold >> (2 * (i % 4)) & 4U * 0x00010001U;
  }
  return column % 2 == 0 ? pair & 0xFFFFU : pair >> 16;
}

TEST(FragmentOrder, TilesAreBijections) {
  for (int i = 0; i < 256; ++i) {
    EXPECT_EQ(spread_number(spread_place(i)), i);
    EXPECT_EQ(rows_number(rows_place(i)), i);
    EXPECT_EQ(spread_place(i).tile / 2, i / kTileSpan);
    EXPECT_EQ(rows_place(i).tile / 2, i / kTileSpan);
  }
}

// A lane's numbers of two tiles lie side by side, as the kernels load them.
TEST(FragmentOrder, ALaneHasItsNumbersSideBySide) {
  for (int j = 0; j < 4; ++j) {
    for (int k = 0; k < 8; ++k) {  // [tile][column half][e]
      EXPECT_EQ(spread_number({k / 4, k % 4 / 2 * 8 + 2 * j + k % 2}), 8 * j + k);
    }
  }
  for (int r = 0; r < 8; ++r) {
    for (int k = 0; k < 4; ++k) EXPECT_EQ(rows_number({k / 2, r + k % 2 * 8}), 4 * r + k);
  }
}

TEST(FragmentOrder, KernelsFindEveryCode) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const int head_dim : {64, 96, 128, 256}) {
      const int64_t first_high = kTokens * head_dim * low_bits(bits) / 32;
      std::vector<uint32_t> keys(static_cast<size_t>(kTokens * head_dim * bits / 32));
      std::vector<uint32_t> values(keys.size());
      const auto code = [bits](int token, int channel) {
        return static_cast<uint32_t>(token * 31 + channel * 7 + token / 16 + channel / 16) & max_code(bits);
      };
      for (int token = 0; token < kTokens; ++token) {
        for (int channel = 0; channel < head_dim; ++channel) {
          write_code(keys.data(), key_fragment_place(token, channel, head_dim, bits, first_high), bits,
                     code(token, channel));
          write_code(values.data(), value_fragment_place(token, channel, head_dim, bits, first_high), bits,
                     code(token, channel));
        }
      }
      const int channel_tiles = head_dim / kTile;
      for (int fragment = 0; fragment < kTokens / kTile * channel_tiles; ++fragment) {
        const int token_tile = fragment / channel_tiles;
        const int channel_tile = fragment % channel_tiles;
        for (int row = 0; row < kTile; ++row) {
          for (int column = 0; column < kTile; ++column) {
            ASSERT_EQ(read_as_kernel(keys.data(), fragment, row, column, bits, first_high),
                      code(spread_number({token_tile, row}), spread_number({channel_tile, column})));
            ASSERT_EQ(read_as_kernel(values.data(), fragment, row, column, bits, first_high),
                      code(spread_number({token_tile, column}), rows_number({channel_tile, row})));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace kivi::format
