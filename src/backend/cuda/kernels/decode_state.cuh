// What a warp of the decode attention kernel (attend_decode.cuh) works with: its arguments, the row of the kernel
// table, where 16-bit rows are, the state of a unit, and the ring of packed halves.
#pragma once

#include <cstdint>

#include "backend/cuda/device/warp_ops.cuh"
#include "backend/cuda/kernels/decode_args.cuh"
#include "format/fragment_order.h"

namespace kivi::cuda {

// A row of the kernel table. kBits 0: that side is never packed. kGroup 0: any multiple of 32, read from the layout.
template <int kHeadDim_, int kKeyBits_, int kValueBits_, int kGroup_>
struct DecodeConfig {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kKeyBits = kKeyBits_;
  static constexpr int kValueBits = kValueBits_;
  static constexpr int kGroup = kGroup_;
  static constexpr bool kPacked = kKeyBits > 0 && kValueBits > 0;
  static constexpr int kChannelTiles = kHeadDim / format::kTile;
  static constexpr int kTokenTiles = kStepTokens / format::kTile;
  static constexpr int kChannelSpans = kHeadDim / format::kTileSpan;
  static constexpr int kTokenSpans = kStepTokens / format::kTileSpan;
  static constexpr int kWarps = kHeadDim <= 128 ? 8 : 4;
  static constexpr int kSlots = 2;

  // Bytes of the largest half: the narrowest group has the most scales.
  static constexpr int half_bytes(int bits, int group) {
    return kStepTokens * kHeadDim * bits / 8 + 4 * kStepTokens * kHeadDim / group;
  }
  static constexpr int kNarrowest = kGroup == 0 ? format::kTileSpan : kGroup;
  static constexpr int kSlotBytes = kPacked ? half_bytes(kKeyBits > kValueBits ? kKeyBits : kValueBits, kNarrowest) : 0;
  static constexpr int kSharedBytes = kWarps * kSlots * kSlotBytes;
};

// The registers of operand A for place `place` (of 16 / kBits) of the words of a lane.
template <int kBits>
__device__ __forceinline__ uint32_t codes_at(uint32_t word, int place) {
  constexpr int kInByte = 8 / kBits;  // beyond a byte the codes would leave the subnormal numbers
  const uint32_t mask = ((1U << kBits) - 1U) * 0x00010001U << (kBits * (place % kInByte));
  return (place >= kInByte ? word >> 8 : word) & mask;
}
template <int kBits>
__device__ __forceinline__ void mma_codes(float (&d)[4], const uint4& words, int place, uint32_t b0, uint32_t b1) {
  mma(d, codes_at<kBits>(words.x, place), codes_at<kBits>(words.y, place), codes_at<kBits>(words.z, place),
      codes_at<kBits>(words.w, place), b0, b1);
}

// Loads 16 bytes of 16-bit numbers as binary16.
__device__ __forceinline__ uint4 load_halves_16(const void* pointer, DType dtype) {
  uint4 v = __ldg(static_cast<const uint4*>(pointer));
  if (dtype == DType::kBF16) {
    v = {bfloats_to_halves(v.x), bfloats_to_halves(v.y), bfloats_to_halves(v.z), bfloats_to_halves(v.w)};
  }
  return v;
}
__device__ __forceinline__ uint2 load_halves_8(const void* pointer, DType dtype) {
  uint2 v = __ldg(static_cast<const uint2*>(pointer));
  if (dtype == DType::kBF16) v = {bfloats_to_halves(v.x), bfloats_to_halves(v.y)};
  return v;
}

// The 16-bit rows of one side in one step of a unit. Every lane takes part in every call.
template <typename Config>
struct RowSource {
  static constexpr int32_t kPages = kStepTokens / format::kWindowPageTokens;
  const uint16_t* pages;    // of the layer, at the KV head
  const uint16_t* new_row;  // of the KV head
  int64_t page_stride;
  int32_t page_of_lane;  // lanes 0 .. kPages - 1: the page of tokens 16 lane .. 16 lane + 15 of the step
  int32_t n_window;      // tokens of the step before the new one

