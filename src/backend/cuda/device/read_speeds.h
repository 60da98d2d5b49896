// Which multiprocessors of a GPU read memory faster than the others.
//
// Multiprocessors of a cluster share a path to memory. Where some of a cluster are switched off, as in most GPUs that
// are sold, each of the others has more of it: of an H100's 132 there are 26 that read a third more than the rest. Work
// that waits for memory is done sooner if they get more of it.
#pragma once

#include <vector>

#include "backend/cuda/device/stream.h"

namespace kivi::cuda {

// By %smid, in order; none where all are about alike, or memory is too short to find out. Takes a few milliseconds.
std::vector<int> find_fast_multiprocessors(const Stream& stream);

}  // namespace kivi::cuda
