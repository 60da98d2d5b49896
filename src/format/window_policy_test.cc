#include "format/window_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>

namespace kivi::format {
namespace {

// The paper's state machine, one token at a time.
int64_t packed_by_hand(const WindowPolicy& policy, int64_t n_tokens) {
  int64_t window = 0;
  int64_t packed = 0;
  for (int64_t t = policy.sinks; t < n_tokens; ++t) {
    ++window;
    while (window >= int64_t{policy.keep} + policy.flush) {
      window -= policy.flush;
      packed += policy.flush;
    }
  }
  return packed;
}

TEST(WindowPolicy, ClosedFormEqualsTheStateMachine) {
  for (const WindowPolicy& policy : {WindowPolicy{0, 0, 128}, WindowPolicy{0, 128, 1}, WindowPolicy{4, 0, 32},
                                     WindowPolicy{4, 32, 32}, WindowPolicy{1, 0, 1}, WindowPolicy{16, 64, 16}}) {
    for (int64_t n = 0; n < 700; ++n) ASSERT_EQ(policy.n_packed(n), packed_by_hand(policy, n)) << n;
  }
  EXPECT_EQ(WindowPolicy{}.n_packed(1'000'000), 0);
}

TEST(WindowPolicy, TokensOfTheWindowHavePlacesOfTheirOwn) {
  for (const WindowPolicy& policy : {WindowPolicy{0, 0, 128}, WindowPolicy{0, 128, 1}, WindowPolicy{5, 0, 32},
                                     WindowPolicy{4, 40, 8}, WindowPolicy{1, 0, 1}, WindowPolicy{17, 3, 1}}) {
    const int32_t slots = policy.n_slots(4096);
    for (int64_t n = 1; n < 1000; ++n) {
      std::set<std::pair<int32_t, int32_t>> used;
      for (int64_t t = std::max<int64_t>(policy.window_begin(n), policy.sinks); t < n; ++t) {
        ASSERT_GE(policy.slot(t, slots), policy.sink_slots());
        ASSERT_LT(policy.slot(t, slots), slots);
        ASSERT_TRUE(used.insert({policy.slot(t, slots), policy.place(t)}).second)
            << "sinks " << policy.sinks << " n " << n;
      }
    }
  }
}

TEST(WindowPolicy, ShortSequencesNeedFewSlots) {
  EXPECT_EQ((WindowPolicy{0, 0, 128}.n_slots(4096)), 8);
  EXPECT_EQ((WindowPolicy{0, 128, 1}.n_slots(4096)), 8);
  EXPECT_EQ((WindowPolicy{0, 32, 1}.n_slots(4096)), 2);
  EXPECT_EQ((WindowPolicy{4, 40, 8}.n_slots(4096)), 4);
  EXPECT_EQ(WindowPolicy{}.n_slots(100), 7);
}

}  // namespace
}  // namespace kivi::format
