// Backend::sum_words on a GPU: memory read at the rate that it gives.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"

namespace kivi::cuda {

void sum_words(const SumWordsArgs& args, int device, cudaStream_t stream);

}  // namespace kivi::cuda
