// Every call of CUDA goes through check(): a failure becomes an Error that names the operation.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

namespace kivi::cuda {

[[noreturn]] void fail_cuda(cudaError_t error, std::string_view operation);

// Throws Error{kInternal}, or Error{kOutOfMemory}, unless `error` is success. Kernels run later than they are launched:
// what one of them did wrong may show at a later operation only, and the message says so.
inline void check(cudaError_t error, std::string_view operation) {
  if (error != cudaSuccess) fail_cuda(error, operation);
}

// After every launch.
inline void check_launch(std::string_view kernel) {
  check(cudaGetLastError(), kernel);
}

}  // namespace kivi::cuda
