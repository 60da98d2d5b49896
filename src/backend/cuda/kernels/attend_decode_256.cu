#include <array>

#include "backend/cuda/kernels/attend_decode.cuh"
#include "backend/cuda/kernels/attend_decode_table.h"

namespace kivi::cuda {

std::span<const DecodeKernel> decode_kernels_256() {
  static const auto kernels = decode_kernels<256>();
  return kernels;
}

}  // namespace kivi::cuda
