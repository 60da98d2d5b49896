#include "core/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

namespace kivi {
namespace {

TEST(ParallelFor, VisitsEveryIndexOnce) {
  for (const int64_t n : {0, 1, 7, 1000}) {
    std::vector<std::atomic<int>> visits(static_cast<size_t>(n));
    parallel_for(4, n, 3, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
    });
    for (const auto& count : visits) EXPECT_EQ(count, 1);
  }
}

TEST(ParallelFor, RethrowsAnException) {
  EXPECT_THROW(parallel_for(2, 100, 1,
                            [](int64_t begin, int64_t) {
                              if (begin == 37) throw std::runtime_error("37");
                            }),
               std::runtime_error);
}

TEST(ParallelFor, RunsManyJobsOfDifferentSizes) {
  for (int64_t job = 0; job < 20000; ++job) {
    const int64_t n = job % 23;
    std::atomic<int64_t> sum{0};
    parallel_for(1 + static_cast<int>(job % 5), n, 1 + job % 3, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum += i + job;
    });
    ASSERT_EQ(sum, n * (n - 1) / 2 + n * job);
  }
}

TEST(ParallelFor, UsesNoMoreThreadsThanAsked) {
  std::atomic<int> n_running{0};
  std::atomic<int> most{0};
  for (const int n_threads : {5, 2}) {
    most = 0;
    parallel_for(n_threads, 200, 1, [&](int64_t, int64_t) {
      const int running = ++n_running;
      int seen = most;
      while (running > seen && !most.compare_exchange_weak(seen, running)) {
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      --n_running;
    });
    EXPECT_LE(most, n_threads);
    EXPECT_GE(most, 1);
  }
}

TEST(ParallelFor, WorksInsideAnotherAndFromSeveralThreads) {
  std::atomic<int64_t> sum{0};
  const auto nested = [&] {
    parallel_for(3, 50, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        parallel_for(3, 10, 1, [&](int64_t b, int64_t e) { sum += e - b; });
      }
    });
  };
  std::thread other(nested);
  nested();
  other.join();
  EXPECT_EQ(sum, 2 * 50 * 10);
}

TEST(PhysicalCores, IsAtLeastOne) {
  EXPECT_GE(physical_cores(), 1);
}

}  // namespace
}  // namespace kivi
