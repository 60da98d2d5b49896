// Sequences that share pages: forks, and prefixes that stay when sequences have gone.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "backend/null_device.h"
#include "cache/kv_cache.h"
#include "cache/sliding_shape.h"
#include "core/error.h"

namespace kivi {
namespace {

// What an attention over the cache would read, in place of keys and values: a number for each token, of its sequence.
using Tokens = std::vector<uint8_t>;

// Stores and reads such tokens as store_kv and attend do keys and values: 16-bit rows and places in packed pages, by
// the tables and the window policies alone.
class Writer {
 public:
  explicit Writer(const KvCache& cache) : cache_(&cache) {}

  void store(int64_t b, const Tokens& tokens, int64_t n_past) const {
    for_each_side([&](const format::KvBatchView& view, const format::WindowPolicy& policy, int side) {
      const auto n = static_cast<int64_t>(tokens.size());
      const int64_t first = policy.first_stored(n);
      for (int64_t token = std::max(first, policy.sinks + policy.n_packed(n_past)); token < policy.window_begin(n);
           ++token) {
        if (token >= policy.sinks) *packed(view, b, token - policy.sinks, side) = std::byte{tokens[token]};
      }
      for (int64_t token = std::max(first, n_past); token < n; ++token) {
        if (is_in_window(policy, token, n)) *row(view, b, token, side) = std::byte{tokens[token]};
      }
    });
  }

  void expect(int64_t b, const Tokens& tokens) const {
    for_each_side([&](const format::KvBatchView& view, const format::WindowPolicy& policy, int side) {
      const auto n = static_cast<int64_t>(tokens.size());
      for (int64_t token = policy.first_stored(n); token < n; ++token) {
        const std::byte* at =
            is_in_window(policy, token, n) ? row(view, b, token, side) : packed(view, b, token - policy.sinks, side);
        ASSERT_EQ(*at, std::byte{tokens[token]}) << "token " << token << " of " << n << ", side " << side;
      }
    });
  }

 private:
  template <typename Visit>
  void for_each_side(Visit visit) const {
    for (int group = 0; group < cache_->n_groups(); ++group) {
      const format::KvBatchView view = cache_->view(cache_->first_layer(group));
      visit(view, view.key_policy, 0);
      visit(view, view.value_policy, 1);
    }
  }
  static bool is_in_window(const format::WindowPolicy& policy, int64_t token, int64_t n) {
    return token < policy.sinks || token >= policy.window_begin(n);
  }
  static std::byte* row(const format::KvBatchView& view, int64_t b, int64_t token, int side) {
    return side == 0 ? view.key_row(b, token, 0) : view.value_row(b, token, 0);
  }
  static std::byte* packed(const format::KvBatchView& view, int64_t b, int64_t place, int side) {
    return view.packed_block(b, place / format::kPageTokens, 0) + side * format::kPageTokens +
           place % format::kPageTokens;
  }

  const KvCache* cache_;
};

class KvSharing : public testing::TestWithParam<std::tuple<const char*, int64_t>> {
 protected:
  static constexpr int64_t kTokens = 900;

  KvCache make_cache(int n_sequences, int64_t memory_bytes = 0) {
    return {
        device_, shape_, config_, {.max_tokens = kTokens, .max_sequences = n_sequences, .memory_bytes = memory_bytes}};
  }
  static bool advance(KvCache& cache, SequenceId id, int64_t n_new) {
    const StepSequence step[] = {{id, static_cast<int32_t>(n_new)}};
    if (!cache.reserve(step)) return false;
    cache.commit();
    return true;
  }

