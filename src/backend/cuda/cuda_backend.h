// The backend of an NVIDIA GPU of compute capability 8.0 or higher: weights, activations and window in f16 or bf16, f32
// residual stream and sums. All operations run in one stream; copies to the host and synchronize() wait for it. An
// object is used by one thread at a time, any thread.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "backend/backend.h"

namespace kivi::cuda {

// `device`: an index of cudaGetDeviceCount, of sufficient capability. dtype: f16 or bf16. stream: of that device, must
// outlive the backend; null: one of its own.
std::unique_ptr<Backend> make_backend(int device, DType dtype, cudaStream_t stream);

}  // namespace kivi::cuda
