// Steps that are recorded and replayed, on a device of the tests.
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <set>
#include <vector>

#include "backend/fake_device.h"
#include "io/gguf.h"
#include "model/decoder.h"
#include "model/tiny_model.h"

namespace kivi {
namespace {

std::vector<TokenId> some_tokens(int n) {
  std::vector<TokenId> tokens(n);
  for (int i = 0; i < n; ++i) tokens[i] = (i * 17 + 5) % 50;
  return tokens;
}

// Two caches on one decoder, driven in the same way on a device that records and on one that does not.
class Recorded {
 public:
  explicit Recorded(bool records, bool slides = false)
      : device_(FakeDeviceOptions{.records = records}), weights_(load_weights(device_, file_, config_of(slides))) {
    decoder_.reserve(100, 16);
    for (const char* kv : {"kivi2:residual=32", "f16"}) {
      caches_.push_back(std::make_unique<KvCache>(device_, decoder_.kv_shape(), parse_kv_config(kv),
                                                  KvCapacity{.max_tokens = 300, .max_sequences = 11}));
    }
  }

  void create(int cache, int n_tokens) {
    const SequenceId id = caches_[cache]->create();
    const std::vector<TokenId> prompt = some_tokens(n_tokens);
    const StepSequence entry{id, n_tokens};
    ASSERT_TRUE(caches_[cache]->reserve({&entry, 1}));
    decoder_.step(*caches_[cache], {.tokens = prompt});
    sequences_[cache].push_back(id);
  }
  void release_first(int cache) {
    caches_[cache]->release(sequences_[cache].front());
    sequences_[cache].erase(sequences_[cache].begin());
  }
  void forget(int cache) {
    caches_[cache].reset();
    sequences_[cache].clear();
  }

  // One token of every sequence.
  void decode(int cache, const std::vector<int32_t>& logit_rows, const std::vector<int32_t>& argmax_rows) {
    std::vector<StepSequence> step;
    std::vector<TokenId> tokens;
    for (const SequenceId id : sequences_[cache]) {
      step.push_back({id, 1});
      tokens.push_back(static_cast<TokenId>((id * 7 + caches_[cache]->n_tokens(id)) % 50));
    }
    ASSERT_TRUE(caches_[cache]->reserve(step));
    const DecoderOutput output =
        decoder_.step(*caches_[cache], {.tokens = tokens, .logit_rows = logit_rows, .argmax_rows = argmax_rows});
    for (int64_t row = 0; row < output.logits.shape[0]; ++row) {
      outputs.emplace_back(output.logits[row].data, output.logits[row].data + output.logits.shape[1]);
    }
    outputs.emplace_back(output.argmax.begin(), output.argmax.end());
  }
  void choose_all(int cache) {
    std::vector<int32_t> rows(sequences_[cache].size());
    std::iota(rows.begin(), rows.end(), 0);
    decode(cache, {}, rows);
  }

  const FakeDevice::Counts& counts() const { return device_.counts(); }
  std::vector<std::vector<float>> outputs;

 private:
  // With a layer that slides, and one that does not.
  ModelConfig config_of(bool slides) const {
    ModelConfig config = read_config(file_);
    if (!slides) return config;
    config.sliding_window = 25;
    config.slides.assign(static_cast<size_t>(config.n_layers), false);
    config.slides.front() = true;
    return config;
  }

  std::vector<std::byte> bytes_ = TinyModel{}.build().build();
  ModelFile file_ = read_gguf(bytes_);
  FakeDevice device_;
  ModelWeights weights_;
  Decoder decoder_{device_, weights_};
  std::vector<std::unique_ptr<KvCache>> caches_;
  std::vector<SequenceId> sequences_[2];
};

TEST(DecoderOnADevice, RecordingsGiveTheSameBits) {
  Recorded recorded(true);
  Recorded plain(false);
  int64_t n_recordings = 0;
  const auto expect_recordings = [&](int64_t n) { EXPECT_EQ(recorded.counts().recordings, n_recordings += n); };
  for (Recorded* r : {&recorded, &plain}) {
    for (int i = 0; i < 3; ++i) r->create(0, 20 + 30 * i);
    for (int i = 0; i < 6; ++i) r->create(1, 5 + i);
    for (int i = 0; i < 40; ++i) r->choose_all(i % 2);  // past flushes and page edges
  }
  expect_recordings(2);  // batches of 4 and 8
  for (Recorded* r : {&recorded, &plain}) {
    r->release_first(1);
    r->choose_all(1);  // still 8
    r->decode(1, {}, {1, 3});
    r->decode(1, {0, 4}, {2});
    r->decode(1, {}, {});
    r->choose_all(0);
  }
  expect_recordings(1);  // without argmax of every row
  for (Recorded* r : {&recorded, &plain}) {
    r->create(0, 150);  // a larger step than any before: all memory moves
    r->choose_all(0);
    r->choose_all(1);
  }
  expect_recordings(2);
  for (Recorded* r : {&recorded, &plain}) {
    for (int i = 0; i < 6; ++i) r->create(1, 7);
    r->choose_all(1);  // 11 of 11: the batch of 16 would be too many
    r->choose_all(1);
    r->forget(1);
    r->choose_all(0);
  }
  expect_recordings(1);
  EXPECT_EQ(recorded.counts().replays, 40 + 5 + 2 + 3);
  EXPECT_EQ(plain.counts().replays, 0);
  EXPECT_EQ(recorded.outputs, plain.outputs);
}

TEST(DecoderOnADevice, RecordingsServeLayersThatSlide) {
  Recorded recorded(true, true);
  Recorded plain(false, true);
  Recorded full(false);
  for (Recorded* r : {&recorded, &plain, &full}) {
    for (int cache = 0; cache < 2; ++cache) {
      for (int i = 0; i < 3; ++i) r->create(cache, 10 + 60 * i);
      for (int i = 0; i < 60; ++i) r->choose_all(cache);
      r->decode(cache, {0, 1, 2}, {});
    }
  }
  EXPECT_GT(recorded.counts().replays, 100);
  EXPECT_EQ(recorded.outputs, plain.outputs);
  EXPECT_NE(plain.outputs, full.outputs);
}

TEST(DecoderOnADevice, GreedyDecodingMovesTokensOnly) {
  Recorded recorded(true);
  for (int i = 0; i < 5; ++i) recorded.create(0, 20);
  recorded.choose_all(0);
  const FakeDevice::Counts before = recorded.counts();
  recorded.choose_all(0);
  EXPECT_EQ(recorded.counts().bytes_to_host - before.bytes_to_host, 5 * 4);
  EXPECT_EQ(recorded.counts().copies_to_device - before.copies_to_device, 2);  // tables, and tokens with positions
}

TEST(PaddedBatch, HasFewSizesAndLittleWaste) {
  std::set<int64_t> sizes;
  for (int64_t n = 1; n <= 1024; ++n) {
    EXPECT_GE(padded_batch(n), n);
    EXPECT_EQ(padded_batch(padded_batch(n)), padded_batch(n));
    EXPECT_LE(padded_batch(n) - n, n <= 256 ? 7 : 31);
    sizes.insert(padded_batch(n));
  }
  EXPECT_LT(sizes.size(), 64U);
  EXPECT_EQ(padded_batch(1), 1);
  EXPECT_EQ(padded_batch(3), 4);
  EXPECT_EQ(padded_batch(9), 16);
  EXPECT_EQ(padded_batch(257), 288);
}

}  // namespace
}  // namespace kivi
