// Attention kernels of one instruction set, each on one KV head. attend.cc walks the cache and calls them.
//
// A tile is up to kTile tokens. Scores and probabilities are rows of kTile floats, one row for each query head
// (decoding) or for each query head and query token (prefill).
#pragma once

#include <cstdint>

#include "backend/cpu/isa.h"
#include "core/half.h"
#include "format/page_layout.h"

namespace kivi::cpu {

inline constexpr int kTile = format::kPageTokens;
inline constexpr int kMaxHeadBlock = 8;  // query heads that a kernel takes at once

// Memory that is read soon after, which kernels ask for bit by bit as they go: a processor drops requests that come in
// a burst, and looks ahead by itself only inside a block of memory, not from one page of the cache to the next.
struct ByteRange {
  const std::byte* data = nullptr;
  int64_t size = 0;
};

// Rows of a packed page: tokens first .. first + n - 1 of it.
struct PackedRows {
  const format::PageLayout* layout;
  const std::byte* block;  // of one KV head
  int first;               // keys: at the start of a group
  int n;                   // keys: whole groups
  ByteRange next;          // the same side of the next page
};

// 16-bit rows: n tokens of head_dim binary16 numbers, `stride` numbers apart.
struct HalfRows {
  const Half* data;
  int64_t stride;
  int n;
  int head_dim;    // a multiple of 16
  ByteRange next;  // as many rows, a tile further on
};

// Query heads that share a KV head.
struct QueryRows {
  const float* data;  // [n][head_dim], times the softmax scale
  int n;
};

struct AttendKernels {
  // scores[h * kTile + i] = q_h . key_i, dequantising inside the dot product: each code is unpacked once for all heads.
  // scratch: [n query rows, at most kMaxHeadBlock][head_dim].
  void (*packed_scores)(const PackedRows& keys, const QueryRows& q, float* scratch, float* scores);
  void (*half_scores)(const HalfRows& keys, const QueryRows& q, float* scores);

  // A score s becomes cap * tanh(s / cap). Whole vectors are written: up to 15 numbers beyond the n scores.
  void (*cap_scores)(float* scores, int n, float cap);

  // One step of the online softmax on one row: of its n scores the exponentials relative to the new maximum replace the
  // scores (zeros up to n_padded), and the sums so far, `total` and `out` [head_dim], are rescaled to that maximum.
  void (*softmax_step)(float* scores, int n, int n_padded, int head_dim, float* maximum, float* total, float* out);

  // out[h * head_dim + c] += sum over i of p[h * kTile + i] * value_i[c]. scratch: [at most kMaxHeadBlock][kTile].
  void (*packed_values)(const PackedRows& values, const float* p, int n_heads, float* scratch, float* out);
  void (*half_values)(const HalfRows& values, const float* p, int n_heads, float* out);
};

// For many queries at once: tiles of keys and values are brought to f32 and multiplied.
struct TileKernels {
  // Keys transposed, tile[c * kTile + i]; values as they are, tile[i * head_dim + c].
  void (*packed_key_tile)(const PackedRows& keys, float* tile);
  void (*half_key_tile)(const HalfRows& keys, float* tile);
  void (*packed_value_tile)(const PackedRows& values, float* tile);
  void (*half_value_tile)(const HalfRows& values, float* tile);

  // c [m, n] = a [m, k] b [k, n], or c += a b. Row-major with row strides; n a multiple of 16.
  struct MatmulArgs {
    int64_t m, n, k;
    const float* a;
    int64_t a_stride;
    const float* b;
    int64_t b_stride;
    float* c;
    int64_t c_stride;
    bool accumulate;
  };
  void (*matmul)(const MatmulArgs& args);
};

const AttendKernels& attend_kernels(Isa isa);
const TileKernels& tile_kernels(Isa isa);

}  // namespace kivi::cpu
