#include <array>

#include "backend/cuda/kernels/attend_decode.cuh"
#include "backend/cuda/kernels/attend_decode_table.h"

namespace kivi::cuda {

std::span<const DecodeKernel> decode_kernels_128_byte() {
  static const auto kernels = byte_kernels<128>();
  return kernels;
}

}  // namespace kivi::cuda
