// What a step of decoding stores of a sequence: the value that leaves the window is packed, and the new key and value
// take their places in 16 bits. (Keys leave many at a time: store.cu has blocks of their own for them.) Nearly nothing
// is moved, so what counts is how many loads wait for one another: lengths, then tables and new rows, then the old row.
//
// A warp has four KV heads (or two of 256 channels), eight lanes for each 128 channels. Lane r of them has the channels
// 4r .. 4r + 3 of every 32, which are, in fragment order, rows r and r + 8 of the tiles (format/fragment_order.h,
// kRows): of a token, whole half words, or bytes where 64 channels of 2 bits do not fill these. So it writes codes
// without reading what lies beside them; but the high bits of 64 channels share bytes with those of another token.
#pragma once

#include "backend/cuda/kernels/pack_tile.cuh"

namespace kivi::cuda {

inline constexpr int kTokenLanes = 8;                 // of a part of a row
inline constexpr int kPartChannels = 128;             // at most
inline constexpr int kTokenParts = 32 / kTokenLanes;  // of a warp

// Of all rows of a sequence.
__host__ __device__ constexpr int parts_of_token(const format::PageLayout& layout) {
  return layout.n_kv_heads * ((layout.head_dim + kPartChannels - 1) / kPartChannels);
}

// Whether store_token can do it: one value leaves at a time, and a lane's codes fill whole bytes.
inline bool stores_tokens(const format::KvBatchView& cache) {
  const format::PageLayout& layout = cache.layout;
  const bool keys_leave_together = cache.key_policy.keeps_all() || cache.key_policy.keep == 0;
  const bool values_leave_alone = cache.value_policy.keeps_all() || cache.value_policy.flush == 1;
  return keys_leave_together && values_leave_alone &&
         (layout.head_dim == 64 || layout.head_dim == 128 || layout.head_dim == 256);
}

// Four numbers of every 32 channels: those of a lane, from its first channel on.
template <int kSpans>
struct RowPart {
  uint2 spans[kSpans];

  __device__ void load(const std::byte* row, int channel) {
#pragma unroll
    for (int s = 0; s < kSpans; ++s) spans[s] = *reinterpret_cast<const uint2*>(row + 64 * s + 2 * channel);
  }
  __device__ void store(std::byte* row, int channel) const {
#pragma unroll
    for (int s = 0; s < kSpans; ++s) *reinterpret_cast<uint2*>(row + 64 * s + 2 * channel) = spans[s];
  }
  template <typename T>
  __device__ float number(int s, int i) const {  // i of the four
    return number_of<T>(i < 2 ? spans[s].x : spans[s].y, i % 2);
  }
};

// The high bits of a lane's codes of a part of a row: of head_dim 128 and more two bytes that no other token has, of 64
// channels every other bit of them.
template <int kSpans>
struct HighBits {
  static constexpr uint32_t kMask = kSpans == 2 ? 0x5555 : 0xFFFF;
  uint32_t bits = 0;

