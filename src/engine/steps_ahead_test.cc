// Steps that run ahead, on the GPUs that are there.
#include <gtest/gtest.h>

#include <map>

#include "backend/test_device.h"
#include "engine/engine.h"
#include "engine/tiny_session.h"

namespace kivi {
namespace {

std::vector<TestDevice> gpus() {
  std::vector<TestDevice> devices = test_devices();
  std::erase_if(devices, [](const TestDevice& device) { return !device.is_gpu(); });
  return devices;
}

class StepsAhead : public testing::TestWithParam<TestDevice> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(StepsAhead);
INSTANTIATE_TEST_SUITE_P(Gpu, StepsAhead, testing::ValuesIn(gpus()), test_name);

// All prompts run in one step and outputs end by their length, so that batches are the same with and without, and sums
// too. A sequence whose cache is kept for later must not run ahead, nor those beside it.
TEST_P(StepsAhead, ChangeNothing) {
  TinySession session(GetParam().make(), TinyModel{.head_dim = 64}.build().build());
  for (const char* kv : {"f16", "kivi2:residual=32"}) {
    std::vector<std::map<RequestId, std::vector<TokenId>>> outputs;
    for (const bool is_kept : {false, true}) {
      Engine engine(*session.backend, session.decoder,
                    {.kv = parse_kv_config(kv), .capacity = {.max_tokens = 160, .max_sequences = 6}});
      engine.warm_up();
      for (uint32_t i = 0; i < 6; ++i) {
        engine.submit({.prompt = session.random_tokens(1 + 17 * i, i),
                       .max_new_tokens = i == 0 ? 36 : 16 + 3 * i,
                       .keep_cached = is_kept && i == 0});
      }
      outputs.emplace_back();
      while (!engine.idle()) {
        for (const Event& event : engine.step()) {
          if (event.token) outputs.back()[event.id].push_back(*event.token);
          ASSERT_FALSE(event.finish && event.finish->error) << event.finish->error->what();
        }
      }
      EXPECT_EQ(engine.stats().steps, 36);
      EXPECT_EQ(engine.stats().steps_ahead, is_kept ? 0 : 35);
    }
    ASSERT_EQ(outputs[0].size(), 6U);
    EXPECT_EQ(outputs[0][0].size(), 36U);
    EXPECT_EQ(outputs[0], outputs[1]) << kv;
  }
}

}  // namespace
}  // namespace kivi
