#include "eval/kv_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace kivi {
namespace {

constexpr KvShape kShape{.n_layers = 30, .n_kv_heads = 3, .head_dim = 64};

TEST(KvReport, CountsThePresets) {
  const std::vector<KvReport> reports = report_kv(kShape, kv_presets(), 4096);
  ASSERT_EQ(reports.size(), kv_presets().size());
  const int64_t elements = 2 * 30 * 3 * 64;
  EXPECT_EQ(reports[0].bytes_per_token, 2.0 * elements);
  EXPECT_EQ(reports[0].at_context.allocated_bytes(), 4096 * elements * 2);
  EXPECT_EQ(reports[1].bits_per_element, 5.0);
  EXPECT_EQ(reports[2].bits_per_element, 3.0);
  EXPECT_EQ(reports[2].bytes_per_token, elements * 3.0 / 8);
  // All keys are packed, all values but 128.
  EXPECT_EQ(reports[2].at_context.packed_bytes(), (4096 * elements / 2 + 3968 * elements / 2) * 3 / 8);
  EXPECT_EQ(reports[2].at_context.window_bytes, 128 * elements / 2 * 2);
}

TEST(KvReport, WritesTheKeysThatScriptsReadFirst) {
  const auto json = to_json(std::span<const KvReport>(report_kv(kShape, kv_presets(), 100)));
  ASSERT_EQ(json.size(), kv_presets().size());
  std::vector<std::string> keys;
  for (const auto& [key, value] : json[2].items()) keys.push_back(key);
  ASSERT_GE(keys.size(), 4U);
  keys.resize(4);
  EXPECT_EQ(keys, (std::vector<std::string>{"kv", "bytes_per_token", "bytes_at_context", "bits_per_element"}));
  EXPECT_EQ(json[2]["kv"], "kivi2");
}

}  // namespace
}  // namespace kivi
