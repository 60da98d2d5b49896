// A row of the kernel table of decode attention, and what follows from it when compiling.
#pragma once

#include <bit>

#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/kernels/decode_args.cuh"
#include "format/fragment_order.h"
#include "format/quantise.h"

namespace kivi::cuda {

// Bits 0: that side is never packed. Group 0: any multiple of 32, read from the layout; with byte params groups are as
// wide as kGroup and the head allow. kWide: for GPUs of compute capability 9.0 and more, whose blocks may have 227 KB
// of shared memory; others have 99 at least. kGeneral: for layers that slide or cap their scores, too, which costs the
// others 4 %.
template <int kHeadDim_, int kKeyBits_, int kValueBits_, int kGroup_, format::ParamFormat kParams_, bool kGeneral_,
          bool kWide_>
struct DecodeConfig {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kKeyBits = kKeyBits_;
  static constexpr int kValueBits = kValueBits_;
  static constexpr int kGroup = kGroup_;
  static constexpr int kValueGroup = kGroup < kHeadDim ? kGroup : kHeadDim;
  static constexpr bool kByteParams = kParams_ == format::ParamFormat::kByte;
  // log2 of the spans of 32 in a group.
  static constexpr int kKeyGroupShift = kGroup == 0 ? 0 : std::bit_width(unsigned{kGroup_} / format::kTileSpan) - 1;
  static constexpr int kValueGroupShift =
      kGroup == 0 ? 0 : std::bit_width(unsigned{kValueGroup} / format::kTileSpan) - 1;
  static constexpr bool kGeneral = kGeneral_;
  static constexpr bool kWide = kWide_;
  static constexpr bool kPacked = kKeyBits > 0 && kValueBits > 0;
  static constexpr int kChannelTiles = kHeadDim / format::kTile;
  static constexpr int kChannelSpans = kHeadDim / format::kTileSpan;

  // A piece of what is read, in a slot of shared memory: a packed step, where it has
  //   key codes | key scales [head_dim] | key zeros | value codes | value scales [groups][32] | value zeros
  // (with byte params the unit of the key zeros after them, and no value zeros), or a 16-bit page of one side and KV
  // head, or the queries of a unit. Codes are the low plane and then the high one, where there is one.
  static constexpr int kKeyLow = kStepTokens * kHeadDim * format::low_bits(kKeyBits) / 8;  // bytes
  static constexpr int kKeyCodes = kStepTokens * kHeadDim * kKeyBits / 8;
  static constexpr int kParamBytes = kByteParams ? 1 : 2;
  static constexpr int kKeyParams = kParamBytes * kHeadDim;  // scales; the zeros take the same
  static constexpr int kUnitBytes = kByteParams ? 16 : 0;
  static constexpr int kValueLow = kStepTokens * kHeadDim * format::low_bits(kValueBits) / 8;
  static constexpr int kValueCodes = kStepTokens * kHeadDim * kValueBits / 8;
  static constexpr int kValueParams = kParamBytes * kStepTokens;  // of one group
  static constexpr int kValueRows = kByteParams ? 1 : 2;          // of params: scales, and zeros
  static constexpr int kMostValueGroups = kGroup == 0 ? kChannelSpans : kHeadDim / kValueGroup;
  static constexpr int kPackedValuesAt = kKeyCodes + 2 * kKeyParams + kUnitBytes;
  static constexpr int kPackedBytes = kPackedValuesAt + kValueCodes + kValueRows * kMostValueGroups * kValueParams;
  static constexpr int kRowBytes = 2 * kHeadDim;
  static constexpr int kRowsBytes = format::kWindowPageTokens * kRowBytes;
  static constexpr int kPieceBytes = kPacked && kPackedBytes > kRowsBytes ? kPackedBytes : kRowsBytes;
  static constexpr int kNoteBytes = 32;  // a Piece
  static constexpr int kSlotBytes = kPieceBytes + kNoteBytes;

  // Registers are what limits warps. The part of a unit that a warp ends with is kept in its slots.
  static constexpr int kWarps = kWide && kHeadDim <= 128 ? 16 : kWide ? 8 : kHeadDim <= 128 ? 8 : 4;
  static constexpr int kRingBytes = (kWide ? 204 : 84) * 1024;
  static constexpr int kFitting = kRingBytes / (kWarps * kSlotBytes);
  static constexpr int kSlots = kFitting < 4 ? kFitting : 4;
  static constexpr int kSharedBytes = kWarps * kSlots * kSlotBytes;
  // What is kept leaves the notes of pieces alone. (Queries take half of that.)
  static_assert(kSlots >= 2 && kPieceBytes >= kHeadsPerUnit * kHeadDim * 4);
};

// Lane 4r + j of a warp. Divided without signs, which would take instructions and registers everywhere.
struct Lane {
  int id = static_cast<int>(threadIdx.x % kWarpLanes);
  int r = static_cast<int>(threadIdx.x % kWarpLanes / 4U);
  int j = static_cast<int>(threadIdx.x % 4U);
};

// Groups of values: constants for kGroup, else as the arguments say.
template <typename Config>
struct ValueGroups {
  const DecodeArgs& args;

  __device__ int shift() const { return Config::kGroup == 0 ? args.value_group_shift : Config::kValueGroupShift; }
  __device__ int count() const { return Config::kChannelSpans >> shift(); }
  __device__ int of(int channel_span) const { return channel_span >> shift(); }
  __device__ bool begins(int channel_span) const { return (channel_span & ((1 << shift()) - 1)) == 0; }
};

}  // namespace kivi::cuda
