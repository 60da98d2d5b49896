#include "study/fake_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "backend/reference/paged.h"
#include "core/error.h"
#include "engine/tiny_session.h"
#include "model/model_runner.h"

namespace kivi {
namespace {

using enum GroupAxis;

// The same tokens through a packed cache and a fake one, in steps of several tokens and of one, of two sequences.
class FakeCacheTest : public ::testing::Test {
 protected:
  struct Side {
    Decoder decoder;
    KvCache cache;
    std::vector<StepSequence> step;

    Side(Backend& backend, const ModelWeights& weights, const KvConfig& config)
        : decoder(backend, weights),
          cache(backend, decoder.kv_shape(), config, {.max_tokens = 200, .max_sequences = 2}) {
      for (int i = 0; i < 2; ++i) step.push_back({.id = cache.create()});
    }
    void reserve(const std::vector<int32_t>& n_new) {
      for (size_t i = 0; i < 2; ++i) step[i].n_new = n_new[i];
      ASSERT_TRUE(cache.reserve(step));
    }
    Logits run(const std::vector<TokenId>& tokens) {
      const std::vector<int32_t> rows = {0, static_cast<int32_t>(tokens.size()) - 1};
      const auto logits = decoder.step(cache, {.tokens = tokens, .logit_rows = rows}).logits;
      Logits out;
      for (int64_t i = 0; i < logits.shape[0]; ++i) out.emplace_back(&logits(i, 0), &logits(i, 0) + logits.shape[1]);
      return out;
    }
  };

  void make(const std::string& kv, int n_layers, GroupAxis keys, GroupAxis values, int64_t sliding_window = 0) {
    fake.reset();
    packed.reset();
    file = TinyModel{.n_layers = n_layers}.build().build();
    gguf.emplace(read_gguf(std::span<const std::byte>(file)));
    ModelConfig model = read_config(*gguf);
    model.sliding_window = sliding_window;
    if (sliding_window > 0) model.slides.assign(static_cast<size_t>(n_layers), true);
    weights = load_weights(*backend, *gguf, model);
    const KvConfig config = parse_kv_config(kv);
    packed = std::make_unique<Side>(*backend, weights, config);
    front = std::make_unique<FakeCacheBackend>(*backend, with_axes(config, packed->cache.shape(), keys, values));
    fake = std::make_unique<Side>(*front, weights, parse_kv_config("f16"));
  }

  // By step.
  std::vector<std::pair<Logits, Logits>> run(bool compares_rows) {
    std::vector<std::vector<int32_t>> steps = {{37, 5}, {1, 20}};
    steps.resize(80, {1, 1});
    std::mt19937 random(3);
    std::vector<std::pair<Logits, Logits>> logits;
    for (const std::vector<int32_t>& n_new : steps) {
      std::vector<TokenId> tokens(static_cast<size_t>(n_new[0] + n_new[1]));
      for (TokenId& token : tokens) token = static_cast<TokenId>(random() % 50);
      packed->reserve(n_new);
      fake->reserve(n_new);
      if (compares_rows) compare_rows();
      logits.emplace_back(packed->run(tokens), fake->run(tokens));
    }
    return logits;
  }

  // What the fake cache has is what a reader of the packed one sees, as binary16.
  void compare_rows() {
    const format::KvBatchView a = packed->cache.view(0);
    const format::KvBatchView b = fake->cache.view(0);
    for (int64_t sequence = 0; sequence < 2; ++sequence) {
      for (int head = 0; head < a.layout.n_kv_heads; ++head) {
        for (const auto& rows_of : {reference::stored_keys, reference::stored_values}) {
          std::vector<reference::Row> expected = rows_of(a, sequence, head);
          for (reference::Row& row : expected) {
            std::ranges::transform(row, row.begin(), [](float x) { return to_float(to_half(x)); });
          }
          ASSERT_EQ(rows_of(b, sequence, head), expected) << "after " << a.n_past(sequence);
        }
      }
    }
  }

