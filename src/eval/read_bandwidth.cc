#include "eval/read_bandwidth.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "backend/tensor.h"
#include "core/error.h"
#include "eval/call_timer.h"

namespace kivi {
namespace {

constexpr int64_t kBlockWords = int64_t{4} << 20;
constexpr double kSampleSeconds = 0.02;
constexpr int kSamples = 9;

int64_t default_bytes(int64_t free_bytes) {
  return free_bytes == 0 ? int64_t{256} << 20 : std::min(int64_t{4} << 30, free_bytes / 4);
}

// What is copied over and over.
std::vector<uint32_t> random_block(int64_t n_words) {
  std::mt19937 random(1);
  std::vector<uint32_t> words(static_cast<size_t>(n_words));
  for (uint32_t& word : words) word = static_cast<uint32_t>(random());
  return words;
}

}  // namespace

double measure_read_bandwidth(Backend& backend, int64_t n_bytes) {
  if (n_bytes == 0) n_bytes = default_bytes(static_cast<int64_t>(backend.free_bytes()));
  const int64_t n_words = n_bytes / static_cast<int64_t>(sizeof(int32_t));
  const Tensor x(backend, DType::kI32, {n_words});
  const Tensor out(backend, DType::kI32, {1});
  const std::vector<uint32_t> block = random_block(std::min(n_words, kBlockWords));
  uint32_t wanted = 0;
  for (int64_t begin = 0; begin < n_words; begin += std::ssize(block)) {
    const int64_t n = std::min<int64_t>(std::ssize(block), n_words - begin);
    backend.copy_to_device(static_cast<int32_t*>(x.view().data) + begin, block.data(), n * sizeof(uint32_t));
    wanted = std::accumulate(block.begin(), block.begin() + n, wanted);
  }
  const CallTimer timer(
      backend, 1,
      [&](int64_t /*i*/) {
        backend.sum_words({x.view(), out.view()});
      },
      kSampleSeconds);
  const double seconds = timer.median_of(kSamples);
  uint32_t sum = 0;
  backend.copy_to_host(&sum, out.view().data, sizeof(sum));
  if (sum != wanted) fail(ErrorCode::kInternal, "sum_words: {} of {} words, wanted {}", sum, n_words, wanted);
  return static_cast<double>(n_words) * sizeof(int32_t) / seconds;
}

}  // namespace kivi
