#include "backend/cuda/device/buffer.h"

#include <algorithm>

#include "core/error.h"

namespace kivi::cuda {
namespace {

struct Memory {
  size_t free = 0;
  size_t total = 0;
};

Memory memory() {
  Memory m;
  check(cudaMemGetInfo(&m.free, &m.total), "asking for free memory");
  return m;
}

std::byte* allocate(size_t size, const Stream& stream) {
  const cudaStream_t queue = stream.enter();
  void* data = nullptr;
  const size_t size_or_one = std::max<size_t>(1, size);  // a view of nothing still has an address
  const cudaError_t error = cudaMalloc(&data, size_or_one);
  if (error == cudaErrorMemoryAllocation || error == cudaErrorInvalidValue) {
    cudaGetLastError();  // it is told here
    const Memory m = memory();
    fail(ErrorCode::kOutOfMemory,
         "{} bytes of memory of cuda:{}: {} of its {} are free; lower --memory-fraction, --context or the batch, or "
         "take a smaller --kv preset or model",
         size, stream.device(), m.free, m.total);
  }
  check(error, "allocating memory");
  check(cudaMemsetAsync(data, 0, size_or_one, queue), "clearing memory");
  return static_cast<std::byte*>(data);
}

}  // namespace

DeviceBuffer::DeviceBuffer(size_t size_bytes, const Stream& stream)
    : Buffer(allocate(size_bytes, stream), size_bytes) {}

DeviceBuffer::~DeviceBuffer() {
  cudaFree(data_);
}

size_t free_memory(const Stream& stream) {
  stream.enter();
  return memory().free;
}

}  // namespace kivi::cuda
