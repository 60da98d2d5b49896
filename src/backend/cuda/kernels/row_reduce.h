// The operations that reduce rows. Each checks its shapes as backend.h says and asks its kernel of the stream; rows of
// all views may be strided.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"

namespace kivi::cuda {

void norm(const NormArgs& args, cudaStream_t stream);
void argmax(const ArgmaxArgs& args, cudaStream_t stream);

}  // namespace kivi::cuda
