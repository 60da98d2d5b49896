// The decode attention kernel.
//
// Grid: one block a multiprocessor, kWarps warps. Each warp works alone on its stretch of the line of work
// (decode_work.cuh): it streams what it reads through slots of its own in shared memory (decode_stream.cuh) and keeps
// its own online softmax (decode_unit.cuh, decode_step.cuh). Only at the end do warps meet: those of a block merge the
// parts of a unit that they ended with, and the block that completes a unit merges the parts of all blocks.
//
// Scores are  S[token, head] = K q  and outputs  O[channel, head] = V^T p, both on m16n8k16 with the cache as operand A
// and up to 8 query heads of the KV head as B:
//   codes    masked in place they are subnormal binary16 numbers, code * 2^(bits * place - 24), which the tensor cores
//            multiply exactly. For keys q carries 2^-(bits * place), for values the accumulator is scaled at the end.
//   scales   go into B: q * scale, and p * scale for each value group.
//   zeros    are a product of their own: of keys they add the same to the scores of all tokens, so that the softmax
//            adds it; for values rows 0..7 of A have the zeros of channel group r, and rows 8..15 are ones, which gives
//            the softmax total.
// format/fragment_order.h has the places of codes, and of tokens and channels in tiles. Lane 4r + j throughout.
//
// Bytes read: everything of a unit once, but scales and zeros of keys once for every 32 tokens.
#pragma once

#include <array>
#include <type_traits>

#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/kernels/attend_decode_table.h"
#include "backend/cuda/kernels/decode_merge.cuh"
#include "backend/cuda/kernels/decode_step.cuh"

namespace kivi::cuda {

// Whether this pass of the compiler makes code for GPUs of the configuration.
template <typename Config>
#if defined(__CUDA_ARCH__)
inline constexpr bool kIsCompiled = Config::kWide == (__CUDA_ARCH__ >= 900);
#else
inline constexpr bool kIsCompiled = true;
#endif

template <typename Config>
__device__ __forceinline__ void run_attend_decode(const DecodeArgs& args) {
  std::byte* slots = dynamic_shared();
  __shared__ WarpMemory<Config> memories[Config::kWarps];
  __shared__ BlockParts<Config> parts;
  const Lane lane;
  const int warp_in_block = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int warp = static_cast<int>(blockIdx.x) * Config::kWarps + warp_in_block;
  WarpMemory<Config>& memory = memories[warp_in_block];
  parts.reset(warp_in_block);
  {
    constexpr int kInts = sizeof(WorkBegin) / sizeof(int32_t);
    static_assert(2 * kInts == kWarpLanes);
    // begin and end are neighbours there and here.
    reinterpret_cast<int32_t*>(&memory.begin)[lane.id] =
        reinterpret_cast<const int32_t*>(args.workspace.begins + warp)[lane.id];
  }
  __syncwarp();

  DecodeStream<Config> stream(args, memory, slots + warp_in_block * Config::kSlots * Config::kSlotBytes);
  UnitState<Config> state{};
  StepProbabilities p{};
#pragma unroll 1
  for (;; stream.advance()) {
    const Piece& piece = stream.wait();
    if (piece.kind == PieceKind::kEnd) break;
    if (piece.kind == PieceKind::kNone) continue;
    take_piece(state, piece, stream.address(), args, memory, p);
    if (piece.ends == 0) continue;
    finish_unit(args, memory, state, piece, slots, parts);
    // No registers need be kept of what ends here.
    state = {};
    p = {};
  }
  merge_parts<Config>(args, slots, parts);
}

template <typename Config>
__global__ void __launch_bounds__(Config::kWarps* kWarpLanes, 1)
    attend_decode(const __grid_constant__ DecodeArgs args) {
  if constexpr (kIsCompiled<Config>) run_attend_decode<Config>(args);
}

template <int kHeadDim, int kKeyBits, int kValueBits, int kGroup, format::ParamFormat kParams, bool kGeneral>
DecodeKernel decode_kernel() {
  constexpr auto launcher = []<bool kWide>(std::bool_constant<kWide>) {
    using Config = DecodeConfig<kHeadDim, kKeyBits, kValueBits, kGroup, kParams, kGeneral, kWide>;
    return DecodeLaunch{Config::kWarps, [](const DecodeArgs& args, int n_blocks, cudaStream_t stream) {
                          launch("attend_decode", attend_decode<Config>, n_blocks, Config::kWarps * kWarpLanes,
                                 Config::kSharedBytes, stream, args);
                        }};
  };
  return {kHeadDim,
          kKeyBits,
          kValueBits,
          kGroup,
          kParams,
          kGeneral,
          launcher(std::true_type{}),
          launcher(std::false_type{})};
}
template <int kHeadDim, int kKeyBits, int kValueBits, int kGroup, bool kGeneral = false>
DecodeKernel half_kernel() {
  return decode_kernel<kHeadDim, kKeyBits, kValueBits, kGroup, format::ParamFormat::kHalf, kGeneral>();
}
template <int kHeadDim, int kKeyBits, int kValueBits, bool kGeneral = false>
DecodeKernel byte_kernel() {
  return decode_kernel<kHeadDim, kKeyBits, kValueBits, 128, format::ParamFormat::kByte, kGeneral>();
}

template <int kHeadDim>
std::array<DecodeKernel, 9> half_kernels() {
  return {half_kernel<kHeadDim, 0, 0, 0>(),       half_kernel<kHeadDim, 2, 2, 32>(),
          half_kernel<kHeadDim, 2, 2, 0>(),       half_kernel<kHeadDim, 4, 4, 0>(),
          half_kernel<kHeadDim, 4, 2, 0>(),       half_kernel<kHeadDim, 2, 4, 0>(),
          half_kernel<kHeadDim, 0, 0, 0, true>(), half_kernel<kHeadDim, 2, 2, 0, true>(),
          half_kernel<kHeadDim, 4, 4, 0, true>()};
}
template <int kHeadDim>
std::array<DecodeKernel, 6> byte_kernels() {
  return {byte_kernel<kHeadDim, 3, 2>(),       byte_kernel<kHeadDim, 4, 2>(),
          byte_kernel<kHeadDim, 4, 3>(),       byte_kernel<kHeadDim, 3, 2, true>(),
          byte_kernel<kHeadDim, 4, 2, true>(), byte_kernel<kHeadDim, 4, 3, true>()};
}

}  // namespace kivi::cuda
