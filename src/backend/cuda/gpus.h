// The GPUs of this machine, and whether the backend runs on one of them.
#pragma once

#include <string>
#include <vector>

namespace kivi::cuda {

inline constexpr int kLeastCapability = 80;  // 8.0: Ampere

struct Gpus {
  std::vector<int> capabilities{};  // by index: 90 for compute capability 9.0
  std::string why_none{};           // where there are none
};

// Asks the driver; a machine without one has no GPUs.
Gpus find_gpus();

// Throws Error{kUnsupported} saying why GPU `index` cannot be used, if it cannot.
void require_usable(const Gpus& gpus, int index);

}  // namespace kivi::cuda