  __device__ void add(int s, int i, uint32_t high) {
    bits |= high << (8 * (i % 2) + format::high_bit_in_byte(2 * s + i / 2));
  }
  __device__ void store(std::byte* plane, const format::CodePlace& first) const {
    auto* to = reinterpret_cast<uint16_t*>(plane) + 2 * first.word + first.place / 16;
    const int shift = first.place % 16;
    const uint32_t kept = kMask == 0xFFFF ? 0 : *to & ~(kMask << shift);
    *to = static_cast<uint16_t>(kept | bits << shift);
  }
};

// Packs a part of a row of values into its block. All lanes of a warp; those that are not `valid` write nothing.
template <typename C, bool kHigh, int kSpans>
__device__ void pack_value(const StoreProblem& problem, const RowPart<kSpans>& row, std::byte* block, int token,
                           int channel, bool valid) {
  using T = typename C::Number;
  const StoreSide& side = problem.values;
  const format::PageLayout& layout = problem.cache.layout;
  const int spans_per_group = side.group / 32;
  ValueStatistic<C::kParams> statistics[kSpans];
#pragma unroll
  for (int s = 0; s < kSpans; ++s) {
    set_statistic(statistics[s], {row.template number<T>(s, 0), row.template number<T>(s, 1),
                                  row.template number<T>(s, 2), row.template number<T>(s, 3)});
#pragma unroll
    for (int distance = 1; distance < kTokenLanes; distance *= 2) statistics[s] = merge(statistics[s], distance);
  }
#pragma unroll
  for (int width = 1; width < kSpans; width *= 2) {
    if (width >= spans_per_group) break;
#pragma unroll
    for (int s = 0; s < kSpans; s += 2 * width) {
      const ValueStatistic<C::kParams> both = join(statistics[s], statistics[s + width]);
#pragma unroll
      for (int i = 0; i < 2 * width; ++i) statistics[s + i] = both;
    }
  }
  const int bits = kHigh ? 2 : side.bits;
  const int spans_per_run = min(8 / bits, kSpans);  // of codes side by side
  uint32_t codes[2] = {};                           // of rows r and r + 8
  HighBits<kSpans> high;
#pragma unroll
  for (int s = 0; s < kSpans; ++s) {
    const auto params = value_params(statistics[s], side);
    const format::GroupLine line = line_of_value(params, side.bits);
    const int in_run = s & (spans_per_run - 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t code = format::quantise(row.template number<T>(s, i), line.scale, line.zero, side.bits);
      codes[i % 2] |= (kHigh ? code & format::max_code(bits) : code) << bits * (2 * in_run + i / 2);
      if (kHigh) high.add(s, i, code >> bits);
    }
    if (valid && channel % 32 == 0 && (s & (spans_per_group - 1)) == 0) {
      store_params(side, block, layout.value_param(token, channel + 32 * s), params);
    }
    if (in_run + 1 < spans_per_run) continue;
#pragma unroll
    for (int row_half = 0; row_half < 2; ++row_half) {
      const format::CodePlace place = layout.value_code(token, channel + 32 * (s - in_run) + row_half).low;
      std::byte* to = block + side.codes + 4 * place.word + bits * place.place / 8;
      const uint32_t run = codes[row_half];
      codes[row_half] = 0;
      if (!valid) continue;
      if (2 * spans_per_run * bits == 16) {
        *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(run);
      } else {
        *reinterpret_cast<uint8_t*>(to) = static_cast<uint8_t>(run);
      }
    }
  }
  if (kHigh && valid) high.store(block + side.codes, layout.value_code(token, channel).high);
}

// Parts first_part .. first_part + 3 of the rows of a sequence with one new token. A warp.
template <typename C, int kSpans>
__device__ void store_token(const StoreProblem& problem, const SequenceRows& sequence, int first_part) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int n_parts = parts_of_token(problem.cache.layout);
  const int asked = first_part + lane / kTokenLanes;
  const bool valid = asked < n_parts;
  const int part = min(asked, n_parts - 1);
  const bool two_parts = problem.cache.layout.head_dim > kPartChannels;
  const int head = two_parts ? part / 2 : part;
  const int channel = lane % kTokenLanes * 4 + (two_parts ? part % 2 * kPartChannels : 0);
  const Timeline keys(Side::kKeys, problem.cache, problem.keys.new_rows, sequence, head);
  const Timeline values(Side::kValues, problem.cache, problem.values.new_rows, sequence, head);
  const int token = sequence.n_past;
  const TokenRange packed = packed_range(problem.values.policy, token, token + 1);

  RowPart<kSpans> key, value, old;
  key.load(keys.new_row(token), channel);
  value.load(values.new_row(token), channel);
  if (packed.size() > 0) old.load(values.row(problem.values.policy.sinks + packed.begin), channel);
  __syncwarp();  // the new value may take the old one's place
  const auto keeps = [&](const StoreSide& side) { return KeptTokens(side.policy, token, token + 1).size() > 0; };
  if (valid && keeps(problem.keys)) key.store(keys.window_row(token), channel);
  if (valid && keeps(problem.values)) value.store(values.window_row(token), channel);
  if (packed.size() == 0) return;
  std::byte* block = values.block(packed.begin);
  const int to = packed.begin % format::kPageTokens;
  if (C::kHighPlane && format::has_high_plane(problem.values.bits)) {
    pack_value<C, C::kHighPlane>(problem, old, block, to, channel, valid);
  } else {
    pack_value<C, false>(problem, old, block, to, channel, valid);
  }
}

// Warp `warp` of all that the step has.
template <typename C>
__device__ void store_tokens(const StoreProblem& problem, int warp) {
  const int warps_per_sequence = (parts_of_token(problem.cache.layout) + kTokenParts - 1) / kTokenParts;
  const int b = warp / warps_per_sequence;
  if (b >= problem.n_sequences) return;
  const SequenceRows sequence = sequence_rows(problem.cache, problem.seq_begin, b);
  if (sequence.n_new != 1) return;
  const int first_part = (warp - b * warps_per_sequence) * kTokenParts;
  if (problem.cache.layout.head_dim == 64) {
    store_token<C, 2>(problem, sequence, first_part);
  } else {
    store_token<C, 4>(problem, sequence, first_part);
  }
}

}  // namespace kivi::cuda
