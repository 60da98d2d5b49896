// Linked in where the build has no CUDA.
#include "backend/cuda_factory.h"

#include "core/error.h"

namespace kivi {

std::vector<std::string> cuda_devices() {
  return {};
}

std::unique_ptr<Backend> make_cuda_backend(int /*device*/, DType /*dtype*/, void* /*stream*/) {
  fail(ErrorCode::kUnsupported,
       "device cuda: this kivi was built without CUDA; use --device cpu, or build with -DKIVI_CUDA=ON");
}

}  // namespace kivi
