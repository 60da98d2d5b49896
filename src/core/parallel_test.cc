#include "core/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
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

TEST(PhysicalCores, IsAtLeastOne) {
  EXPECT_GE(physical_cores(), 1);
}

}  // namespace
}  // namespace kivi
