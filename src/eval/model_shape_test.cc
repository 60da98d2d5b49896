#include "eval/model_shape.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "core/error.h"
#include "model/decoder.h"
#include "model/random_model.h"

namespace kivi {
namespace {

class ModelShapeFile : public testing::Test {
 protected:
  ~ModelShapeFile() override { std::remove(path_.c_str()); }
  ModelConfig read(const std::string& json) const {
    std::ofstream(path_) << json;
    return read_model_shape(path_);
  }
  std::string refusal(const std::string& json) const {
    try {
      read(json);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return "accepted";
  }
  std::string path_ = testing::TempDir() + "kivi-shape-" + std::to_string(getpid()) + ".json";
};

constexpr const char* kTiny = R"({"n_layers":2,"n_heads":4,"n_kv_heads":2,"head_dim":32,"hidden_size":64,)"
                              R"("ffn_size":96,"vocab_size":50,"name":"tiny","tied_output":true,"qkv_bias":true})";

TEST_F(ModelShapeFile, IsRead) {
  const ModelConfig config = read(kTiny);
  EXPECT_EQ(config.name, "tiny");
  EXPECT_EQ(config.n_layers, 2);
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_EQ(config.rope.n_dims, 32);
  EXPECT_TRUE(config.tied_output);
  EXPECT_TRUE(config.has_qkv_bias);
  EXPECT_EQ(config.context_length, 4096);
}

TEST_F(ModelShapeFile, ErrorsNameTheField) {
  EXPECT_NE(refusal(R"({"n_layers":2})").find("field ffn_size is missing"), std::string::npos);
  EXPECT_NE(refusal(R"({"layers":2})").find("field layers is unknown; use "), std::string::npos);
  EXPECT_NE(refusal(R"({"n_layers":"two"})").find("must be number"), std::string::npos);
  EXPECT_NE(refusal("[1]").find("no JSON object"), std::string::npos);
  EXPECT_NE(refusal("{").find("parse"), std::string::npos);
}

TEST(ModelShape, KnowsTheUsualOnes) {
  const ModelConfig llama = read_model_shape("llama-2-7b");
  EXPECT_EQ(random_weight_bytes(llama), 2 * int64_t{6738415616} + 2 * 4096 * 65);  // norms take 32 bits
  EXPECT_EQ(read_model_shape("llama-3-8b").n_kv_heads, 8);
  EXPECT_NEAR(static_cast<double>(random_weight_bytes(read_model_shape("llama-3-8b"))), 2 * 8.03e9, 2e7);
  EXPECT_NEAR(static_cast<double>(random_weight_bytes(read_model_shape("mistral-7b"))), 2 * 7.24e9, 2e7);
  EXPECT_NEAR(static_cast<double>(random_weight_bytes(read_model_shape("llama-2-13b"))), 2 * 13.02e9, 2e7);
  try {
    read_model_shape("llama-9");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    EXPECT_NE(std::string(error.what()).find("llama-2-7b, llama-2-13b"), std::string::npos);
  }
}

// The decoder runs it, and what it does depends on the weights alone.
TEST_F(ModelShapeFile, MakesAModelThatRuns) {
  std::vector<std::vector<float>> logits;
  for (const char* device : {"reference", "cpu"}) {
    const auto backend = make_backend({.device = device, .n_threads = 2});
    const auto model = open_random_model(read(kTiny));
    load_weights(*backend, *model);
    EXPECT_NE(model->config.name.find("random weights"), std::string::npos);
    EXPECT_EQ(model->tokenizer, nullptr);
    Decoder decoder(*backend, model->weights);
    KvCache cache(*backend, decoder.kv_shape(), parse_kv_config("f16"), {.max_tokens = 20});
    const StepSequence step{cache.create(), 5};
    ASSERT_TRUE(cache.reserve({&step, 1}));
    const TokenId tokens[] = {3, 1, 4, 1, 5};
    const int32_t last = 4;
    const auto output = decoder.step(cache, {.tokens = tokens, .logit_rows = {&last, 1}}).logits;
    logits.emplace_back(output.data, output.data + output.size());
  }
  double squares = 0;
  for (size_t i = 0; i < 50; ++i) {
    EXPECT_NEAR(logits[0][i], logits[1][i], 2e-3);
    squares += logits[0][i] * logits[0][i] / 50;
  }
  EXPECT_GT(squares, 0.2);
  EXPECT_LT(squares, 20);
}

TEST_F(ModelShapeFile, RefusesSizesThatContradictEachOther) {
  ModelConfig config = read(kTiny);
  config.n_heads = 3;
  EXPECT_THROW(open_random_model(config), Error);
  config.n_heads = 0;
  EXPECT_THROW(open_random_model(config), Error);
}

}  // namespace
}  // namespace kivi
