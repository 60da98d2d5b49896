#include "backend/cuda/device/check.h"

#include "core/error.h"

namespace kivi::cuda {
namespace {

// Whether the fault can be that of a kernel launched before the call that reports it.
bool may_be_earlier(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

}  // namespace

void fail_cuda(cudaError_t error, std::string_view operation) {
  cudaGetLastError();                        // it is told here: the next launch must not report it again
  if (error == cudaErrorMemoryAllocation) {  // of what CUDA allocates itself: kernels, recordings
    fail(ErrorCode::kOutOfMemory, "{}: the GPU has no memory left for it; lower --memory-fraction", operation);
  }
  fail(ErrorCode::kInternal, "{}{}: the GPU reports {} ({})", operation,
       may_be_earlier(error) ? ", or an operation before it" : "", cudaGetErrorName(error), cudaGetErrorString(error));
}

}  // namespace kivi::cuda
