#include "study/capture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "backend/reference/paged.h"
#include "engine/tiny_session.h"
#include "study/attention_probe.h"

namespace kivi {
namespace {

constexpr int64_t kTokens = 40;

struct CopiedLayer {
  Matrix queries, keys_before_rope, keys, values;  // of one head
};

class CaptureTest : public ::testing::Test {
 protected:
  std::vector<CopiedLayer> capture_head(int64_t head) {
    std::vector<CopiedLayer> layers;
    capture(*session.backend, session.weights, tokens, [&](const LayerCapture& layer) {
      EXPECT_EQ(layer.layer, std::ssize(layers));
      EXPECT_EQ(layer.group_heads(), 2);
      layers.push_back({head_rows(layer.queries, 2 * head), head_rows(layer.keys_before_rope, head),
                        head_rows(layer.keys, head), head_rows(layer.values, head)});
    });
    return layers;
  }

  TinySession session;
  std::vector<TokenId> tokens = session.random_tokens(kTokens, 8);
};

TEST_F(CaptureTest, ShowsWhatTheCacheHolds) {
  const std::vector<CopiedLayer> layers = capture_head(1);
  ASSERT_EQ(layers.size(), 2U);
  KvCache cache(*session.backend, session.decoder.kv_shape(), parse_kv_config("f16"), {.max_tokens = kTokens + 1});
  StepSequence entry{.id = cache.create(), .n_new = kTokens};
  ASSERT_TRUE(cache.reserve({&entry, 1}));
  session.decoder.step(cache, {.tokens = tokens});
  entry.n_new = 1;
  ASSERT_TRUE(cache.reserve({&entry, 1}));
  for (int layer = 0; layer < 2; ++layer) {
    const auto keys = reference::stored_keys(cache.view(layer), 0, 1);
    const auto values = reference::stored_values(cache.view(layer), 0, 1);
    for (int64_t t = 0; t < kTokens; ++t) {
      EXPECT_TRUE(std::equal(keys[t].begin(), keys[t].end(), layers[layer].keys.row(t)));
      EXPECT_TRUE(std::equal(values[t].begin(), values[t].end(), layers[layer].values.row(t)));
    }
  }
}

// RoPE turns pairs of channels: it keeps lengths, and does nothing to the first token.
TEST_F(CaptureTest, KeysBeforeRopeHaveTheSameLengths) {
  for (const CopiedLayer& layer : capture_head(0)) {
    for (int64_t t = 0; t < kTokens; ++t) {
      double before = 0;
      double after = 0;
      double difference = 0;
      for (int64_t c = 0; c < 32; ++c) {
        before += std::pow(layer.keys_before_rope.row(t)[c], 2);
        after += std::pow(layer.keys.row(t)[c], 2);
        difference += std::abs(layer.keys_before_rope.row(t)[c] - layer.keys.row(t)[c]);
      }
      EXPECT_NEAR(after, before, 2e-3 * before);
      EXPECT_EQ(difference > 0.05, t > 0) << t;
    }
  }
}

TEST_F(CaptureTest, AProbesAttentionIsTheReferences) {
  capture(*session.backend, session.weights, tokens, [&](const LayerCapture& layer) {
    const AttentionProbe probe(layer, 1, 4);  // after 25, 30, 35 and 40 tokens
    const Matrix keys = head_rows(layer.keys, 1);
    const Matrix values = head_rows(layer.values, 1);
    const Matrix p = probe.probabilities(keys);
    const Matrix out = probe.outputs(p, values);
    ASSERT_EQ(out.rows, 8);
    for (int64_t i = 0; i < 8; ++i) {
      const int64_t token = 24 + 5 * (i / 2);
      std::vector<reference::Row> key_rows;
      std::vector<reference::Row> value_rows;
      for (int64_t t = 0; t <= token; ++t) {
        key_rows.emplace_back(keys.row(t), keys.row(t) + 32);
        value_rows.emplace_back(values.row(t), values.row(t) + 32);
      }
      const float* query = &layer.queries(token, 2 + i % 2, 0);
      const reference::Row expected =
          reference::attend_dense({query, query + 32}, key_rows, value_rows, layer.softmax_scale);
      for (int64_t c = 0; c < 32; ++c) EXPECT_NEAR(out.row(i)[c], expected[c], 1e-5);
      double sum = 0;
      for (int64_t t = 0; t < kTokens; ++t) sum += p.row(i)[t];
      EXPECT_NEAR(sum, 1, 1e-5);
    }
    EXPECT_NEAR(probe.mass_of_first(p, kTokens), 1, 1e-5);
    EXPECT_LT(probe.mass_of_first(p, 1), probe.mass_of_first(p, 2));
  });
}

TEST(AttentionProbe, SparsityIsThePartBelowAHundredth) {
  // Five tokens whose keys have the scores 10, 0, 0, 0, 9: e^-10 is below a hundredth, e^-1 is not.
  const std::vector<float> key_data = {10, 0, 0, 0, 9};
  const std::vector<float> query_data(5, 1.0F);
  const LayerCapture layer{.queries = {query_data.data(), {5, 1, 1}},
                           .keys_before_rope = {key_data.data(), {5, 1, 1}},
                           .keys = {key_data.data(), {5, 1, 1}},
                           .values = {key_data.data(), {5, 1, 1}},
                           .softmax_scale = 1.0F,
                           .attention = {}};
  const AttentionProbe probe(layer, 0, 1);
  EXPECT_DOUBLE_EQ(probe.sparsity(probe.probabilities(head_rows(layer.keys, 0))), 0.6);
}

}  // namespace
}  // namespace kivi
