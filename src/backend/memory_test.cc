// Memory, copies and recordings of every device.
#include <gtest/gtest.h>

#include <numeric>

#include "backend/backend_tester.h"
#include "backend/weight_samples.h"

namespace kivi {
namespace {

class MemoryTest : public BackendTester {};
INSTANTIATE_TEST_SUITE_P(Device, MemoryTest, testing::ValuesIn(devices_under_test()), test_name);

TEST_P(MemoryTest, IsZeroedAndAligned) {
  for (const size_t size : {1000, 5 << 20}) {
    const auto buffer = backend_->allocate(size);
    EXPECT_EQ(buffer->size_bytes(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0U);
    std::vector<std::byte> bytes(size, std::byte{1});
    backend_->copy_to_host(bytes.data(), buffer->data(), size);
    for (const std::byte byte : bytes) ASSERT_EQ(byte, std::byte{0});
  }
  EXPECT_NE(backend_->allocate(0)->data(), nullptr);
}

TEST_P(MemoryTest, NoRoomIsAnErrorThatNamesTheSize) {
  const auto error = error_of([&] { backend_->allocate(size_t{1} << 60); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kOutOfMemory);
  EXPECT_NE(std::string(error->what()).find("1152921504606846976"), std::string::npos);
  EXPECT_NE(backend_->allocate(1000), nullptr) << "an error that has been told is over";
  backend_->synchronize();
}

TEST_P(MemoryTest, FreeBytesFallByWhatIsAllocated) {
  const size_t before = backend_->free_bytes();
  if (before == 0) return;  // there is no use in asking
  constexpr size_t kSize = size_t{64} << 20;
  const auto buffer = backend_->allocate(kSize);
  EXPECT_LE(backend_->free_bytes(), before - kSize);
}

TEST_P(MemoryTest, CopiesOfEverySizeComeBack) {
  constexpr size_t kMost = (size_t{9} << 20) + 13;
  const auto buffer = backend_->allocate(kMost);
  std::vector<uint8_t> bytes(kMost);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
  for (const size_t size : {size_t{0}, size_t{1}, size_t{4097}, size_t{2} << 20, (size_t{2} << 20) + 1, kMost}) {
    std::vector<uint8_t> back(size);
    backend_->copy_to_device(buffer->data(), bytes.data(), size);
    backend_->copy_to_host(back.data(), buffer->data(), size);
    EXPECT_TRUE(std::equal(back.begin(), back.end(), bytes.begin())) << size;
    std::rotate(bytes.begin(), bytes.begin() + 1, bytes.end());  // other contents for the next
  }
}

TEST_P(MemoryTest, AReadbackBringsWhatWasThereWhenItStarted) {
  constexpr size_t kSize = (size_t{3} << 20) + 13;
  const auto buffer = backend_->allocate(kSize);
  const std::array<std::unique_ptr<Readback>, 2> readbacks{backend_->make_readback(kSize),
                                                           backend_->make_readback(kSize)};
  std::vector<uint8_t> bytes(kSize);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
  for (size_t round = 0; round < 4; ++round) {
    const size_t size = kSize - round;
    for (const auto& readback : readbacks) {
      std::rotate(bytes.begin(), bytes.begin() + 1, bytes.end());
      backend_->copy_to_device(buffer->data(), bytes.data(), kSize);
      readback->start(buffer->data(), size);
    }
    const std::vector<std::byte> nothing(kSize);
    backend_->copy_to_device(buffer->data(), nothing.data(), kSize);
    for (const size_t i : {1, 0}) {
      const auto* back = reinterpret_cast<const uint8_t*>(readbacks[i]->wait());
      EXPECT_TRUE(std::equal(back, back + size, bytes.begin())) << round << " " << i;
      std::rotate(bytes.begin(), bytes.end() - 1, bytes.end());  // to what the other one read
    }
    std::rotate(bytes.begin(), bytes.begin() + 2, bytes.end());
  }
}

TEST_P(MemoryTest, CopiesWithinItsMemoryAreInTheOrderOfTheCalls) {
  constexpr size_t kSize = (size_t{1} << 20) + 13;
  const auto from = backend_->allocate(kSize);
  const auto to = backend_->allocate(kSize);
  std::vector<uint8_t> bytes(kSize);
  std::vector<uint8_t> back(kSize);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
  backend_->copy_to_device(from->data(), bytes.data(), kSize);
  backend_->copy(to->data(), from->data(), kSize);
  backend_->copy_to_device(from->data(), back.data(), kSize);
  backend_->copy(to->data(), from->data(), 0);
  backend_->copy_to_host(back.data(), to->data(), kSize);
  EXPECT_EQ(back, bytes);
}

// The caller's memory is its own again when copy_to_device returns, and copies happen in the order of the calls.
TEST_P(MemoryTest, TheSourceOfACopyMayChangeAtOnce) {
  constexpr int32_t kCopies = 100;
  constexpr size_t kInts = 70000;
  const auto buffer = backend_->allocate(kCopies * kInts * sizeof(int32_t));
  std::vector<int32_t> source(kInts);
  for (int32_t i = 0; i < kCopies; ++i) {
    std::fill(source.begin(), source.end(), i);
    backend_->copy_to_device(buffer->data() + static_cast<size_t>(i) * kInts * sizeof(int32_t), source.data(),
                             kInts * sizeof(int32_t));
  }
  std::fill(source.begin(), source.end(), -1);
  std::vector<int32_t> back(kCopies * kInts);
  backend_->copy_to_host(back.data(), buffer->data(), back.size() * sizeof(int32_t));
  for (size_t i = 0; i < back.size(); ++i) ASSERT_EQ(back[i], static_cast<int32_t>(i / kInts));
}

TEST_P(MemoryTest, ACopyWaitsItsTurnBetweenOperations) {
  constexpr int64_t kChannels = 64;
  OnDevice x = poisoned(DType::kF32, {1, kChannels});
  const OnDevice first = poisoned(DType::kF16, {1, kChannels});
  const OnDevice second = poisoned(DType::kF16, {1, kChannels});
  const std::vector<float> ones(kChannels, 1.0F);
  const std::vector<float> twos(kChannels, 2.0F);
  backend_->copy_to_device(x.view.data, ones.data(), kChannels * sizeof(float));
  backend_->convert({x.view, first.view});
  backend_->copy_to_device(x.view.data, twos.data(), kChannels * sizeof(float));
  backend_->convert({x.view, second.view});
  EXPECT_EQ(download(first), ones);
  EXPECT_EQ(download(second), twos);
}

// ---- Recordings ----

// A feed-forward layer from tokens to the most likely next ones: every operation but rope and those of the cache.
class RecordingTest : public BackendTester {
 protected:
  static constexpr int64_t kTokens = 5;
  static constexpr int64_t kHidden = 64;
  static constexpr int64_t kWide = 96;
  static constexpr int64_t kVocabulary = 50;

  void run() {
    backend_->embed({embedding_.get(), tokens_.view, x_.view});
    backend_->norm({.x = x_.view, .weight = norm_.view, .epsilon = 1e-5F, .out = normed_.view});
    backend_->linear({normed_.view, up_.get(), bias_.view, wide_.view});
    backend_->gate({wide_.view, wide_.view, Activation::kSilu, wide_.view});
    backend_->linear({wide_.view, down_.get(), {}, x_.view, true});
    backend_->gather({x_.view, order_.view, gathered_.view});
    backend_->norm({.x = gathered_.view, .weight = norm_.view, .epsilon = 1e-5F, .out = normed_.view});
    backend_->linear({normed_.view, embedding_.get(), {}, logits_.view});
    backend_->argmax({logits_.view, next_.view});
  }
  void set_tokens(const std::vector<int32_t>& tokens) {
    backend_->copy_to_device(tokens_.view.data, tokens.data(), tokens.size() * sizeof(int32_t));
  }
  std::pair<std::vector<float>, std::vector<int32_t>> results() { return {download(logits_), download_ints(next_)}; }

  std::unique_ptr<Weight> load(int64_t rows, int64_t cols, uint32_t seed) {
    samples_.push_back(std::make_unique<WeightSample>(WeightFormat::kQ8_0, rows, cols, seed));
    return backend_->load_weight(samples_.back()->view());
  }

  std::vector<std::unique_ptr<WeightSample>> samples_;
  std::unique_ptr<Weight> embedding_ = load(kVocabulary, kHidden, 1);
  std::unique_ptr<Weight> up_ = load(kWide, kHidden, 2);
  std::unique_ptr<Weight> down_ = load(kHidden, kWide, 3);
  OnDevice norm_ = upload(random_values(kHidden), DType::kF32, {kHidden});
  OnDevice bias_ = upload(random_values(kWide), DType::kF32, {kWide});
  OnDevice tokens_ = upload(std::vector<int32_t>(kTokens));
  OnDevice order_ = upload(std::vector<int32_t>{4, 2, 0, 1, 3});
  OnDevice x_ = poisoned(DType::kF32, {kTokens, kHidden});
  OnDevice gathered_ = poisoned(DType::kF32, {kTokens, kHidden});
  OnDevice normed_ = poisoned(act_, {kTokens, kHidden});
  OnDevice wide_ = poisoned(act_, {kTokens, kWide});
  OnDevice logits_ = poisoned(DType::kF32, {kTokens, kVocabulary});
  OnDevice next_ = poisoned(DType::kI32, {kTokens});
};
INSTANTIATE_TEST_SUITE_P(Device, RecordingTest, testing::ValuesIn(devices_under_test()), test_name);

TEST_P(RecordingTest, ReplayedItDoesWhatTheOperationsDo) {
  const std::vector<int32_t> a{1, 7, 49, 0, 7};
  const std::vector<int32_t> b{12, 3, 3, 30, 48};
  bool called = false;
  const auto recording = backend_->record([&] {  // before any of it ran: nothing needs to warm up
    called = true;
    run();
  });
  if (recording == nullptr) {
    EXPECT_FALSE(called);
    return;
  }
  for (const int32_t next : download_ints(next_)) EXPECT_EQ(next, -1) << "recording has run something";
  set_tokens(a);
  run();
  const auto direct_a = results();
  set_tokens(b);
  run();
  const auto direct_b = results();
  EXPECT_NE(direct_a, direct_b);
  for (int i = 0; i < 3; ++i) {
    set_tokens(a);
    backend_->replay(*recording);
    EXPECT_EQ(results(), direct_a);
    set_tokens(b);
    backend_->replay(*recording);
    backend_->replay(*recording);
    EXPECT_EQ(results(), direct_b);
  }
}

TEST_P(RecordingTest, WhatCannotBeRecordedIsAnErrorAndNothingBreaks) {
  if (backend_->record([] {}) == nullptr) return;
  const auto code = error_code_of([&] {
    backend_->record([&] {
      run();
      backend_->allocate(100);
    });
  });
  EXPECT_EQ(code, ErrorCode::kInternal);
  EXPECT_EQ(error_code_of([&] { backend_->record([&] { backend_->synchronize(); }); }), ErrorCode::kInternal);
  set_tokens({1, 2, 3, 4, 5});
  run();
  const auto direct = results();
  backend_->replay(*backend_->record([&] { run(); }));
  EXPECT_EQ(results(), direct);
}

}  // namespace
}  // namespace kivi
