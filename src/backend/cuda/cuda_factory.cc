#include "backend/cuda_factory.h"

#include <fmt/format.h>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device/check.h"
#include "core/error.h"

namespace kivi {
namespace {

constexpr int kLeastCapability = 80;  // 8.0: Ampere

// How many GPUs the driver shows, and where there are none, why.
struct Gpus {
  int n = 0;
  std::string why_none;
};

Gpus find_gpus() {
  Gpus gpus;
  const cudaError_t error = cudaGetDeviceCount(&gpus.n);
  if (error == cudaSuccess) return gpus;
  cudaGetLastError();  // it is told here
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
    return {.n = 0, .why_none = "no NVIDIA driver is loaded"};
  return {.n = 0, .why_none = cudaGetErrorString(error)};
}

// 90 for compute capability 9.0.
int capability(int device) {
  int major = 0;
  int minor = 0;
  cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the GPU's kind");
  cuda::check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the GPU's kind");
  return 10 * major + minor;
}

}  // namespace

std::vector<std::string> cuda_devices() {
  std::vector<std::string> devices;
  const Gpus gpus = find_gpus();
  for (int i = 0; i < gpus.n; ++i) {
    if (capability(i) >= kLeastCapability) devices.push_back(fmt::format("cuda:{}", i));
  }
  return devices;
}

std::unique_ptr<Backend> make_cuda_backend(int device, DType dtype) {
  const Gpus gpus = find_gpus();
  if (gpus.n == 0) {
    fail(ErrorCode::kUnsupported, "device cuda:{}: there is no NVIDIA GPU to use ({}); use --device cpu", device,
         gpus.why_none);
  }
  if (device >= gpus.n) {
    fail(ErrorCode::kUnsupported, "device cuda:{}: this machine has cuda:0 to cuda:{}", device, gpus.n - 1);
  }
  if (const int is = capability(device); is < kLeastCapability) {
    fail(ErrorCode::kUnsupported,
         "device cuda:{}: its compute capability is {}.{}, at least {}.{} is needed; use --device cpu", device, is / 10,
         is % 10, kLeastCapability / 10, kLeastCapability % 10);
  }
  return cuda::make_backend(device, dtype);
}

}  // namespace kivi
