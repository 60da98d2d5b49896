#include <algorithm>
#include <map>

#include "backend/cuda/device/buffer.h"
#include "backend/cuda/device/launch.cuh"
#include "backend/cuda/device/ptx.cuh"
#include "backend/cuda/device/read_speeds.h"
#include "core/error.h"

namespace kivi::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kVectorsUnderWay = 8;  // of a thread
constexpr int64_t kShareBytes = int64_t{2} << 20;
constexpr int kRounds = 7;
constexpr double kFast = 0.9;  // of the time that most take

struct ReadTime {
  uint32_t multiprocessor;
  uint32_t nanoseconds;
};

// Grid: a block a multiprocessor, which reads a share of its own, all at the same time.
__global__ void __launch_bounds__(kThreads) read_share(const uint4* memory, ReadTime* times) {
  const uint4* share = memory + int64_t{blockIdx.x} * (kShareBytes / 16);
  const uint64_t begin = nanoseconds();
  uint32_t sum = 0;
  for (int64_t i = threadIdx.x; i < kShareBytes / 16; i += int64_t{kVectorsUnderWay} * kThreads) {
    uint4 vectors[kVectorsUnderWay];
#pragma unroll
    for (int k = 0; k < kVectorsUnderWay; ++k) vectors[k] = __ldcs(share + i + k * kThreads);
#pragma unroll
    for (const uint4& v : vectors) sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  const bool unlikely = __syncthreads_or(sum == 0x5EED) != 0;  // so that the sum is needed
  if (threadIdx.x == 0) {
    times[blockIdx.x] = {multiprocessor(), static_cast<uint32_t>(nanoseconds() - begin) + (unlikely ? 1U : 0U)};
  }
}
static_assert(kShareBytes / 16 % (kVectorsUnderWay * kThreads) == 0);

template <typename T>
T median(std::vector<T> numbers) {
  const auto middle = numbers.begin() + std::ssize(numbers) / 2;
  std::ranges::nth_element(numbers, middle);
  return *middle;
}

}  // namespace

std::vector<int> find_fast_multiprocessors(const Stream& stream) {
  int n = 0;
  int most_shared = 0;
  check(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, stream.device()),
        "asking for the GPU's multiprocessors");
  check(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device()),
        "asking for the GPU's shared memory");
  const int64_t bytes = n * kShareBytes;
  if (free_memory(stream) < static_cast<size_t>(4 * bytes)) return {};
  const DeviceBuffer memory(static_cast<size_t>(bytes), stream);
  const DeviceBuffer times(static_cast<size_t>(n) * sizeof(ReadTime), stream);
  std::map<int, std::vector<uint32_t>> by_multiprocessor;
  std::vector<ReadTime> round(static_cast<size_t>(n));
  for (int i = 0; i < kRounds; ++i) {
    // Of so much shared memory two blocks find no room on a multiprocessor.
    launch("read_share", read_share, n, kThreads, static_cast<size_t>(most_shared), stream.enter(),
           reinterpret_cast<const uint4*>(memory.data()), reinterpret_cast<ReadTime*>(times.data()));
    check(cudaMemcpyAsync(round.data(), times.data(), round.size() * sizeof(ReadTime), cudaMemcpyDeviceToHost,
                          stream.enter()),
          "reading times");
    stream.synchronize();
    for (const ReadTime& t : round) by_multiprocessor[static_cast<int>(t.multiprocessor)].push_back(t.nanoseconds);
  }
  std::vector<uint32_t> all;
  for (auto& [id, times_of] : by_multiprocessor) all.push_back(median(times_of));
  const double usual = median(all);
  std::vector<int> fast;
  for (auto& [id, times_of] : by_multiprocessor) {
    if (median(times_of) < kFast * usual) fast.push_back(id);
  }
  return fast;
}

}  // namespace kivi::cuda
