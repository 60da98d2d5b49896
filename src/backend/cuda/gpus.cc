#include "backend/cuda/gpus.h"

#include "backend/cuda/device/check.h"
#include "core/error.h"

namespace kivi::cuda {
namespace {

std::string cuda_version(int number) {
  return fmt::format("{}.{}", number / 1000, number % 1000 / 10);
}

std::string why_none(cudaError_t error) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "no NVIDIA driver is loaded";
  if (error == cudaErrorInsufficientDriver) {
    return fmt::format("the NVIDIA driver is for CUDA {}, and this kivi needs one for CUDA {}", cuda_version(driver),
                       cuda_version(CUDART_VERSION));
  }
  return cudaGetErrorString(error);
}

int capability(int device) {
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the GPU's kind");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the GPU's kind");
  return 10 * major + minor;
}

}  // namespace

Gpus find_gpus() {
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  cudaGetLastError();  // it is told here
  if (error != cudaSuccess) return {.why_none = why_none(error)};
  Gpus gpus{.why_none = "the driver shows none"};
  for (int i = 0; i < n; ++i) gpus.capabilities.push_back(capability(i));
  return gpus;
}

void require_usable(const Gpus& gpus, int index) {
  const auto n = static_cast<int>(gpus.capabilities.size());
  if (n == 0) {
    fail(ErrorCode::kUnsupported, "device cuda:{}: there is no NVIDIA GPU to use ({}); use --device cpu", index,
         gpus.why_none);
  }
  if (index >= n) {
    fail(ErrorCode::kUnsupported, "device cuda:{}: this machine has cuda:0{}", index,
         n == 1 ? "" : fmt::format(" to cuda:{}", n - 1));
  }
  const int is = gpus.capabilities[static_cast<size_t>(index)];
  if (is < kLeastCapability) {
    fail(ErrorCode::kUnsupported,
         "device cuda:{}: its compute capability is {}.{}, at least {}.{} is needed; use --device cpu", index, is / 10,
         is % 10, kLeastCapability / 10, kLeastCapability % 10);
  }
}

}  // namespace kivi::cuda