  std::vector<std::byte> file;
  std::optional<ModelFile> gguf;
  std::unique_ptr<Backend> backend = make_backend({.device = "reference", .n_threads = 1});
  ModelWeights weights;
  std::unique_ptr<FakeCacheBackend> front;
  std::unique_ptr<Side> packed, fake;
};

// Of one layer, whose keys and values are the same numbers on both sides: every row must be the packed one's to the
// bit, and logits differ by what rounding rows to binary16 does. That is 2^-11 of a number at most: 2^-11 |q| . |k| /
// sqrt(D) of a score, with |q| . |k| / sqrt(D) about 4 here, and twice that of a probability; 2^-11 of a value. So
// attention gives 9 * 2^-11 of its values in the worst case, in which all roundings have the same sign. What follows
// keeps sizes (the tiny models' weights are such that activations stay near 1), and logits are about 1.
TEST_F(FakeCacheTest, OfTheFormatsOwnAxesIsThePackedCache) {
  for (const char* kv : {"kivi2:group-size=16:residual=16", "kivi2:group-size=16:residual=32:sinks=3",
                         "kivi4:group-size=32:residual=0", "kivi2:group-size=16:key-bits=4:residual=16"}) {
    make(kv, 1, kChannel, kToken);
    double largest = 0;
    for (const auto& [a, b] : run(true)) largest = std::max(largest, largest_difference(a, b));
    EXPECT_LE(largest, 9 * 0x1p-11) << kv;
  }
}

TEST_F(FakeCacheTest, OfALayerThatSlidesIsThePackedCache) {
  make("kivi2:group-size=16:residual=16", 1, kChannel, kToken, 40);
  double largest = 0;
  for (const auto& [a, b] : run(true)) largest = std::max(largest, largest_difference(a, b));
  EXPECT_LE(largest, 9 * 0x1p-11);
}

TEST_F(FakeCacheTest, OtherAxesAreOtherCaches) {
  for (const auto& [keys, values] : {std::pair{kToken, kToken}, {kChannel, kChannel}, {kToken, kChannel}}) {
    make("kivi2:group-size=16:residual=16", 1, keys, values);
    double largest = 0;
    for (const auto& [a, b] : run(false)) largest = std::max(largest, largest_difference(a, b));
    EXPECT_GT(largest, 20 * 9 * 0x1p-11);
  }
}

// In a second layer a rounding can move a code, by a step of its group. A score's change of 2^-11 moves one number in
// some hundreds, and each of those by about four times the root mean square of all roundings: far less in all than
// other roundings, which is what other axes are.
TEST_F(FakeCacheTest, OfSeveralLayersIsThePackedCacheButForCodesThatMove) {
  const auto difference = [&](GroupAxis keys, GroupAxis values) {
    make("kivi2:group-size=16:residual=16", 2, keys, values);
    double squares = 0;
    for (const auto& [a, b] : run(false)) squares += std::pow(root_mean_square_difference(a, b), 2);
    return std::sqrt(squares);
  };
  const double own = difference(kChannel, kToken);
  EXPECT_LT(own, difference(kToken, kToken) / 8);
  EXPECT_LT(own, difference(kChannel, kChannel) / 8);
}

// Of four values in a group no more than four can be told apart.
TEST_F(FakeCacheTest, GroupsLieAlongTheAxesAndTheWindowStays) {
  make("kivi2:group-size=16:residual=16", 1, kToken, kChannel);
  run(false);
  fake->reserve({1, 1});
  const auto n_kinds = [](std::vector<float> x) {
    std::ranges::sort(x);
    return std::ssize(x) - std::ssize(std::ranges::unique(x));
  };
  const std::vector<reference::Row> keys = reference::stored_keys(fake->cache.view(0), 0, 1);
  const std::vector<reference::Row> values = reference::stored_values(fake->cache.view(0), 0, 1);
  ASSERT_EQ(keys.size(), 116U);  // of which the keys, per token, keep 16, and the values, per channel, 116 mod 16
  for (size_t t = 0; t < 116; ++t) {
    const std::vector<float> group(keys[t].begin(), keys[t].begin() + 16);
    EXPECT_EQ(n_kinds(group) <= 4, t < 100) << t;
  }
  for (size_t t = 0; t < 112; t += 16) {
    std::vector<float> group;
    for (size_t i = t; i < t + 16; ++i) group.push_back(values[i][3]);
    EXPECT_LE(n_kinds(group), 4) << t;
  }
  EXPECT_EQ(n_kinds({values[112][3], values[113][3], values[114][3], values[115][3]}), 4);
}

}  // namespace
}  // namespace kivi
