// Backend::store_kv on a GPU: quantise and pack what leaves the windows, keep the rest in 16 bits.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"

namespace kivi::cuda {

// Packed pages are in CodeOrder::kFragment. One launch; nothing is read on the host but shapes. Throws
// Error{kUnsupported} listing what is compiled, Error{kInternal} on shapes that contradict each other.
void store_kv(const StoreKvArgs& args, cudaStream_t stream);

}  // namespace kivi::cuda
