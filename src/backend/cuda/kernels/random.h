// Random numbers, for models that are only there to be timed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"

namespace kivi::cuda {

// out[i] of n, of a 16-bit dtype: drawn evenly from -scale to scale; a function of seed and i alone, the same as on the
// CPU but for its rounding.
void fill_random(void* out, DType dtype, int64_t n, float scale, uint64_t seed, cudaStream_t stream);

}  // namespace kivi::cuda
