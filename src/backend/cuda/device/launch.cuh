// The ways kernels are launched.
#pragma once

#include <cuda_runtime.h>

#include <string_view>

#include "backend/cuda/device/check.h"

namespace kivi::cuda {

// kEarly: blocks may take their places while the kernel before this one in the stream ends ("programmatic dependent
// launch"), which hides 1 to 2 us. The kernel calls begin_early() (ptx.cuh) before it touches memory.
enum class Start : uint8_t { kAfterFormer, kEarly };

// kernel<<<...>>>(args...), checked; more shared memory than every kernel may have is asked for first.
template <Start kStart = Start::kAfterFormer, typename... Parameters, typename... Args>
void launch(std::string_view name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, const Args&... args) {
  constexpr size_t kUnasked = size_t{48} << 10;
  if (shared_bytes > kUnasked) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          name);
  }
  int device = 0;
  int major = 0;
  check(cudaGetDevice(&device), name);
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), name);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = kStart == Start::kEarly && major >= 9 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(args)...), name);
}

}  // namespace kivi::cuda
