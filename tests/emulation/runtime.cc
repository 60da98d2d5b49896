// CUDA's runtime on the CPU. An operation of a stream waits in its queue until something has to wait for it: what does
// not wait where it should sees what was there before.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <new>
#include <set>
#include <utility>
#include <vector>

using Operations = std::deque<std::function<void()>>;

struct CUgraph_st {
  Operations operations;
};
struct CUgraphExec_st {
  Operations operations;
};
struct CUstream_st {
  explicit CUstream_st(int device_) : device(device_) {}

  const int device;
  Operations queue;
  std::unique_ptr<CUgraph_st> recorded;  // while operations are being recorded

  void run_next() {
    queue.front()();
    queue.pop_front();
  }
  void run() {
    while (!queue.empty()) run_next();
  }
};
struct CUevent_st {
  CUstream_st* stream = nullptr;
  int n_ahead = 0;  // places in the queue where it is recorded
};

namespace {

// Kernels may be made in two ways, for GPUs with more shared memory and with less (decode_config.cuh).
struct Gpu {
  int major;
  int minor;
  size_t shared_bytes;  // at most, of a block
};
constexpr Gpu kGpus[] = {{9, 0, size_t{227} << 10}, {8, 0, size_t{163} << 10}};
constexpr int kMultiprocessors = 3;  // few, but not one
constexpr size_t kMemoryBytes = size_t{8} << 30;
constexpr std::align_val_t kAlignment{256};

cudaError_t last_error = cudaSuccess;
int current_device = 0;
std::set<CUstream_st*> streams;
std::map<void*, size_t> allocations;  // of the device
size_t allocated = 0;

cudaError_t done(cudaError_t error = cudaSuccess) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

bool exists(int device) {
  return device >= 0 && device < static_cast<int>(std::size(kGpus));
}

// What waits for the whole device.
void run_streams() {
  for (CUstream_st* stream : streams) stream->run();
}

}  // namespace

namespace kivi::emulation {

void enqueue(cudaStream_t stream, std::function<void()> operation) {
  (stream->recorded ? stream->recorded->operations : stream->queue).push_back(std::move(operation));
}

void launch(cudaStream_t stream, const Grid& grid, std::function<void()> kernel) {
  constexpr unsigned kMost = 65535;
  const dim3& blocks = grid.blocks;
  const unsigned n_threads = grid.threads.x * grid.threads.y * grid.threads.z;
  const bool fits = blocks.x > 0 && blocks.y > 0 && blocks.z > 0 && blocks.y <= kMost && blocks.z <= kMost &&
                    n_threads > 0 && n_threads <= kMostThreads &&
                    grid.shared_bytes <= kGpus[stream->device].shared_bytes;
  if (!fits) {
    done(cudaErrorInvalidConfiguration);
    return;
  }
  enqueue(stream, [grid, run = std::move(kernel)] { run_grid(grid, run); });
}

}  // namespace kivi::emulation

using kivi::emulation::enqueue;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    default:
      return "an error that is not emulated";
  }
}
const char* cudaGetErrorString(cudaError_t) {
  return "of the emulated GPU";
}
cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}

// ---- Devices ----

cudaError_t cudaGetDeviceCount(int* n) {
  *n = static_cast<int>(std::size(kGpus));
  return done();
}
cudaError_t cudaSetDevice(int device) {
  if (!exists(device)) return done(cudaErrorInvalidDevice);
  current_device = device;
  return done();
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (!exists(device)) return done(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = kGpus[device].major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = kGpus[device].minor;
      break;
  }
  return done();
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*device*/) {
  *properties = {"emulated", kMemoryBytes, kMultiprocessors};
  return done();
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return done();
}

// ---- Memory ----

cudaError_t cudaMalloc(void** memory, size_t size) {
  constexpr int kPoison = 0xFF;
  if (size > kMemoryBytes - allocated) return done(cudaErrorMemoryAllocation);
  *memory = ::operator new(size, kAlignment);
  std::memset(*memory, kPoison, size);
  allocations[*memory] = size;
  allocated += size;
  return done();
}
cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return done();
  run_streams();
  const auto found = allocations.find(memory);
  if (found == allocations.end()) return done(cudaErrorInvalidValue);
  allocated -= found->second;
  allocations.erase(found);
  ::operator delete(memory, kAlignment);
  return done();
}
cudaError_t cudaHostAlloc(void** memory, size_t size, unsigned /*flags*/) {
  *memory = ::operator new(size, kAlignment);
  return done();
}
cudaError_t cudaFreeHost(void* memory) {
  run_streams();
  ::operator delete(memory, kAlignment);
  return done();
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = kMemoryBytes - allocated;
  *total = kMemoryBytes;
  return done();
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t size, cudaStream_t stream) {
  enqueue(stream, [=] { std::memset(memory, value, size); });
  return done();
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind /*kind*/, cudaStream_t stream) {
  enqueue(stream, [=] { std::memcpy(to, from, size); });
  return done();
}

// ---- Streams and events ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
  streams.insert(*stream = new CUstream_st(current_device));
  return done();
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  stream->run();
  streams.erase(stream);
  delete stream;
  return done();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  stream->run();
  return done();
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
  *event = new CUevent_st;
  return done();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  while (event->n_ahead > 0) event->stream->run_next();
  return done();
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  cudaEventSynchronize(event);
  delete event;
  return done();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->stream = stream;
  ++event->n_ahead;
  enqueue(stream, [event] { --event->n_ahead; });
  return done();
}

// ---- Graphs ----

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream->recorded ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return done();
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode /*mode*/) {
  if (stream->recorded) return done(cudaErrorInvalidValue);
  stream->recorded = std::make_unique<CUgraph_st>();
  return done();
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->recorded.release();
  return done();
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* /*nodes*/, size_t* n) {
  *n = graph->operations.size();
  return done();
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return done();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long /*flags*/) {
  *executable = new CUgraphExec_st{graph->operations};
  return done();
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return done();
}
cudaError_t cudaGraphUpload(cudaGraphExec_t /*executable*/, cudaStream_t /*stream*/) {
  return done();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& operation : executable->operations) enqueue(stream, operation);
  return done();
}
