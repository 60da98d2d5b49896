// Stands for the backend's header where kernels are emulated: no compiler but nvcc knows <<<>>>.
#pragma once

#include <cuda_runtime.h>

#include <string_view>

#include "backend/cuda/device/check.h"

namespace kivi::cuda {

template <typename... Parameters, typename... Args>
void launch(std::string_view name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, const Args&... args) {
  emulation::launch(stream, {grid, block, shared_bytes}, [=] { kernel(args...); });
  check_launch(name);
}

}  // namespace kivi::cuda
