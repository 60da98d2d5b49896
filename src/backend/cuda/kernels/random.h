// Random numbers, for models that are only there to be timed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/half.h"

namespace kivi::cuda {

// out[i] of n: drawn evenly from -scale to scale; a function of seed and i alone, the same as on the CPU.
void fill_random(Half* out, int64_t n, float scale, uint64_t seed, cudaStream_t stream);

}  // namespace kivi::cuda
