// Caches of models in which layers slide: what is dropped, when, and that every byte is told.
#include <gtest/gtest.h>

#include <random>
#include <tuple>

#include "backend/null_device.h"
#include "cache/kv_cache.h"
#include "core/error.h"

namespace kivi {
namespace {

constexpr int64_t kTokens = 1500;

// Every layer slides, or all but each sixth.
KvShape shape_of(int64_t sliding_window, bool mixed) {
  KvShape shape{.n_layers = 7, .n_kv_heads = 2, .head_dim = 64, .sliding_window = sliding_window, .slides = {}};
  for (int layer = 0; layer < shape.n_layers; ++layer) shape.slides.push_back(!mixed || layer % 6 != 5);
  return shape;
}

KvShape without_sliding(KvShape shape) {
  shape.slides.clear();
  return shape;
}

using Param = std::tuple<const char*, int64_t, bool>;

class KvSliding : public testing::TestWithParam<Param> {
 protected:
  KvCache make_cache(int n_sequences, int64_t max_tokens = kTokens, int64_t memory_bytes = 0) {
    return {device_,
            shape_,
            config_,
            {.max_tokens = max_tokens, .max_sequences = n_sequences, .memory_bytes = memory_bytes}};
  }
  static bool reserve(KvCache& cache, SequenceId id, int64_t n_new) {
    const StepSequence step[] = {{id, static_cast<int32_t>(n_new)}};
    return cache.reserve(step);
  }

