// A step of decoding in which more sequences flush than a list of store.cu holds (1,024), on the emulated GPUs against
// the reference.
#include <gtest/gtest.h>

#include <vector>

#include "lockstep.h"

namespace kivi::parity {
namespace {

TEST(ManyFlushes, AreAllStored) {
  constexpr int kSequences = 1100;
  for (const Family& family : find_families()) {
    if (family.order != format::CodeOrder::kFragment || family.dtype != DType::kF16) continue;
    Lockstep lockstep({"kivi2:residual=32", 64, 1, 1}, family, kSequences, 64, 5);
    lockstep.step(std::vector<int>(kSequences, 31), Numbers::kLoud);
    lockstep.step(std::vector<int>(kSequences, 1), Numbers::kLoud);
    return;
  }
  FAIL() << "there is no emulated GPU";
}

}  // namespace
}  // namespace kivi::parity
