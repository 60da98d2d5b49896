// What a step of decoding stores of a sequence: the value that leaves the window is packed, and the new key and value
// take their places in 16 bits. (Keys leave many at a time: store.cu has blocks of their own for them.) Nearly nothing
// is moved, so what counts is how many loads wait for one another: lengths, then tables and new rows, then the old row.
//
// A warp has four KV heads (or two of 256 channels), eight lanes for each 128 channels. Lane r of them has the channels
// 4r .. 4r + 3 of every 32, which are, in fragment order, rows r and r + 8 of the tiles (format/fragment_order.h,
// kRows): of a token, whole half words, or bytes where 64 channels of 2 bits do not fill these. So it writes codes
// without reading what lies beside them; but the high bits of 64 channels share bytes with those of another token.
#pragma once

#include <type_traits>

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

// The statistic of the group that has span `lane % kSpans` of this lane's part of a row: spans are shared out among the
// lanes while their eight lanes' statistics are joined, neighbours first.
template <typename Statistic, int kSpans>
__device__ Statistic group_statistic(const RowPart<kSpans>& row, int lane, int spans_per_group) {
  Statistic of_spans[kSpans];
#pragma unroll
  for (int s = 0; s < kSpans; ++s) of_spans[s] = Statistic::of(row.spans[s]);
#pragma unroll
  for (int distance = 1; distance < kSpans; distance *= 2) {
    const bool odd = (lane & distance) != 0;
#pragma unroll
    for (int s = 0; s < kSpans; s += 2 * distance) {
      const Statistic own = odd ? of_spans[s + distance] : of_spans[s];
      const Statistic other = odd ? of_spans[s] : of_spans[s + distance];
      of_spans[s] = own.join(other.of_lane(distance));
    }
  }
  Statistic statistic = of_spans[0];
#pragma unroll
  for (int distance = kSpans; distance < kTokenLanes; distance *= 2) {
    statistic = statistic.join(statistic.of_lane(distance));
  }
#pragma unroll
  for (int distance = 1; distance < kSpans; distance *= 2) {
    if (distance < spans_per_group) statistic = statistic.join(statistic.of_lane(distance));
  }
  return statistic;
}

// What a lane knows of a group, for the others.
__device__ inline format::GroupParams of_lane(format::GroupParams params, int lane) {
  const uint32_t both = __shfl_sync(~0U, uint32_t{params.scale.bits} | uint32_t{params.zero.bits} << 16, lane);
  return {{static_cast<uint16_t>(both)}, {static_cast<uint16_t>(both >> 16)}};
}
__device__ inline uint8_t of_lane(uint8_t scale, int lane) {
  return static_cast<uint8_t>(__shfl_sync(~0U, uint32_t{scale}, lane));
}

// Packs a part of a row of values into its block. All lanes of a warp; those that are not `valid` write nothing.
template <typename C, int Bits, int kSpans>
__device__ void pack_value(const StoreProblem& problem, const RowPart<kSpans>& row, std::byte* block, int token,
                           int channel, bool valid) {
  using T = typename C::Number;
  constexpr int kLowBits = format::low_bits(Bits);
  constexpr int kRun = 8 / kLowBits < kSpans ? 8 / kLowBits : kSpans;  // spans whose codes lie side by side
  using Run = std::conditional_t<2 * kRun * kLowBits == 16, uint16_t, uint8_t>;
  const StoreSide& side = problem.values;
  const format::PageLayout& layout = problem.cache.layout;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int spans_per_group = 1 << side.spans_shift;
  const auto params = group_statistic<ValueStatistic<T, C::kParams>>(row, lane, spans_per_group).params(side, Bits);
  const int own_span = lane % kTokenLanes;
  if (valid && own_span < kSpans && (own_span & (spans_per_group - 1)) == 0) {
    store_params(side, block, side.value_param(layout, token, channel / kPartChannels * kPartChannels + 32 * own_span),
                 params);
  }
  const format::CodePlaces first =
      format::value_fragment_place(token, channel, layout.head_dim, Bits, (side.high_plane - side.codes) / 4);
  std::byte* to = block + side.codes + 4 * first.low.word + kLowBits * first.low.place / 8;
  GroupQuantiser quantiser;
  uint32_t codes[2] = {};  // of rows r and r + 8
  HighBits<kSpans> high;
#pragma unroll
  for (int s = 0; s < kSpans; ++s) {
    if ((s & (spans_per_group - 1)) == 0) {
      quantiser =
          GroupQuantiser::make(line_of_value(of_lane(params, lane / kTokenLanes * kTokenLanes + s), Bits), Bits);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = i < 2 ? row.spans[s].x : row.spans[s].y;
      const uint32_t code = quantiser.code(number_of<T>(pair, i % 2), Bits);
      codes[i % 2] += (code & format::max_code(kLowBits)) << kLowBits * (s % kRun * 2 + i / 2);
      if (format::has_high_plane(Bits)) high.add(s, i, code >> kLowBits);
    }
    if (s % kRun + 1 < kRun) continue;
    if (valid) {
      std::byte* run = to + s / kRun * 4 * format::kFragmentGroupWords;
      *reinterpret_cast<Run*>(run) = static_cast<Run>(codes[0]);
      *reinterpret_cast<Run*>(run + 4) = static_cast<Run>(codes[1]);
    }
    codes[0] = codes[1] = 0;
  }
  if (format::has_high_plane(Bits) && valid) high.store(block + side.codes, first.high);
}

