#include "backend/cuda_factory.h"

#include <fmt/format.h>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/gpus.h"

namespace kivi {

std::vector<std::string> cuda_devices() {
  std::vector<std::string> devices;
  const cuda::Gpus gpus = cuda::find_gpus();
  for (size_t i = 0; i < gpus.capabilities.size(); ++i) {
    if (gpus.capabilities[i] >= cuda::kLeastCapability) devices.push_back(fmt::format("cuda:{}", i));
  }
  return devices;
}

std::unique_ptr<Backend> make_cuda_backend(int device, DType dtype, void* stream) {
  cuda::require_usable(cuda::find_gpus(), device);
  return cuda::make_backend(device, dtype, static_cast<cudaStream_t>(stream));
}

}  // namespace kivi
