// A row of the kernel table of decode attention, and what follows from it when compiling.
#pragma once

#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/kernels/decode_args.cuh"
#include "format/fragment_order.h"

namespace kivi::cuda {

// Bits 0: that side is never packed. Group 0: any multiple of 32, read from the layout.
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

  // Pieces that the ring holds: a packed half (the narrowest group has the most scales), or the 16-bit rows of a span.
  static constexpr int half_bytes(int bits) {
    constexpr int kNarrowest = kGroup == 0 ? format::kTileSpan : kGroup;
    return bits == 0 ? 0 : kStepTokens * kHeadDim * bits / 8 + 4 * kStepTokens * kHeadDim / kNarrowest;
  }
  static constexpr bool kExact = kGroup != 0;  // halves have exactly these sizes
  static constexpr int kKeysBytes = half_bytes(kKeyBits);
  static constexpr int kValuesBytes = half_bytes(kValueBits);
  static constexpr int kRowBytes = 2 * kHeadDim;
  static constexpr int kRowsBytes = format::kTileSpan * kRowBytes;
  static constexpr int kHalfBytes = kKeysBytes > kValuesBytes ? kKeysBytes : kValuesBytes;
  static constexpr int kSlotBytes = kHalfBytes > kRowsBytes ? kHalfBytes : kRowsBytes;
  static constexpr int kWarps = kHeadDim <= 128 ? 8 : 4;
  // As many slots as fit, up to four. The part of a unit that a warp ends with is kept in its slots.
  static constexpr int kRingBytes = 208 * 1024;
  static constexpr int kFitting = kRingBytes / (kWarps * kSlotBytes);
  static constexpr int kSlots = kFitting < 4 ? kFitting : 4;
  static constexpr int kSharedBytes = kWarps * kSlots * kSlotBytes;
  static_assert(kSlots >= 2 && kSlots * kSlotBytes >= kHeadsPerUnit * kHeadDim * 4);
};

// Lane 4r + j of a warp.
struct Lane {
  int id = static_cast<int>(threadIdx.x) % kWarpLanes;
  int r = static_cast<int>(threadIdx.x) % kWarpLanes / 4;
  int j = static_cast<int>(threadIdx.x) % 4;
};

// Groups of a side, in spans of 32 numbers: constants for kGroup, else as the arguments say.
template <typename Config>
struct Groups {
  const DecodeArgs& args;

  __device__ int key_spans() const { return Config::kGroup != 0 ? Config::kGroup / format::kTileSpan : args.key_spans; }
  __device__ int value_spans() const {
    return Config::kGroup != 0 ? Config::kGroup / format::kTileSpan : args.value_spans;
  }
  // Counts of groups; spans in a group are a power of two.
  __device__ int n_keys() const { return Config::kTokenSpans >> log2(key_spans()); }
  __device__ int n_values() const { return Config::kChannelSpans >> log2(value_spans()); }
  __device__ int key_group(int span) const { return span >> log2(key_spans()); }
  __device__ int value_group(int span) const { return span >> log2(value_spans()); }
  __device__ bool begins_key_group(int span) const { return (span & (key_spans() - 1)) == 0; }
  __device__ bool begins_value_group(int span) const { return (span & (value_spans() - 1)) == 0; }

 private:
  __device__ static constexpr int log2(int x) { return x >= 8 ? 3 : x >= 4 ? 2 : x >= 2 ? 1 : 0; }
};

// One step of a unit. Keys and values are packed for the first tokens, in 16 bits for the others.
struct StepTokens {
  int32_t n;             // valid ones
  int32_t key_packed;    // a multiple of kTileSpan
  int32_t value_packed;  // at most n

  StepTokens() = default;
  __device__ StepTokens(const SequenceWork& work, int32_t step) {
    const bool in_sinks = step < work.sink_steps;
    const int32_t first = (in_sinks ? step : step - work.sink_steps) * kStepTokens;
    const auto in_step = [first](int32_t count) { return max(min(count - first, kStepTokens), 0); };
    n = in_step(in_sinks ? work.sinks : work.n_paged);
    key_packed = in_sinks ? 0 : in_step(work.key_packed);
    value_packed = in_sinks ? 0 : in_step(work.value_packed);
  }
  __device__ bool all_packed() const { return min(key_packed, value_packed) == kStepTokens; }
  __device__ bool has_value_rows(int span) const {
    return (span + 1) * format::kTileSpan > value_packed && span * format::kTileSpan < n;
  }
};

}  // namespace kivi::cuda
