// Attention's kernels for many queries: tiles of keys and values in f32, and the matrix product that they meet the
// queries in. One source for every instruction set.
#include "backend/cpu/attend_kernels.h"
#include "backend/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attend_tiles.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attend-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kivi::cpu::HWY_NAMESPACE {

void packed_key_tile(const PackedRows& keys, float* tile) {
  const DF d;
  const format::PageLayout& layout = *keys.layout;
  with_bits(layout.key_bits, [&](auto bits) {
    for (int done = 0; done < keys.n; done += layout.key_group) {
      const int token = keys.first + done;
      for (int c = 0; c < layout.head_dim; ++c) {
        const format::GroupLine line = format::key_line(layout, keys.block, token, c);
        const VF scale = hn::Set(d, line.scale);
        const VF zero = hn::Set(d, line.zero);
        const CodeRun run = CodeRun::at(keys.block + layout.key_codes(), layout.key_code(token, c));
        for (int i = 0; i < layout.key_group; i += kLanes) {
          hn::StoreU(hn::MulAdd(load_codes<bits()>(run, i, i), scale, zero), d, tile + int64_t{c} * kTile + done + i);
        }
      }
    }
  });
}

void half_key_tile(const HalfRows& keys, float* tile) {
  const DF d;
  alignas(64) float row[kLanes];
  for (int i = 0; i < keys.n; ++i) {
    for (int c = 0; c < keys.head_dim; c += kLanes) {
      hn::Store(load_halves(keys.data + i * keys.stride + c), d, row);
      for (int j = 0; j < kLanes; ++j) tile[int64_t{c + j} * kTile + i] = row[j];
    }
  }
}

void packed_value_tile(const PackedRows& values, float* tile) {
  const DF d;
  const format::PageLayout& layout = *values.layout;
  with_bits(layout.value_bits, [&](auto bits) {
    for (int i = 0; i < values.n; ++i) {
      const int token = values.first + i;
      for (int c = 0; c < layout.head_dim; c += layout.value_group) {
        const format::GroupLine line = format::value_line(layout, values.block, token, c);
        const VF scale = hn::Set(d, line.scale);
        const VF zero = hn::Set(d, line.zero);
        const CodeRun run = CodeRun::at(values.block + layout.value_codes(), layout.value_code(token, c));
        for (int j = 0; j < layout.value_group; j += kLanes) {
          hn::StoreU(hn::MulAdd(load_codes<bits()>(run, j, j), scale, zero), d,
                     tile + int64_t{i} * layout.head_dim + c + j);
        }
      }
    }
  });
}

void half_value_tile(const HalfRows& values, float* tile) {
  const DF d;
  for (int i = 0; i < values.n; ++i) {
    for (int c = 0; c < values.head_dim; c += kLanes) {
      hn::StoreU(load_halves(values.data + i * values.stride + c), d, tile + int64_t{i} * values.head_dim + c);
    }
  }
}

// kRows x kVectors outputs in registers, a broadcast against b's rows. Every output adds its products in the order of
// k, whatever block it falls in.
template <int kRows, int kVectors>
HWY_INLINE void matmul_block(const TileKernels::MatmulArgs& args, int64_t row, int64_t column) {
  const DF d;
  VF acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      acc[r][v] =
          args.accumulate ? hn::LoadU(d, args.c + (row + r) * args.c_stride + column + v * kLanes) : hn::Zero(d);
    }
  }
  const float* a = args.a + row * args.a_stride;
  const float* b = args.b + column;
  for (int64_t k = 0; k < args.k; ++k, b += args.b_stride) {
    VF right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = hn::LoadU(d, b + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const VF left = hn::Set(d, a[r * args.a_stride + k]);
      for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::MulAdd(left, right[v], acc[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(acc[r][v], d, args.c + (row + r) * args.c_stride + column + v * kLanes);
  }
}

template <int kVectors>
HWY_INLINE void matmul_columns(const TileKernels::MatmulArgs& args, int64_t column) {
  constexpr int kRows = kLanes == 16 ? 6 : 4;  // as many accumulators as there are registers for
  int64_t row = 0;
  for (; row + kRows <= args.m; row += kRows) matmul_block<kRows, kVectors>(args, row, column);
  for (; row < args.m; ++row) matmul_block<1, kVectors>(args, row, column);
}

void matmul(const TileKernels::MatmulArgs& args) {
  constexpr int kVectors = kLanes == 16 ? 4 : 2;
  int64_t column = 0;
  for (; column + kVectors * kLanes <= args.n; column += kVectors * kLanes) matmul_columns<kVectors>(args, column);
  for (; column < args.n; column += kLanes) matmul_columns<1>(args, column);
}

const TileKernels* tile_table() {
  static constexpr TileKernels kernels = {
      packed_key_tile, half_key_tile, packed_value_tile, half_value_tile, matmul,
  };
  return &kernels;
}

}  // namespace kivi::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi::cpu {

const TileKernels& tile_kernels(Isa isa) {
  return *[isa] { KIVI_RETURN_FOR_ISA(isa, tile_table()) }();
}

}  // namespace kivi::cpu
#endif