  __device__ RowSource(const DecodeArgs& args, const format::WindowPolicy& policy,
                       const TensorView<const int32_t, 2>& table, const uint16_t* new_rows, int64_t new_stride,
                       const SequenceWork& work, int32_t b, int32_t kv_head, int32_t step)
      : pages(reinterpret_cast<const uint16_t*>(args.cache.window_pages) +
              int64_t{kv_head} * format::kWindowPageTokens * Config::kHeadDim),
        new_row(new_rows + work.row * new_stride + int64_t{kv_head} * Config::kHeadDim),
        page_stride(args.cache.window_stride / 2) {
    const bool in_sinks = step < work.sink_steps;
    const int32_t first = in_sinks ? step : step - work.sink_steps;
    n_window = work.n_past - (in_sinks ? 0 : work.sinks) - first * kStepTokens;
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarpLanes;
    const auto slots = static_cast<int32_t>(table.shape[1]);
    const int32_t page = first * kPages + lane;
    const int32_t slot = in_sinks ? page : policy.sink_slots() + page % (slots - policy.sink_slots());
    page_of_lane = lane < kPages && slot < slots ? __ldg(table.data + int64_t{b} * table.stride[0] + slot) : 0;
  }

  // Rows of tokens that follow each other in one page: row(k), with k counted from the first.
  struct Run {
    const uint16_t* stored;
    const uint16_t* new_row;
    int32_t n_stored;
    // Tokens beyond the new one give the new one.
    __device__ const uint16_t* row(int32_t k) const { return k < n_stored ? stored + k * Config::kHeadDim : new_row; }
  };
  __device__ Run run(int32_t token) const {
    const int32_t page = __shfl_sync(kAllLanes, page_of_lane, token / format::kWindowPageTokens);
    return {pages + page * page_stride + token % format::kWindowPageTokens * Config::kHeadDim, new_row,
            n_window - token};
  }
};

// What a warp keeps of a unit: queries, and the online softmax over the steps that it has seen.
template <typename Config>
struct UnitState {
  static constexpr int kTiles = Config::kChannelTiles;
  // Scores are kept as products with codes come out: q carries 2^kQueryShift at place 0 (more would overflow earlier,
  // less would lose small q * scale), codes 2^-24.
  static constexpr int kQueryShift = 1;
  static constexpr float kScoreUnit = Config::kPacked ? 0x1p-23F : 1.0F;

  uint32_t q[2 * kTiles];  // operand B of every channel tile
  float out[kTiles][4];    // channels of the tile x heads
  float sums[4];           // [0], [1]: of zeros, row r is channel group r; [2], [3]: softmax totals
  float maximum[2];        // of log2 scores, heads 2j and 2j + 1
  bool in_code_units;      // out is scaled as products with codes are

  __device__ void begin(const uint16_t* q_rows, int32_t n_heads, DType dtype) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
    const uint16_t* row = q_rows + lane / 4 % n_heads * Config::kHeadDim + 8 * (lane % 4);
#pragma unroll
    for (int i = 0; i < Config::kChannelSpans; ++i) {
      const uint4 v = load_halves_16(row + i * format::kTileSpan, dtype);
      q[4 * i] = v.x;
      q[4 * i + 1] = v.y;
      q[4 * i + 2] = v.z;
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
      constexpr int kInByte = Config::kPacked ? 8 / Config::kValueBits : 1;
      const int exponent = 24 - Config::kValueBits * (t % kInByte);
      const float factor = __int_as_float((127 + (codes ? -exponent : exponent)) << 23);
      for (float& x : out[t]) x *= factor;
    }
  }

  // q as operand B of codes in tile t: with the inverse of their place's power of two.
  __device__ __forceinline__ uint32_t scaled_q(int t, int half, uint32_t scale) const {
    constexpr int kInByte = Config::kPacked ? 8 / Config::kKeyBits : 1;
    static_assert(kTiles % kInByte == 0, "the place of a code must depend on its channel tile alone");
    const int exponent = kQueryShift - Config::kKeyBits * (t % kInByte);
    return multiply_halves(q[2 * t + half], multiply_halves(scale, halves_of_power(exponent)));
  }
};

// The ring of packed halves of one warp. Halves are asked for and taken in the same order.
template <typename Config>
struct HalfRing {
  uint32_t base;  // shared address
  int slot = 0;   // the oldest

  __device__ HalfRing(void* shared, int warp)
      : base(shared_address(shared) + warp * Config::kSlots * Config::kSlotBytes) {}

