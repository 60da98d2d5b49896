// The decoder on every device, against itself on the reference. What it must compute: model_family_test.cc.
#include "model/decoder.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "backend/fake_device.h"
#include "backend/test_device.h"
#include "io/gguf.h"
#include "model/model_runner.h"
#include "model/tiny_model.h"

namespace kivi {
namespace {

std::vector<TokenId> some_tokens(int n) {
  std::vector<TokenId> tokens(n);
  for (int i = 0; i < n; ++i) tokens[i] = (i * 17 + 5) % 50;
  return tokens;
}

// Devices of this machine, and one that rounds as a GPU does.
constexpr const char* kFake = "fake";

class DecoderTest : public testing::TestWithParam<TestDevice> {
 protected:
  static std::unique_ptr<Backend> make_device() {
    if (GetParam().name != kFake) return GetParam().make();
    return std::make_unique<FakeDevice>(FakeDeviceOptions{.activation = *GetParam().dtype});
  }
  static ModelRunner make_runner(std::string_view kv, std::unique_ptr<Backend> device = make_device()) {
    std::vector<std::byte> bytes = TinyModel{.head_dim = 64}.build().build();  // as every device takes it
    ModelFile file = read_gguf(bytes);
    return {std::move(file), std::move(device), kv, std::move(bytes)};
  }
  static ModelRunner make_reference(std::string_view kv) {
    return make_runner(kv, make_backend({.device = "reference", .n_threads = 1}));
  }
};

TEST_P(DecoderTest, TokenByTokenEqualsAllAtOnce) {
  ModelRunner runner = make_runner("f16");
  const Logits wanted = runner.run(some_tokens(70), 70);
  const Logits got = runner.run(some_tokens(70), 1);
  EXPECT_LT(largest_difference(got, wanted), runner.tolerance().plain);
}

// Presets that pack: the reference and the device must see the same cache, step after step.
TEST_P(DecoderTest, PackedPresetsEqualTheReference) {
  for (const char* kv : {"kivi2", "kivi4:sinks=4", "kivi2:residual=32:group-size=32"}) {
    ModelRunner reference = make_reference(kv);
    ModelRunner runner = make_runner(kv);
    const SequenceId ids[] = {reference.create(), runner.create()};
    const auto expect_close = [&](const std::vector<TokenId>& tokens) {
      const auto n = static_cast<int32_t>(tokens.size());
      const Logits got = runner.step({{ids[1], n}}, tokens);
      const Logits wanted = reference.step({{ids[0], n}}, tokens);
      EXPECT_LT(root_mean_square_difference(got, wanted), runner.tolerance().packed) << kv << ", " << n << " tokens";
    };
    expect_close(some_tokens(150));
    for (const TokenId token : some_tokens(12)) expect_close({token});
  }
}

TEST_P(DecoderTest, ABatchGivesTheSameBitsAsEachAlone) {
  if (GetParam().is_gpu()) GTEST_SKIP() << "a matrix product may be summed in another order there";
  ModelRunner together = make_runner("kivi2:residual=32");
  ModelRunner alone = make_runner("kivi2:residual=32");
  const SequenceId a = together.create();
  const SequenceId b = together.create();
  const SequenceId a_alone = alone.create();
  const SequenceId b_alone = alone.create();
  std::vector<TokenId> both = some_tokens(90);
  const std::vector<TokenId> tail = some_tokens(33);
  both.insert(both.end(), tail.begin(), tail.end());
  const Logits prompts = together.step({{a, 90}, {b, 33}}, both);
  EXPECT_EQ(alone.step({{a_alone, 90}}, some_tokens(90)), Logits(prompts.begin(), prompts.begin() + 90));
  EXPECT_EQ(alone.step({{b_alone, 33}}, tail), Logits(prompts.begin() + 90, prompts.end()));
  for (const TokenId token : some_tokens(10)) {
    const Logits logits = together.step({{a, 1}, {b, 1}}, {token, 7});
    ASSERT_EQ(alone.step({{a_alone, 1}}, {token})[0], logits[0]);
    ASSERT_EQ(alone.step({{b_alone, 1}}, {7})[0], logits[1]);
  }
}

std::vector<TestDevice> devices_and_fakes() {
  std::vector<TestDevice> devices = test_devices();
  for (const DType dtype : {DType::kF16, DType::kBF16}) devices.push_back({kFake, dtype});
  return devices;
}

INSTANTIATE_TEST_SUITE_P(EveryDevice, DecoderTest, testing::ValuesIn(devices_and_fakes()), test_name);

}  // namespace
}  // namespace kivi
