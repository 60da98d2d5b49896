// Every family of models: the golden models (tests/golden/models), whose logits Transformers computed.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "backend/test_device.h"
#include "model/model.h"
#include "model/model_runner.h"

namespace kivi {
namespace {

const std::string kFolder = KIVI_SOURCE_DIR "/tests/golden/models/";

struct Golden {
  std::string name;
  int32_t n_prompt = 0;
  double largest = 0;  // logit
  std::vector<TokenId> tokens;
  Logits logits;

  ModelFile open() const { return read_model_file(kFolder + name + "/model.gguf"); }
  ModelFile open_folder() const { return read_model_file(kFolder + name); }
};

constexpr std::array kNames = {"llama",  "llama3", "mistral", "qwen2",     "qwen3",
                               "gemma2", "gemma3", "phi3",    "falcon-7b", "falcon-40b"};

nlohmann::json read_index() {
  std::ifstream file(kFolder + "index.json");
  return nlohmann::json::parse(file);
}

Golden read_golden(const std::string& name) {
  for (const auto& entry : read_index()) {
    if (entry.at("name") != name) continue;
    Golden golden{.name = name,
                  .n_prompt = entry.at("n_prompt").get<int32_t>(),
                  .largest = entry.at("largest").get<double>(),
                  .tokens = entry.at("tokens").get<std::vector<TokenId>>(),
                  .logits = {}};
    golden.logits.assign(golden.tokens.size(), std::vector<float>(entry.at("vocab_size").get<size_t>()));
    std::ifstream file(kFolder + name + "/logits.bin", std::ios::binary);
    for (std::vector<float>& row : golden.logits) {
      file.read(reinterpret_cast<char*>(row.data()), static_cast<std::streamsize>(row.size() * sizeof(float)));
    }
    if (!file) throw std::runtime_error(name + "/logits.bin: too short");
    return golden;
  }
  throw std::runtime_error(name + ": not in index.json");
}

TEST(ModelFamily, LoadingTellsHowFarItIs) {
  for (const char* name : kNames) {
    const auto backend = make_backend({.device = "reference", .n_threads = 1});
    const auto model = open_model(kFolder + name + "/model.gguf");
    std::vector<double> parts;
    load_weights(*backend, *model, [&parts](double part) { parts.push_back(part); });
    EXPECT_TRUE(std::ranges::is_sorted(parts)) << name;
    EXPECT_GT(parts.front(), 0.0) << name;
    EXPECT_EQ(parts.back(), 1.0) << name;
  }
}

TEST(ModelFamily, EveryGoldenModelIsTested) {
  for (const auto& entry : read_index()) {
    EXPECT_TRUE(std::ranges::find(kNames, entry.at("name").get<std::string>()) != kNames.end()) << entry.at("name");
  }
}

using Case = std::tuple<TestDevice, const char*>;

class ModelFamilyTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const int64_t head_dim = read_config(golden_.open()).head_dim;
    if (device().is_gpu() && head_dim < 64) GTEST_SKIP() << "a GPU has no kernels for heads of " << head_dim;
  }
  const TestDevice& device() const { return std::get<0>(GetParam()); }
  ModelRunner make_runner(std::string_view kv) const { return {golden_.open(), device().make(), kv}; }
  ModelRunner make_reference(std::string_view kv) const {
    return {golden_.open(), make_backend({.device = "reference", .n_threads = 1}), kv};
  }

  const Golden golden_ = read_golden(std::get<1>(GetParam()));
};

TEST_P(ModelFamilyTest, LogitsEqualTransformers) {
  for (const bool is_folder : {false, true}) {
    SCOPED_TRACE(is_folder ? "folder" : "GGUF");
    ModelRunner runner(is_folder ? golden_.open_folder() : golden_.open(), device().make(), "f16");
    const Logits got = runner.run(golden_.tokens, golden_.n_prompt);
    const bool is_f32 = !device().is_gpu();
    const double tolerance = is_f32 ? 2e-4 : golden_.largest * runner.tolerance().plain;
    const double difference = largest_difference(got, golden_.logits);
    RecordProperty(is_folder ? "difference_folder" : "difference_gguf", std::to_string(difference));
    EXPECT_LT(difference, tolerance);
  }
}

// Long enough that all pack; a difference in a key can move a code, and then logits by more.
TEST_P(ModelFamilyTest, EveryPresetRunsAsOnTheReference) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < 2; ++i) tokens.insert(tokens.end(), golden_.tokens.begin(), golden_.tokens.end());
  std::vector<std::string> configs{"kivi2:sinks=4", "kivi2:residual=32", "kivi4:group-size=64:residual=64"};
  for (const KvConfig& preset : kv_presets()) configs.push_back(preset.name);
  for (const std::string& kv : configs) {
    SCOPED_TRACE(kv);
    ModelRunner runner = make_runner(kv);
    ModelRunner reference = make_reference(kv);
    const Logits got = runner.run(tokens, 150);
    const Logits wanted = reference.run(tokens, 150);
    EXPECT_LT(root_mean_square_difference(got, wanted), golden_.largest * runner.tolerance().packed);
    const KvCache& cache = runner.cache();
    EXPECT_GT(cache.allocated_bytes(), 0);
    EXPECT_EQ(cache.memory().allocated_bytes(), cache.allocated_bytes());
    const bool dropped = cache.memory().elements < std::ssize(tokens) * cache.shape().elements_per_token();
    const bool slides = cache.shape().sliding_window > 0;
    EXPECT_EQ(dropped, slides) << "what slid out is dropped";
  }
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  const auto& [device, golden] = info.param;
  std::string name = test_name(testing::TestParamInfo<TestDevice>(device, 0)) + "_" + golden;
  std::ranges::replace(name, '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Golden, ModelFamilyTest,
                         testing::Combine(testing::ValuesIn(test_devices()), testing::ValuesIn(kNames)), case_name);

}  // namespace
}  // namespace kivi
