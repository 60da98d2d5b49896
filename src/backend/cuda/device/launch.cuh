// The one way kernels are launched.
#pragma once

#include <cuda_runtime.h>

#include <string_view>

#include "backend/cuda/device/check.h"

namespace kivi::cuda {

// kernel<<<...>>>(args...), checked; more shared memory than every kernel may have is asked for first.
template <typename... Parameters, typename... Args>
void launch(std::string_view name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, const Args&... args) {
  constexpr size_t kUnasked = size_t{48} << 10;
  if (shared_bytes > kUnasked) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          name);
  }
  kernel<<<grid, block, shared_bytes, stream>>>(args...);
  check_launch(name);
}

}  // namespace kivi::cuda
