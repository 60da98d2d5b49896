// Golden models (generate.py): logits of kivi against those of Transformers, for every model, kind of file and device.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_cache.h"
#include "cache/kv_support.h"
#include "core/error.h"
#include "model/decoder.h"
#include "model/model.h"

namespace kivi {
namespace {

const std::string kFolder = KIVI_SOURCE_DIR "/tests/golden/models/";

// In f32, and as far as 16-bit activations and weights of random models go. TODO
double tolerance(const Backend& backend) {
  return backend.activation_dtype() == DType::kF32 ? 2e-4 : 0.1;
}

struct Golden {
  std::string name;
  int64_t n_prompt = 0;
  int64_t vocab_size = 0;
  std::vector<TokenId> tokens;
  std::vector<float> logits;  // [tokens, vocabulary]
};

std::vector<float> read_floats(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

std::vector<Golden> read_goldens() {
  std::ifstream in(kFolder + "index.json");
  std::vector<Golden> goldens;
  for (const auto& entry : nlohmann::json::parse(in)) {
    Golden golden;
    entry.at("name").get_to(golden.name);
    entry.at("n_prompt").get_to(golden.n_prompt);
    entry.at("vocab_size").get_to(golden.vocab_size);
    entry.at("tokens").get_to(golden.tokens);
    golden.logits = read_floats(kFolder + golden.name + "/logits.bin");
    goldens.push_back(std::move(golden));
  }
  return goldens;
}

const std::vector<Golden>& goldens() {
  static const std::vector<Golden> all = read_goldens();
  return all;
}

// What a step of the model gives, a row for each of its tokens.
class Session {
 public:
  Session(Backend& backend, const ModelFile& file, int64_t max_tokens)
      : weights_(load_weights(backend, file, read_config(file))),
        decoder_(backend, weights_),
        cache_(backend, decoder_.kv_shape(), parse_kv_config("f16"), {.max_tokens = max_tokens}),
        sequence_(cache_.create()) {}

  TensorView<const float, 2> step(std::span<const TokenId> tokens) {
    const StepSequence entry{sequence_, static_cast<int32_t>(tokens.size())};
    if (!cache_.reserve({&entry, 1})) ADD_FAILURE() << "no room for " << tokens.size() << " tokens";
    std::vector<int32_t> rows(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    return decoder_.step(cache_, {.tokens = tokens, .logit_rows = rows}).logits;
  }

 private:
  ModelWeights weights_;
  Decoder decoder_;
  KvCache cache_;
  SequenceId sequence_;
};

class GoldenModel : public testing::TestWithParam<std::tuple<std::string, std::string, std::string>> {};

TEST_P(GoldenModel, Logits) {
  const auto& [name, kind, device] = GetParam();
  const Golden& golden = *std::ranges::find(goldens(), name, &Golden::name);
  ASSERT_EQ(std::ssize(golden.logits), std::ssize(golden.tokens) * golden.vocab_size);
  const std::unique_ptr<Backend> backend = make_backend({.device = device, .n_threads = 2});
  const ModelFile file = read_model_file(kFolder + name + (kind == "gguf" ? "/model.gguf" : ""));
  Session session(*backend, file, std::ssize(golden.tokens));

  double largest = 0;
  int64_t done = 0;
  while (done < std::ssize(golden.tokens)) {
    const int64_t n = done == 0 ? golden.n_prompt : 1;
    const auto logits =
        session.step(std::span(golden.tokens).subspan(static_cast<size_t>(done), static_cast<size_t>(n)));
    ASSERT_EQ(logits.shape[1], golden.vocab_size);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < golden.vocab_size; ++j) {
        const float wanted = golden.logits[static_cast<size_t>((done + i) * golden.vocab_size + j)];
        const double difference = std::abs(double{logits(i, j)} - double{wanted});
        ASSERT_LT(difference, tolerance(*backend)) << "token " << done + i << ", logit " << j << " of " << wanted;
        largest = std::max(largest, difference);
      }
    }
    done += n;
  }
  RecordProperty("largest_difference", std::to_string(largest));
  printf("%s %s %s: %.2e\n", name.c_str(), kind.c_str(), device.c_str(), largest);
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const Golden& golden : goldens()) all.push_back(golden.name);
  return all;
}

std::string test_name(const testing::TestParamInfo<GoldenModel::ParamType>& test) {
  const auto& [name, kind, device] = test.param;
  std::string text = fmt::format("{}_{}_{}", name, kind, device);
  std::ranges::replace_if(
      text, [](char c) { return !std::isalnum(c); }, '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModel,
                         testing::Combine(testing::ValuesIn(names()), testing::Values("folder", "gguf"),
                                          testing::ValuesIn(available_devices())),
                         test_name);

}  // namespace
}  // namespace kivi
