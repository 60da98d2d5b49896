// A second order of the codes inside a block, for tensor cores: a warp reads whole fragments of a matrix product, 16
// bytes a lane, and masks them in place. Scales and zeros keep the linear order. docs/packed-format.md, section 11.
//
// The products are  scores[token, query] = keys[token, channel] x q  and  out[channel, query] = values^T[channel,
// token] x p, both as m16n8k16 with the codes as the 16 x 16 operand A. Of A, lane 4r + j (r 0..7, j 0..3) holds
//
//               columns 2j, 2j+1   columns 2j+8, 2j+9
//   row r        register 0         register 2            each register: two 16-bit halves, the lower column in the
//   row r + 8    register 1         register 3            low half
//
// A 16-bit half has room for P = 16 / bits codes, so a word carries the same register of P consecutive fragments:
// fragment f is in group f / P of 128 words, word 4 * lane + register, at bit bits * (f % P) of each half. Fragments
// count tiles of 16 channels within tiles of 16 tokens:  f = token tile * (head_dim / 16) + channel tile.
//
// Codes of 3 bits have their two low bits where codes of 2 bits would be. The high bits of such a group of eight
// fragments are 64 words: word 2 * lane + register / 2 has, in each half, a byte for either of two registers, in it the
// fragments' bits in the order 0, 4, 1, 5, 2, 6, 3, 7.
//
// What a tile holds is chosen so that a lane finds what it needs side by side:
//   kSpread (tokens; channels of keys)   32 numbers in two tiles: lane column j has numbers 8j .. 8j+3 in the first,
//                                        8j+4 .. 8j+7 in the second, so 16 bytes of scales, of q or of a 16-bit row
//   kRows   (channels of values)         32 numbers in two tiles: lane row r has numbers 4r, 4r+1 in rows r and r + 8
//                                        of the first, 4r+2, 4r+3 in the second, so 8 bytes of a 16-bit row
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "format/packed_word.h"

namespace kivi::format {

inline constexpr int kTile = 16;                 // rows and columns of a fragment
inline constexpr int kTileSpan = 32;             // numbers that two tiles share
inline constexpr int kFragmentGroupWords = 128;  // 4 registers of 32 lanes
inline constexpr int kHighGroupWords = 64;       // the high bits of eight fragments of 3-bit codes

struct TilePlace {
  int tile;
  int index;  // row or column of the tile
};

// Where number i of the axis is under kSpread, and its inverse.
KIVI_HD constexpr TilePlace spread_place(int i) {
  const int j = i % kTileSpan / 8;
  return {i / kTileSpan * 2 + i % 8 / 4, i % 4 / 2 * 8 + 2 * j + i % 2};
}
KIVI_HD constexpr int spread_number(TilePlace at) {
  return at.tile / 2 * kTileSpan + at.index % 8 / 2 * 8 + at.tile % 2 * 4 + at.index / 8 * 2 + at.index % 2;
}
// The same under kRows.
KIVI_HD constexpr TilePlace rows_place(int i) {
  return {i / kTileSpan * 2 + i % 4 / 2, i % kTileSpan / 4 + i % 2 * 8};
}
KIVI_HD constexpr int rows_number(TilePlace at) {
  return at.tile / 2 * kTileSpan + at.index % 8 * 4 + at.tile % 2 * 2 + at.index / 8;
}

// The high bit of fragment i of a group of eight, in a byte: those of the first four fragments and of the last four are
// two bits apart, as their low bits are, so that one shift puts four of them where they belong.
KIVI_HD constexpr int high_bit_in_byte(int i) {
  return i % 4 * 2 + i / 4;
}

// first_high: the first word of the high plane.
KIVI_HD constexpr CodePlaces fragment_place(int fragment, int row, int column, int bits, int64_t first_high) {
  const int per_half = 16 / low_bits(bits);
  const int lane = row % 8 * 4 + column % 8 / 2;
  const int in_lane = row / 8 + 2 * (column / 8);
  const int group = fragment / per_half;
  const int in_half = fragment % per_half;
  return {{int64_t{group} * kFragmentGroupWords + 4 * lane + in_lane, in_half + per_half * (column % 2)},
          {first_high + int64_t{group} * kHighGroupWords + 2 * lane + in_lane / 2,
           high_bit_in_byte(in_half % 8) + 8 * (in_lane % 2) + 16 * (column % 2)}};
}
KIVI_HD constexpr CodePlaces key_fragment_place(int token, int channel, int head_dim, int bits, int64_t first_high) {
  const TilePlace row = spread_place(token);
  const TilePlace column = spread_place(channel);
  return fragment_place(row.tile * (head_dim / kTile) + column.tile, row.index, column.index, bits, first_high);
}
KIVI_HD constexpr CodePlaces value_fragment_place(int token, int channel, int head_dim, int bits, int64_t first_high) {
  const TilePlace row = rows_place(channel);
  const TilePlace column = spread_place(token);
  return fragment_place(column.tile * (head_dim / kTile) + row.tile, row.index, column.index, bits, first_high);
}

static_assert(spread_number(spread_place(77)) == 77 && rows_number(rows_place(77)) == 77);

}  // namespace kivi::format
