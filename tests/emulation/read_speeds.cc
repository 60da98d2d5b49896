// The emulated device's multiprocessors are alike; that one is not is said so that the kernels' parts differ.
#include "backend/cuda/device/read_speeds.h"

namespace kivi::cuda {

std::vector<int> find_fast_multiprocessors(const Stream& /*stream*/) {
  return {1};
}

}  // namespace kivi::cuda
