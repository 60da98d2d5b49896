#include "format/window_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

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

constexpr int32_t kKeepAll = WindowPolicy::kKeepAll;
constexpr WindowPolicy kSliding[] = {{0, kKeepAll, 1, 1}, {0, kKeepAll, 1, 17},  {5, kKeepAll, 1, 100},
                                     {0, 0, 128, 1},      {0, 0, 128, 70},       {4, 0, 32, 300},
                                     {0, 128, 1, 100},    {20, 64, 1, 128},      {3, 40, 8, 129},
                                     {0, 0, 256, 150},    {20, kKeepAll, 1, 12}, {200, 0, 16, 150}};

TEST(WindowPolicy, ATokenSeesAsManyAsItsWindowHas) {
  for (const WindowPolicy& policy : kSliding) {
    for (int64_t p = 0; p < 1000; ++p) {
      EXPECT_EQ(p - policy.first_seen(p) + 1, std::min<int64_t>(p + 1, policy.sliding_window));
    }
  }
  EXPECT_EQ(WindowPolicy{}.first_seen(1'000'000), 0);
  EXPECT_EQ(WindowPolicy{}.first_stored(1'000'000), 0);
}

// What is seen is stored, and beside it at most a part of a page, so that groups are whole.
TEST(WindowPolicy, WhatNoTokenSeesLeaves) {
  for (const WindowPolicy& policy : kSliding) {
    int64_t before = 0;
    for (int64_t n = 0; n < 2000; ++n) {
      const int64_t first = policy.first_stored(n);
      ASSERT_GE(first, before) << "what has left does not come back";
      ASSERT_LE(first, policy.first_seen(n));
      ASSERT_LT(policy.first_seen(n) - first, policy.keeps_all() ? 1 : kPageTokens);
      ASSERT_TRUE(first <= policy.sinks || policy.keeps_all() || (first - policy.sinks) % kPageTokens == 0);
      before = first;
    }
  }
}

TEST(WindowPolicy, TokensOfTheWindowHavePlacesOfTheirOwn) {
  std::vector<WindowPolicy> policies = {{0, 0, 128}, {0, 128, 1}, {5, 0, 32}, {4, 40, 8}, {1, 0, 1}, {17, 3, 1}};
  policies.insert(policies.end(), std::begin(kSliding), std::end(kSliding));
  for (const WindowPolicy& policy : policies) {
    const int32_t slots = policy.n_slots(4096);
    for (int64_t n = 1; n < 1000; ++n) {
      std::set<std::pair<int32_t, int32_t>> used;
      const int64_t begin = std::max(policy.window_begin(n), policy.first_stored(n));
      for (int64_t t = std::max<int64_t>(begin, policy.sinks); t < n; ++t) {
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
  EXPECT_EQ((WindowPolicy{0, kKeepAll, 1, 512}.n_slots(8192)), 32);
  EXPECT_EQ((WindowPolicy{0, 0, 128, 512}.n_slots(8192)), 8);
}

}  // namespace
}  // namespace kivi::format
