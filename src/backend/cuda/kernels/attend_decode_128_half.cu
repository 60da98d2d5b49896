#include <array>

#include "backend/cuda/kernels/attend_decode.cuh"
#include "backend/cuda/kernels/attend_decode_table.h"

namespace kivi::cuda {

std::span<const DecodeKernel> decode_kernels_128_half() {
  static const auto kernels = half_kernels<128>();
  return kernels;
}

}  // namespace kivi::cuda