  NullDevice device_;
  KvConfig config_ = parse_kv_config(std::get<0>(GetParam()));
  KvShape shape_ = shape_of(std::get<1>(GetParam()));
};

// Sequences, forks and prefixes come, go and grow in every order: each reads what it has stored, and bytes are told as
// they are.
TEST_P(KvSharing, EachReadsItsOwn) {
  constexpr size_t kSequences = 6;
  constexpr size_t kPrefixes = 5;
  std::mt19937 random(7);
  KvCache cache = make_cache(kSequences + kPrefixes);
  const Writer writer(cache);
  std::map<SequenceId, Tokens> alive;
  std::map<PrefixId, Tokens> stored;
  const auto any_of = [&](const auto& map) {
    return std::next(map.begin(), static_cast<int64_t>(random() % map.size()));
  };
  for (int i = 0; i < 1500; ++i) {
    const auto dice = random() % 20;
    if (dice < 2 || alive.empty()) {
      if (alive.size() < kSequences) alive[cache.create()];
    } else if (dice < 4 && alive.size() < kSequences) {
      const auto original = any_of(alive);
      alive.emplace(cache.fork(original->first).value(), original->second);
    } else if (dice < 6 && stored.size() < kPrefixes) {
      const auto original = any_of(alive);
      stored.emplace(cache.store_prefix(original->first).value(), original->second);
    } else if (dice < 8 && !stored.empty() && alive.size() < kSequences) {
      const auto original = any_of(stored);
      alive.emplace(cache.fork_prefix(original->first).value(), original->second);
    } else if (dice == 8) {
      const auto longest = std::ranges::max_element(alive, {}, [](const auto& one) { return one.second.size(); });
      cache.release(longest->first);
      alive.erase(longest);
    } else if (dice == 9 && stored.size() > 3) {
      const auto gone = any_of(stored);
      cache.drop_prefix(gone->first);
      stored.erase(gone);
    } else {
      std::vector<StepSequence> step;
      for (const auto& [id, tokens] : alive) {
        const int64_t n_new = random() % 3 == 0 ? 1 + static_cast<int64_t>(random() % 150) : 1;
        if (std::ssize(tokens) + n_new <= kTokens) step.push_back({id, static_cast<int32_t>(n_new)});
      }
      if (step.empty() || !cache.reserve(step)) continue;
      for (size_t b = 0; b < step.size(); ++b) writer.expect(static_cast<int64_t>(b), alive[step[b].id]);
      ASSERT_FALSE(HasFatalFailure()) << "round " << i;
      for (size_t b = 0; b < step.size(); ++b) {
        Tokens& tokens = alive[step[b].id];
        const int64_t n_past = std::ssize(tokens);
        for (int32_t n = 0; n < step[b].n_new; ++n) tokens.push_back(static_cast<uint8_t>(random()));
        writer.store(static_cast<int64_t>(b), tokens, n_past);
      }
      cache.commit();
    }
    const KvMemory memory = cache.memory();
    ASSERT_EQ(cache.allocated_bytes(), memory.allocated_bytes()) << "round " << i;
    ASSERT_GE(memory.slack_bytes, 0);
    ASSERT_LE(cache.allocated_bytes(), cache.arena().bytes_held());
  }
  for (const auto& [id, tokens] : alive) cache.release(id);
  EXPECT_EQ(cache.allocated_bytes(), 0);
  EXPECT_GT(cache.arena().bytes_held(), 0) << "of prefixes";
  for (const auto& [id, tokens] : stored) cache.drop_prefix(id);
  EXPECT_EQ(cache.arena().bytes_held(), 0);
  EXPECT_EQ(cache.arena().pages_taken(), KvPages{});
}

TEST_P(KvSharing, ForksTakeTheRoomOfWhatIsNotShared) {
  KvCache cache = make_cache(4);
  const SequenceId first = cache.create();
  ASSERT_TRUE(advance(cache, first, 800));
  const int64_t alone = cache.allocated_bytes();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(cache.fork(first));
  const KvPages shared = cache.shared_pages(first);
  EXPECT_EQ(cache.allocated_bytes(), 4 * alone - 3 * cache.arena().layout().bytes(shared));
  EXPECT_EQ(cache.allocated_bytes(), cache.memory().allocated_bytes());
  EXPECT_EQ(cache.memory().elements, 4 * memory_of(cache.shape(), config_, 800).elements -
                                         memory_of_full(cache.shape(), config_, 3 * shared).elements);
  EXPECT_GT(cache.arena().layout().bytes(shared), alone / 5);
}

TEST_P(KvSharing, WithoutRoomThereIsNoForkAndNothingChanges) {
  constexpr int64_t kLength = 700;  // no whole number of pages
  const SlabLayout layout = slab_layout(shape_, config_);
  KvCache cache = make_cache(4, layout.n_slabs(most_pages_of(shape_, config_, kLength)) * layout.slab_bytes);
  const SequenceId first = cache.create();
  ASSERT_TRUE(advance(cache, first, kLength));
  std::vector<PrefixId> prefixes;
  while (const auto prefix = cache.store_prefix(first)) prefixes.push_back(*prefix);
  const KvPages taken = cache.arena().pages_taken();
  EXPECT_FALSE(cache.fork(first));
  EXPECT_EQ(cache.arena().pages_taken(), taken);
  EXPECT_EQ(cache.n_sequences(), 1);
  for (const PrefixId prefix : prefixes) cache.drop_prefix(prefix);
  cache.release(first);
  EXPECT_EQ(cache.arena().bytes_held(), 0);
}

INSTANTIATE_TEST_SUITE_P(Presets, KvSharing,
                         testing::Combine(testing::Values("f16", "f16:sinks=20", "kivi2", "kivi4:sinks=20:residual=32",
                                                          "kivi2:sinks=32:residual=0:group-size=16",
                                                          "kivi2:key-bits=16:sinks=3",
                                                          "kivi2:value-bits=16:group-size=64"),
                                          testing::Values(0, 40, 300)));

TEST(KvSharingErrors, ACopyWithinAStepIsAnError) {
  NullDevice device;
  KvCache cache(device, shape_of(0), parse_kv_config("kivi2"), {.max_tokens = 10, .max_sequences = 2});
  const StepSequence step[] = {{cache.create(), 1}};
  ASSERT_TRUE(cache.reserve(step));
  EXPECT_THROW(cache.fork(step[0].id), Error);
  cache.commit();
  EXPECT_TRUE(cache.fork(step[0].id));
  EXPECT_FALSE(cache.fork(step[0].id)) << "two are alive";
}

}  // namespace
}  // namespace kivi
