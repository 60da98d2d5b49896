#include "cache/page_arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "cache/kv_memory.h"
#include "core/error.h"

namespace kivi {
namespace {

constexpr KvShape kShape{.n_layers = 2, .n_kv_heads = 3, .head_dim = 128};

SlabLayout layout_of(const char* kv) {
  return slab_layout(kShape, parse_kv_config(kv));
}

TEST(SlabLayout, FitsBothKindsOfPages) {
  const auto expect_pages = [](const char* kv, int64_t packed, int64_t window) {
    const SlabLayout layout = layout_of(kv);
    EXPECT_EQ(layout.per_slab[packed_pages()], packed) << kv;
    EXPECT_EQ(layout.per_slab[window_pages()], window) << kv;
    EXPECT_GE(layout.slab_bytes, packed * layout.page_bytes[packed_pages()]);
    EXPECT_GE(layout.slab_bytes, window * layout.page_bytes[window_pages()]);
    EXPECT_LT(layout.slab_bytes - window * layout.page_bytes[window_pages()], layout.page_bytes[window_pages()]);
    EXPECT_EQ(layout.slab_bytes % layout.granule_bytes, 0);
    EXPECT_EQ(layout.page_bytes[packed_pages()] % layout.granule_bytes, 0);
    EXPECT_EQ(layout.page_bytes[window_pages()] % layout.granule_bytes, 0);
  };
  expect_pages("f16", 0, 1);
  expect_pages("kivi2", 1, 3);
  expect_pages("kivi4", 1, 5);
  expect_pages("kivi2:group-size=64", 2, 5);
  expect_pages("kivi2:group-size=128", 4, 9);
  expect_pages("kivi2:key-bits=4", 1, 4);
  expect_pages("kivi2:key-bits=16", 2, 3);
}

TEST(SlabLayout, CountsSlabs) {
  const SlabLayout layout = layout_of("kivi2");
  EXPECT_EQ(layout.n_slabs({5, 7}), 5 + 3);
  EXPECT_DOUBLE_EQ(layout.share_of_slabs({5, 7}), 5 + 7.0 / 3);
  EXPECT_EQ(layout_of("f16").n_slabs({0, 7}), 7);
}

class PageArenaTest : public testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend({.device = "reference", .n_threads = 1});
};

// Pages come and go at random; those in use never overlap, and has_room() says exactly what can be taken.
TEST_P(PageArenaTest, PagesNeverOverlapAndRoomIsWhatItSays) {
  constexpr int64_t kSlabs = 12;
  const SlabLayout layout = layout_of(GetParam());
  PageArena arena(*backend_, layout, kSlabs);
  std::mt19937 random(5);
  std::map<int64_t, std::pair<int64_t, PageId>> in_use;  // begin -> end and id
  const auto take = [&](PageKind kind) {
    const PageId id = arena.take(kind);
    const int64_t begin = id * layout.granule_bytes;
    const int64_t end = begin + layout.page_bytes[kind];
    ASSERT_LE(end, kSlabs * layout.slab_bytes);
    const auto next = in_use.lower_bound(begin);
    ASSERT_TRUE(next == in_use.end() || end <= next->first);
    ASSERT_TRUE(next == in_use.begin() || std::prev(next)->second.first <= begin);
    in_use[begin] = {end, id};
  };
  for (int i = 0; i < 3000; ++i) {
    const bool fills = i / 200 % 2 == 0;
    if (random() % 5 < (fills ? 4U : 1U)) {
      const auto n_packed = static_cast<int64_t>(layout.per_slab[packed_pages()] == 0 ? 0 : random() % 3);
      const auto n_window = static_cast<int64_t>(random() % 4);
      const bool has_room = arena.has_room({n_packed, n_window});
      const auto take_all = [&] {
        for (int64_t n = 0; n < n_packed; ++n) take(packed_pages());
        for (int64_t n = 0; n < n_window; ++n) take(window_pages());
      };
      if (has_room) {
        take_all();
      } else {
        ASSERT_THROW(take_all(), Error);
      }
    } else if (!in_use.empty()) {
      const auto page = std::next(in_use.begin(), static_cast<std::ptrdiff_t>(random() % in_use.size()));
      arena.give_back(page->second.second);
      in_use.erase(page);
    }
    if (HasFatalFailure()) return;
    int64_t bytes = 0;
    for (const auto& [begin, end] : in_use) bytes += end.first - begin;
    ASSERT_EQ(arena.bytes_in_use(), bytes);
    ASSERT_GE(arena.bytes_held(), bytes);
    ASSERT_LE(arena.bytes_held(), arena.peak_bytes_held());
  }
  EXPECT_EQ(arena.peak_bytes_held(), kSlabs * layout.slab_bytes);
  for (const auto& [begin, page] : in_use) arena.give_back(page.second);
  EXPECT_EQ(arena.bytes_held(), 0);
  EXPECT_EQ(arena.pages_in_use(), KvPages{});
}

TEST_P(PageArenaTest, APageIsFreeWhenItsLastHolderGivesItBack) {
  PageArena arena(*backend_, layout_of(GetParam()), 2);
  const PageId page = arena.take(window_pages());
  EXPECT_FALSE(arena.is_shared(page));
  arena.share(page, Holder::kSequence);
  arena.share(page, Holder::kPrefix);
  EXPECT_TRUE(arena.is_shared(page));
  EXPECT_EQ(arena.pages_in_use(), (KvPages{0, 1}));
  EXPECT_EQ(arena.extra_uses(), (KvPages{0, 1}));
  EXPECT_NE(arena.take(window_pages(), Holder::kPrefix), page);
  EXPECT_EQ(arena.pages_in_use(), (KvPages{0, 1})) << "a prefix's own page is not in use";
  EXPECT_EQ(arena.pages_taken(), (KvPages{0, 2}));
  arena.give_back(page);
  EXPECT_EQ(arena.extra_uses(), KvPages{});
  arena.give_back(page);
  EXPECT_EQ(arena.pages_in_use(), KvPages{});
  EXPECT_EQ(arena.pages_taken(), (KvPages{0, 2}));
  EXPECT_FALSE(arena.is_shared(page));
  arena.share(page, Holder::kSequence);
  EXPECT_EQ(arena.pages_in_use(), (KvPages{0, 1}));
  arena.give_back(page, Holder::kPrefix);
  EXPECT_EQ(arena.pages_in_use(), (KvPages{0, 1}));
  arena.give_back(page);
  EXPECT_EQ(arena.pages_taken(), (KvPages{0, 1}));
}

TEST_P(PageArenaTest, SlabsServeEitherKind) {
  const SlabLayout layout = layout_of(GetParam());
  PageArena arena(*backend_, layout, 4);
  for (int round = 0; round < 3; ++round) {
    std::vector<PageId> pages;
    for (int64_t i = 0; i < 4 * layout.per_slab[window_pages()]; ++i) pages.push_back(arena.take(window_pages()));
    EXPECT_FALSE(arena.has_room({0, 1}));
    for (const PageId page : pages) arena.give_back(page);
    pages.clear();
    for (int64_t i = 0; i < 4 * layout.per_slab[packed_pages()]; ++i) pages.push_back(arena.take(packed_pages()));
    for (const PageId page : pages) arena.give_back(page);
  }
  EXPECT_EQ(arena.bytes_held(), 0);
}

TEST_P(PageArenaTest, ScatteredPagesAreAllThere) {
  const SlabLayout layout = layout_of(GetParam());
  PageArena arena(*backend_, layout, 20);
  const PageId first = arena.take(window_pages());
  arena.scatter(1);
  std::vector<PageId> pages = {first};
  while (arena.has_room({0, 1})) pages.push_back(arena.take(window_pages()));
  EXPECT_EQ(std::ssize(pages), 20 * layout.per_slab[window_pages()]);
  EXPECT_FALSE(std::is_sorted(pages.begin(), pages.end()));
  std::sort(pages.begin(), pages.end());
  EXPECT_EQ(std::adjacent_find(pages.begin(), pages.end()), pages.end());
}

INSTANTIATE_TEST_SUITE_P(Presets, PageArenaTest,
                         testing::Values("f16", "kivi2", "kivi4", "kivi2:group-size=64", "kivi2:key-bits=16"));

}  // namespace
}  // namespace kivi
