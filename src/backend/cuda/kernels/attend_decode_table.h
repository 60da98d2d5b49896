// The kernel table of decode attention: which (head_dim, key bits, value bits, group) are compiled, and which of them
// for layers that slide or cap their scores, too.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "format/page_layout.h"

namespace kivi::cuda {

struct DecodeArgs;

struct DecodeLaunch {
  int n_warps;  // of a block
  void (*run)(const DecodeArgs& args, int n_blocks, cudaStream_t stream);
};

// A row. Bits 0: that side is never packed. Group 0: any multiple of 32 that the format allows. Byte params: keys in
// groups of `group`, values in the widest that this and the head allow.
struct DecodeKernel {
  int head_dim;
  int key_bits;
  int value_bits;
  int group;
  format::ParamFormat params;
  bool is_general;      // may slide, may cap
  DecodeLaunch wide;    // compute capability 9.0 and more
  DecodeLaunch narrow;  // less
};

// One file a head_dim and format of params, attend_decode_NNN_FORMAT.cu. The first row that fits is the fastest.
std::span<const DecodeKernel> decode_kernels_64_half();
std::span<const DecodeKernel> decode_kernels_64_byte();
std::span<const DecodeKernel> decode_kernels_128_half();
std::span<const DecodeKernel> decode_kernels_128_byte();
std::span<const DecodeKernel> decode_kernels_256_half();
std::span<const DecodeKernel> decode_kernels_256_byte();

}  // namespace kivi::cuda
