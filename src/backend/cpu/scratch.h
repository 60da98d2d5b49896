// Working memory of a kernel, one per thread, kept for the next call: a fresh allocation of this size would cost page
// faults on every call.
#pragma once

#include <cstddef>

namespace kivi::cpu {

// At least n floats, aligned to 64 bytes, with undefined content; valid until this thread's next call.
float* thread_scratch(size_t n_floats);

}  // namespace kivi::cpu