  __device__ void fill(int at, const std::byte* from, int bytes) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
    const uint32_t to = base + at * Config::kSlotBytes;
    const uint64_t policy = evict_first_policy();
#pragma unroll
    for (int i = 0; i < Config::kSlotBytes; i += 16 * kWarpLanes) {
      const int offset = i + 16 * lane;
      if (offset < bytes) copy_async_16(to + offset, from + offset, policy);
    }
  }
  // The oldest half; every lane may read it.
  __device__ uint32_t wait() const {
    wait_copies<Config::kSlots - 1>();
    __syncwarp();
    return base + slot * Config::kSlotBytes;
  }
  // The oldest half, or one after it, with all that were asked for.
  __device__ uint32_t wait_all(int which) const {
    wait_copies<0>();
    __syncwarp();
    return base + (slot + which) % Config::kSlots * Config::kSlotBytes;
  }
};

// What a warp keeps in shared memory: it is looked at once a step, and registers are for the arithmetic.
struct WarpMemory {
  WorkBegin begin;
  WorkBegin end;
  SequenceWork computed;  // the sequence that is computed
  SequenceWork streamed;  // the one whose pages are asked for, the same or a later one
};

// Walks the packed halves of a warp's stretch ahead of the computation, and keeps the ring full.
template <typename Config>
struct HalfStream {
  const DecodeArgs& args;
  WarpMemory& memory;
  HalfRing<Config> ring;
  int32_t unit;
  int32_t b = -1;
  int32_t page = 0;  // the next one, of the unit
  int32_t page_end = 0;
  int32_t page_id = 0;  // of `page`, loaded a page ahead
  bool values = false;  // the next half

  __device__ HalfStream(const DecodeArgs& args_, WarpMemory& memory_, void* ring_memory, int warp)
      : args(args_), memory(memory_), ring(ring_memory, warp), unit(memory_.begin.unit) {
    const int32_t first = memory.begin.step;
    if (unit < memory.end.unit || first < memory.end.step) enter(first);
    seek();
#pragma unroll
    for (int s = 0; s < Config::kSlots; ++s) ask(s);
  }

  __device__ const int32_t* table_row() const {
    return args.cache.packed_table.data + int64_t{b} * args.cache.packed_table.stride[0];
  }
  // Makes `unit` from its step `first` on the current one.
  __device__ void enter(int32_t first) {
    const int32_t sequence = unit / args.units_per_sequence();
    if (sequence != b) {
      b = sequence;
      const SequenceWork work = sequence_work(args.cache, args.seq_begin, b);
      __syncwarp();
      memory.streamed = work;  // every lane writes the same
      __syncwarp();
    }
    const SequenceWork& work = memory.streamed;
    const int32_t last = unit == memory.end.unit ? memory.end.step : work.n_steps;
    const int32_t packed_pages = (max(work.key_packed, work.value_packed) + kStepTokens - 1) / kStepTokens;
    page = max(first - work.sink_steps, 0);
    page_end = min(last - work.sink_steps, packed_pages);
    if (page < page_end) page_id = __ldg(table_row() + page);
  }
  // To a unit that has pages left.
  __device__ void seek() {
    while (page >= page_end && unit < memory.end.unit) {
      ++unit;
      if (unit == memory.end.unit && memory.end.step == 0) return;
      enter(0);
    }
  }
  __device__ void ask(int at) {
    if (page < page_end) {
      const format::PageLayout& layout = args.cache.layout;
      const int kv_head = unit % args.units_per_sequence() / args.groups_per_kv;
      const std::byte* block =
          args.cache.packed_pages + page_id * args.cache.packed_stride + kv_head * layout.block_bytes();
      const auto keys = static_cast<int>(layout.value_codes());
      const bool has_values = page * kStepTokens < memory.streamed.value_packed;
      if (!values && page * kStepTokens < memory.streamed.key_packed) {
        ring.fill(at, block, keys);
        values = has_values;
      } else {
        ring.fill(at, block + keys, static_cast<int>(layout.payload_bytes()) - keys);
        values = false;
      }
      if (!values) {
        ++page;
        if (page < page_end) {
          page_id = __ldg(table_row() + page);
        } else {
          seek();
        }
      }
    }
    commit_copies();
  }
  __device__ uint32_t wait() const {
    return ring.wait();
  }
  __device__ uint32_t wait_all(int which = 0) const {
    return ring.wait_all(which);
  }
  // The oldest half has been read by this lane.
  __device__ void release() {
    __syncwarp();
    ask(ring.slot);
    ring.slot = ring.slot + 1 == Config::kSlots ? 0 : ring.slot + 1;
  }
};

}  // namespace kivi::cuda
