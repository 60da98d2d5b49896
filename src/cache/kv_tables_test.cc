// What kernels see of a cache that is in use: tables of random steps, and what a step of many sequences costs.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <random>
#include <set>
#include <tuple>

#include "backend/null_device.h"
#include "cache/kv_cache.h"
#include "cache/sliding_shape.h"

namespace kivi {
namespace {

enum class Kind { kPacked, kKeys, kValues };

// Drives a cache at random and checks every table.
class Driver {
 public:
  Driver(Backend& backend, const char* kv, int64_t sliding_window, int64_t max_tokens)
      : cache_(backend, shape_of(sliding_window), parse_kv_config(kv),
               {.max_tokens = max_tokens, .max_sequences = kSequences}) {}

  void step() {
    if (random_() % 4 == 0 && alive_.size() < 6) alive_.push_back(cache_.create());
    if (random_() % 40 == 0 && !alive_.empty()) release(random_() % alive_.size());
    if (random_() % 6 == 0) std::ranges::shuffle(alive_, random_);
    std::vector<StepSequence> step;
    for (size_t i = 0; i < alive_.size();) {
      const int32_t n_new = random_() % 9 == 0 ? static_cast<int32_t>(random_() % 200) + 1 : 1;
      if (cache_.n_tokens(alive_[i]) + n_new > kTokens) {
        release(i);
      } else if (random_() % 10 == 0) {
        ++i;  // not in this step
      } else {
        step.push_back({alive_[i++], n_new});
      }
    }
    if (step.empty()) return;
    ASSERT_TRUE(cache_.reserve(step));
    check_lengths(step);
    for (int layer = cache_.n_groups() == 1 ? 2 : 1; layer < 3; ++layer) check(step, layer);
    cache_.commit();
    ASSERT_EQ(cache_.allocated_bytes(), cache_.memory().allocated_bytes());
  }

 private:
  static constexpr int64_t kSequences = 7;
  static constexpr int64_t kTokens = 900;
  using Place = std::tuple<SequenceId, Kind, int64_t>;  // sequence, kind, packed page or token
  using Memory = std::map<Place, std::byte*>;           // of packed pages and of 16-bit rows