// Whether the new token stays in 16 bits, of a side that stores_tokens takes.
__device__ inline bool stays(const format::WindowPolicy& policy, int token) {
  if (policy.sliding_window != 0 && policy.first_stored(token + 1) > token) return false;
  return policy.keep > 0 || !flushes_at(policy, token);
}

// Parts first_part .. first_part + 3 of the rows of a sequence with one new token. A warp.
template <typename C, int kSpans>
__device__ void store_token(const StoreProblem& problem, const SequenceRows& sequence, int first_part) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int n_parts = parts_of_token(problem.cache.layout);
  const int asked = first_part + lane / kTokenLanes;
  const bool valid = asked < n_parts;
  const int part = min(asked, n_parts - 1);
  const bool two_parts = problem.cache.layout.head_dim > kPartChannels;
  const int head = two_parts ? part / 2 : part;
  const int channel = lane % kTokenLanes * 4 + (two_parts ? part % 2 * kPartChannels : 0);
  const int b = sequence.b;
  const int token = sequence.n_past;
  const format::WindowPolicy& policy = problem.values.policy;
  const int leaving = token - policy.sinks - policy.keep;  // the value, counted from the end of the sinks
  const bool packs = leaving >= 0 && (policy.sliding_window == 0 ||
                                      leaving >= static_cast<int>(policy.first_stored(token + 1)) - policy.sinks);

  // All numbers of pages are read at once, whether or not they are needed.
  const format::KvBatchView& cache = problem.cache;
  const WindowPlace key_at(cache, Side::kKeys, b, token, head);
  const WindowPlace value_at(cache, Side::kValues, b, token, head);
  const WindowPlace old_at(cache, Side::kValues, b, policy.sinks + max(leaving, 0), head);
  const int key_page = *key_at.page;
  const int value_page = *value_at.page;
  const int old_page = *old_at.page;
  const int block_page = *(packs ? problem.packed_page(b, leaving) : old_at.page);
  const std::byte* new_value = problem.values.new_rows.at(sequence.first_row, head);
  RowPart<kSpans> key, value, old;
  key.load(problem.keys.new_rows.at(sequence.first_row, head), channel);
  value.load(new_value, channel);
  old.load(packs && policy.keep > 0 ? old_at.row(cache, old_page) : new_value, channel);
  __syncwarp();  // the new value may take the old one's place
  if (valid && stays(problem.keys.policy, token)) key.store(key_at.row(cache, key_page), channel);
  if (valid && stays(policy, token)) value.store(value_at.row(cache, value_page), channel);
  if (!packs) return;
  std::byte* block = problem.block(block_page, head);
  const int to = leaving % format::kPageTokens;
  switch (problem.values.bits) {
    case 2:
      return pack_value<C, 2>(problem, old, block, to, channel, valid);
    case 3:
      return pack_value<C, 3>(problem, old, block, to, channel, valid);
    case 4:
      return pack_value<C, 4>(problem, old, block, to, channel, valid);
    default:
      return pack_value<C, 8>(problem, old, block, to, channel, valid);
  }
}

// Warp `warp` of all that the step has.
template <typename C>
__device__ void store_tokens(const StoreProblem& problem, int warp) {
  const int warps_per_sequence = (parts_of_token(problem.cache.layout) + kTokenParts - 1) / kTokenParts;
  const int b = warp / warps_per_sequence;
  if (b >= problem.n_sequences) return;
  const SequenceRows sequence = sequence_rows(problem.cache, problem.seq_begin, b);
  if ((sequence.n_new != 1) | (sequence.n_past < 0)) return;  // both are read at once
  const int first_part = (warp - b * warps_per_sequence) * kTokenParts;
  if (problem.cache.layout.head_dim == 64) {
    store_token<C, 2>(problem, sequence, first_part);
  } else {
    store_token<C, 4>(problem, sequence, first_part);
  }
}

}  // namespace kivi::cuda
