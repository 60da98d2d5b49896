// Backend::attend on a GPU for sequences with more than one new token: prompts, and chunks that follow a stored past.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"

namespace kivi::cuda {

// Leaves the rows of sequences with one new token alone. q, out and the window have the same 16-bit dtype; packed pages
// are in CodeOrder::kFragment; softmax_scale is positive. One launch; nothing is read on the host but shapes. Throws
// Error{kUnsupported} listing what is compiled, Error{kInternal} on shapes that contradict each other.
void attend_chunk(const AttendArgs& args, cudaStream_t stream);

}  // namespace kivi::cuda