  void release(size_t i) {
    cache_.release(alive_[i]);
    for (Memory& memory : memory_) {
      std::erase_if(memory, [id = alive_[i]](const auto& entry) { return std::get<0>(entry.first) == id; });
    }
    alive_.erase(alive_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  void check_lengths(std::span<const StepSequence> step) {
    const format::KvBatchView view = cache_.view(1, kSequences);
    const auto seq_begin = cache_.seq_begin(kSequences).as<const int32_t, 1>();
    int32_t row = 0;
    for (int64_t b = 0; b < kSequences; ++b) {
      const bool in_step = b < std::ssize(step);
      ASSERT_EQ(seq_begin[b], row);
      ASSERT_EQ(view.n_past(b), in_step ? cache_.n_tokens(step[b].id) : 0);
      row += in_step ? step[b].n_new : 0;
    }
    ASSERT_EQ(seq_begin[kSequences], row);
  }

  // Memory holds what was stored in it for as long as it is read, and nothing else.
  void check(std::span<const StepSequence> step, int layer) {
    const format::KvBatchView view = cache_.view(layer, kSequences);
    Memory& memory = memory_[layer];
    Memory before;  // what the step reads
    Memory after;   // and what it leaves
    for (int64_t b = 0; b < std::ssize(step); ++b) {
      add_memory(view, b, step[b].id, view.n_past(b), before);
      add_memory(view, b, step[b].id, view.n_past(b) + step[b].n_new, after);
    }
    std::set<std::byte*> distinct;
    for (const auto& [place, at] : before) ASSERT_EQ(memory.at(place), at) << "a place has moved";
    for (const auto& [place, at] : after) {
      ASSERT_TRUE(distinct.insert(at).second) << "two places share memory";
      ASSERT_TRUE(!before.contains(place) || before[place] == at) << "a place has moved";
    }
    for (const StepSequence& entry : step) {
      std::erase_if(memory, [&](const auto& known) { return std::get<0>(known.first) == entry.id; });
    }
    memory.merge(after);
  }

  // Of those that are stored of the first n tokens of a sequence.
  static void add_memory(const format::KvBatchView& view, int64_t b, SequenceId id, int64_t n, Memory& to) {
    const auto add_side = [&](Kind kind, const format::WindowPolicy& policy, auto row_of) {
      for (int64_t token = policy.first_stored(n); token < n; ++token) {
        const bool is_kept = token < policy.sinks || token >= policy.window_begin(n);
        const int64_t u = token - policy.sinks;
        if (is_kept) {
          to[{id, kind, token}] = (view.*row_of)(b, token, 0);
        } else {
          to[{id, Kind::kPacked, u / format::kPageTokens}] = view.packed_block(b, u / format::kPageTokens, 0);
        }
      }
    };
    add_side(Kind::kKeys, view.key_policy, &format::KvBatchView::key_row);
    add_side(Kind::kValues, view.value_policy, &format::KvBatchView::value_row);
  }

  std::mt19937 random_{3};
  KvCache cache_;
  std::vector<SequenceId> alive_;
  std::array<Memory, 3> memory_;  // of all sequences, between steps, by layer
};

class KvTablesTest : public testing::TestWithParam<std::tuple<const char*, int64_t>> {};

TEST_P(KvTablesTest, APageStaysWhileItIsRead) {
  const auto backend = make_backend({.device = "reference", .n_threads = 1});
  for (const int64_t max_tokens : {900, 300000}) {  // narrow tables, and wide ones that are uploaded in parts
    Driver driver(*backend, std::get<0>(GetParam()), std::get<1>(GetParam()), max_tokens);
    for (int i = 0; i < 400; ++i) {
      driver.step();
      ASSERT_FALSE(HasFatalFailure()) << "step " << i << " of " << max_tokens;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, KvTablesTest,
                         testing::Combine(testing::Values("f16", "kivi2", "kivi4:sinks=20:residual=32",
                                                          "kivi2:residual=0:group-size=16", "kivi2:key-bits=16:sinks=3",
                                                          "kivi2:value-bits=16:group-size=64"),
                                          testing::Values(0, 130)));

INSTANTIATE_TEST_SUITE_P(Windows, KvTablesTest,
                         testing::Combine(testing::Values("f16:sinks=5", "kivi2"), testing::Values(1, 40, 512)));

TEST(KvCacheAtScale, AStepOf1024SequencesTakesLittleTimeAndFewCopies) {
  constexpr int kSequences = 1024;
  for (const char* kv : {"f16", "kivi2"}) {
    NullDevice device;
    const KvCapacity capacity{.max_tokens = 499, .max_sequences = kSequences};
    KvCache cache(device, {.n_layers = 1, .n_kv_heads = 1, .head_dim = 16}, parse_kv_config(kv), capacity);
    std::vector<StepSequence> step;
    for (int i = 0; i < kSequences; ++i) {  // of all lengths, so that pages come and go in every step
      step.push_back({cache.create(), 1 + i * 161 / kSequences});
    }
    ASSERT_TRUE(cache.reserve(step));
    cache.commit();
    for (StepSequence& entry : step) entry.n_new = 1;
    device.n_copies = 0;
    double best = 1e9;
    constexpr int kSteps = 300;
    for (int i = 0; i < kSteps; ++i) {
      const auto start = std::chrono::steady_clock::now();
      ASSERT_TRUE(cache.reserve(step));
      cache.commit();
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    RecordProperty(std::string(kv) + "_microseconds", static_cast<int>(1e6 * best));
    EXPECT_LE(device.n_copies, 2 * kSteps) << kv;
    EXPECT_LT(best, 1e-3) << kv;
  }
}

}  // namespace
}  // namespace kivi
