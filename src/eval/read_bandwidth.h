// The rate at which memory gives what nobody has read for a while.
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace kivi {

// Bytes a second of plain reads (Backend::sum_words) of n_bytes of random words; 0: 4 GiB of a GPU, if a quarter of
// what is free is as much, and 256 MiB elsewhere. Throws Error{kInternal} if something was not read,
// Error{kOutOfMemory}.
double measure_read_bandwidth(Backend& backend, int64_t n_bytes = 0);

}  // namespace kivi
