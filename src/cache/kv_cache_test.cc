#include "cache/kv_cache.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace kivi {
namespace {

constexpr KvShape kShape{.n_layers = 2, .n_kv_heads = 1, .head_dim = 64};

class KvCacheTest : public testing::TestWithParam<const char*> {
 protected:
  // One step of a sequence, without a model: only the pages move.
  static bool advance(KvCache& cache, SequenceId id, int n_new) {
    const StepSequence step[] = {{id, n_new}};
    if (!cache.reserve(step)) return false;
    cache.commit();
    return true;
  }
  std::unique_ptr<Backend> backend_ = make_backend({.device = "reference", .n_threads = 1});
};

TEST_P(KvCacheTest, ReportEqualsWhatIsAllocated) {
  KvCache cache(*backend_, kShape, parse_kv_config(GetParam()), {.max_tokens = 2000, .max_sequences = 3});
  const SequenceId a = cache.create();
  const SequenceId b = cache.create();
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(advance(cache, a, 1 + i % 37));
    ASSERT_TRUE(advance(cache, b, 1));
    ASSERT_EQ(cache.allocated_bytes(), cache.memory().allocated_bytes()) << "step " << i;
    ASSERT_GE(cache.memory().slack_bytes, 0);
  }
  EXPECT_EQ(cache.memory(a).elements, cache.n_tokens(a) * kShape.elements_per_token());
  cache.release(a);
  EXPECT_EQ(cache.allocated_bytes(), cache.memory(b).allocated_bytes());
  cache.release(b);
  EXPECT_EQ(cache.allocated_bytes(), 0);
}

TEST_P(KvCacheTest, AFullCacheRefusesAndChangesNothing) {
  const KvConfig config = parse_kv_config(GetParam());
  const int64_t room = memory_of(kShape, config, 700).allocated_bytes();
  KvCache cache(*backend_, kShape, config, {.max_tokens = 2000, .max_sequences = 4, .memory_bytes = room});
  EXPECT_FALSE(cache.can_ever_hold(2000));
  EXPECT_LE(cache.capacity_bytes(), room);
  const SequenceId a = cache.create();
  while (advance(cache, a, 16)) {
  }
  const int64_t tokens = cache.n_tokens(a);
  const int64_t allocated = cache.allocated_bytes();
  EXPECT_GT(tokens, 400);
  EXPECT_LE(allocated, room);
  EXPECT_FALSE(advance(cache, a, 600));
  EXPECT_EQ(cache.n_tokens(a), tokens);
  EXPECT_EQ(cache.allocated_bytes(), allocated);
  cache.release(a);
  const SequenceId b = cache.create();
  EXPECT_TRUE(advance(cache, b, static_cast<int>(tokens)));
}

TEST_P(KvCacheTest, WhatCanEverHoldCanBeReached) {
  const KvConfig config = parse_kv_config(GetParam());
  KvCache cache(*backend_, kShape, config, {.max_tokens = 900, .max_sequences = 1});
  ASSERT_TRUE(cache.can_ever_hold(900));
  ASSERT_FALSE(cache.can_ever_hold(901));
  const SequenceId a = cache.create();
  for (int i = 0; i < 900; ++i) ASSERT_TRUE(advance(cache, a, 1)) << i;
  EXPECT_THROW(advance(cache, a, 1), Error);
}

TEST_P(KvCacheTest, WhatIsAllocatedIsHeldAndBounded) {
  const KvConfig config = parse_kv_config(GetParam());
  const int64_t room = memory_of(kShape, config, 1500).allocated_bytes();
  KvCache cache(*backend_, kShape, config, {.max_tokens = 2000, .max_sequences = 40, .memory_bytes = room});
  std::vector<SequenceId> ids;
  for (int i = 0; i < 3000; ++i) {  // sequences of all ages, the oldest ones gone
    if (i % 50 == 0 && ids.size() < 40) ids.push_back(cache.create());
    std::vector<StepSequence> step;
    for (const SequenceId id : ids) step.push_back({id, 1});
    if (cache.reserve(step)) {
      cache.commit();
    } else {
      cache.release(ids.front());
      ids.erase(ids.begin());
    }
    ASSERT_EQ(cache.allocated_bytes(), cache.memory().allocated_bytes());
    ASSERT_LE(cache.allocated_bytes(), cache.arena().bytes_held());
    ASSERT_LE(cache.arena().bytes_held(), cache.capacity_bytes());
  }
  ASSERT_LE(cache.capacity_bytes(), room);
  EXPECT_GT(cache.arena().peak_bytes_held(), cache.capacity_bytes() * 9 / 10);
}

TEST_P(KvCacheTest, AsManySequencesFitAsAreSaidTo) {
  const KvConfig config = parse_kv_config(GetParam());
  const int64_t room = 10 * memory_of(kShape, config, 777).allocated_bytes();
  const int64_t n = sequences_that_fit(kShape, config, 500, room);
  for (const int64_t n_tried : {n, n + 1}) {
    KvCache cache(*backend_, kShape, config,
                  {.max_tokens = 500, .max_sequences = static_cast<int>(n_tried), .memory_bytes = room});
    std::vector<StepSequence> step;
    for (int64_t i = 0; i < n_tried; ++i) step.push_back({cache.create(), 1});
    bool fits = true;
    for (int i = 0; i < 500 && fits; ++i) {  // all at once: the most that they need together
      fits = cache.reserve(step);
      if (fits) cache.commit();
    }
    EXPECT_EQ(fits, n_tried == n) << n_tried;
  }
}

TEST_P(KvCacheTest, TooLittleMemoryForAPageIsAnError) {
  EXPECT_THROW(KvCache(*backend_, kShape, parse_kv_config(GetParam()), {.max_tokens = 10, .memory_bytes = 1000}),
               Error);
}

TEST_P(KvCacheTest, TooManySequencesIsAnError) {
  KvCache cache(*backend_, kShape, parse_kv_config(GetParam()), {.max_tokens = 10, .max_sequences = 1});
  cache.create();
  EXPECT_THROW(cache.create(), Error);
}

INSTANTIATE_TEST_SUITE_P(Presets, KvCacheTest,
                         testing::Values("f16", "kivi4", "kivi2", "kivi2:sinks=4:residual=32",
                                         "kivi2:key-bits=16:sinks=20", "kivi4:residual=0:group-size=16"));

}  // namespace
}  // namespace kivi