  NullDevice device_;
  int64_t sliding_window_ = std::get<1>(GetParam());
  KvConfig config_ = parse_kv_config(std::get<0>(GetParam()));
  KvShape shape_ = shape_of(sliding_window_, std::get<2>(GetParam()));
};

// Token by token, in chunks, in long prompts: within every step and after it.
TEST_P(KvSliding, EveryByteIsToldAndTheMostIsNeverPassed) {
  std::mt19937 random(3);
  for (const int64_t most_new : {1, 40, 1000}) {
    KvCache cache = make_cache(1);
    const SequenceId id = cache.create();
    for (int64_t n = 0;;) {
      const int64_t n_new = 1 + static_cast<int64_t>(random()) % most_new;
      if (n + n_new > kTokens) break;
      ASSERT_TRUE(reserve(cache, id, n_new));
      const KvPages most = cache.most_pages(n += n_new);
      for (PageKind kind = 0; kind < kPageKinds; ++kind) ASSERT_LE(cache.arena().pages_in_use()[kind], most[kind]) << n;
      cache.commit();
      const KvMemory memory = cache.memory();
      ASSERT_EQ(cache.allocated_bytes(), memory.allocated_bytes()) << n;
      ASSERT_EQ(cache.arena().pages_in_use(), pages_of(cache.shape(), config_, n)) << n;
      ASSERT_GE(memory.slack_bytes, 0);
      const KvMemory whole = memory_of(without_sliding(shape_), config_, n);
      ASSERT_EQ(memory.allocated_bytes() + memory.dropped_bytes, whole.allocated_bytes()) << n;
      ASSERT_GE(memory.dropped_tokens, n - sliding_window_ + 1 - format::kPageTokens);
      ASSERT_LE(memory.dropped_tokens, std::max<int64_t>(0, n - sliding_window_ + 1));
    }
    cache.release(id);
    EXPECT_EQ(cache.arena().bytes_held(), 0);
  }
}

TEST_P(KvSliding, ALongPromptAllocatesNothingThatItWillNotKeep) {
  KvCache cache = make_cache(1, 20000);
  ASSERT_TRUE(reserve(cache, cache.create(), 20000));
  const int64_t within = cache.allocated_bytes();
  cache.commit();
  EXPECT_EQ(cache.allocated_bytes(), within);
  const KvMemory memory = cache.memory();
  const int64_t whole = memory.allocated_bytes() + memory.dropped_bytes;
  if (std::get<2>(GetParam())) {
    EXPECT_LT(within, whole / 3);
  } else {
    EXPECT_LT(within, whole / 10);
  }
}

TEST_P(KvSliding, WhatCanEverHoldCanBeReached) {
  for (const int64_t n_step : {1, 7, 300}) {
    const SlabLayout layout = slab_layout(shape_, config_);
    const int64_t room = layout.n_slabs(most_pages_of(shape_, config_, kTokens)) * layout.slab_bytes;
    KvCache cache = make_cache(1, 2 * kTokens, room);
    ASSERT_TRUE(cache.can_ever_hold(kTokens));
    const SequenceId id = cache.create();
    for (int64_t n = 0; n < kTokens;) {
      const int64_t n_new = std::min(n_step, kTokens - n);
      ASSERT_TRUE(reserve(cache, id, n_new)) << n;
      cache.commit();
      n += n_new;
    }
  }
}

TEST_P(KvSliding, AsManySequencesFitAsAreSaidTo) {
  const int64_t room = 5 * memory_of(without_sliding(shape_), config_, 777).allocated_bytes();
  const int64_t n = sequences_that_fit(shape_, config_, kTokens, room);
  KvCache cache = make_cache(static_cast<int>(n), kTokens, room);
  std::vector<StepSequence> step;
  for (int64_t i = 0; i < n; ++i) step.push_back({cache.create(), 1});
  for (int64_t i = 0; i < kTokens; ++i) {
    ASSERT_TRUE(cache.reserve(step)) << i;
    cache.commit();
  }
}

// A step that fails may have handed memory from one page to another.
TEST_P(KvSliding, ASequenceMayEndWithinAStep) {
  KvCache cache = make_cache(2);
  const SequenceId ids[] = {cache.create(), cache.create()};
  for (const int n_new : {700, 1, 300}) {
    const StepSequence step[] = {{ids[0], n_new}, {ids[1], n_new}};
    ASSERT_TRUE(cache.reserve(step));
    if (n_new == 300) cache.release(ids[0]);
    cache.commit();
  }
  EXPECT_EQ(cache.allocated_bytes(), memory_of(shape_, config_, 1001).allocated_bytes());
  cache.release(ids[1]);
  EXPECT_EQ(cache.arena().bytes_held(), 0);
}

TEST_P(KvSliding, AWindowThatNoSequenceOutgrowsIsNone) {
  const KvCache narrow = make_cache(1, sliding_window_ + 1);
  EXPECT_EQ(narrow.n_groups(), std::get<2>(GetParam()) ? 2 : 1);
  EXPECT_EQ(narrow.view(0).sliding_window(), sliding_window_);
  const KvCache wide = make_cache(1, sliding_window_);
  EXPECT_EQ(wide.n_groups(), 1);
  EXPECT_EQ(wide.view(0).sliding_window(), 0);
}

INSTANTIATE_TEST_SUITE_P(Presets, KvSliding,
                         testing::Combine(testing::Values("f16", "kivi2", "kivi4:sinks=20:residual=32",
                                                          "kivi2:key-bits=16:sinks=3",
                                                          "kivi4:value-bits=16:group-size=128", "kivi2:residual=256"),
                                          testing::Values(1, 50, 128, 300), testing::Bool()));

TEST(KvLayerGroups, ViewsNameTheirGroupAndLayersDoNotOverlap) {
  NullDevice device;
  const KvCache cache(device, shape_of(200, true), parse_kv_config("kivi2"), {.max_tokens = 1000});
  ASSERT_EQ(cache.n_groups(), 2);
  EXPECT_EQ(cache.first_layer(0), 0);
  EXPECT_EQ(cache.first_layer(1), 5);
  std::array<const std::byte*, 2> next{};  // layers of a group lie one after the other in a page
  for (int layer = 0; layer < 7; ++layer) {
    const format::KvBatchView view = cache.view(layer, 1);
    const size_t group = layer == 5 ? 1 : 0;
    EXPECT_EQ(view.group, static_cast<int>(group));
    EXPECT_EQ(view.sliding_window(), group == 0 ? 200 : 0);
    EXPECT_TRUE(next[group] == nullptr || next[group] == view.packed_pages);
    next[group] = view.packed_pages + view.layout.page_bytes();
  }
  EXPECT_NE(cache.view(0, 1).packed_table.data, cache.view(5, 1).packed_table.data);
}

// Pages of a few layers beside pages of many.
TEST(KvLayerGroups, SlabsServeGroupsOfAnySize) {
  for (const int n_layers : {2, 13, 26, 62, 200}) {
    for (const char* kv : {"f16", "kivi2", "kivi4:key-bits=8:value-bits=8"}) {
      KvShape shape{.n_layers = n_layers, .n_kv_heads = 1, .head_dim = 256, .sliding_window = 100, .slides = {}};
      shape.slides.assign(static_cast<size_t>(n_layers), true);
      shape.slides.back() = false;
      const KvConfig config = parse_kv_config(kv);
      NullDevice device;
      KvCache cache(device, shape, config, {.max_tokens = 3000, .max_sequences = 2});
      const StepSequence step[] = {{cache.create(), 2000}, {cache.create(), 1}};
      ASSERT_TRUE(cache.reserve(step));
      cache.commit();
      EXPECT_EQ(cache.allocated_bytes(), cache.memory().allocated_bytes());
      EXPECT_LE(cache.arena().bytes_held(), cache.capacity_bytes());
    }
  }
}

}  // namespace
}  // namespace kivi
