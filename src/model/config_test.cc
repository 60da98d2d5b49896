#include "model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/gguf.h"
#include "model/tiny_model.h"

namespace kivi {
namespace {

ModelConfig config_of(const GgufBuilder& builder) {
  const auto bytes = builder.build();
  return read_config(read_gguf(std::span(bytes)));
}

void expect_error(const GgufBuilder& builder, ErrorCode code, const std::string& message) {
  try {
    config_of(builder);
    FAIL() << "no error; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), message);
    EXPECT_EQ(error.code(), code);
  }
}

void expect_corrupt(const TinyModel& model, const std::string& message) {
  expect_error(model.build(), ErrorCode::kCorrupt, "memory: " + message);
}

TEST(ModelConfig, ReadsALlama) {
  const ModelConfig config = config_of(TinyModel{.head_dim = 24}.build().set("general.name", "Tiny"));
  EXPECT_EQ(config.name, "Tiny");
  EXPECT_EQ(config.quantisation, "F32");
  EXPECT_EQ(config.architecture, &kLlamaArchitecture);
  EXPECT_EQ(config.n_layers, 2);
  EXPECT_EQ(config.n_heads, 4);
  EXPECT_EQ(config.n_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 24);  // not hidden_size / n_heads
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_EQ(config.ffn_size, 96);
  EXPECT_EQ(config.vocab_size, 50);
  EXPECT_EQ(config.context_length, 256);
  EXPECT_EQ(config.norm_epsilon, double{1e-5F});
  EXPECT_EQ(config.rope.pairing, RopePairing::kInterleaved);
  EXPECT_EQ(config.rope.base, 10000.0);
  EXPECT_EQ(config.rope.n_dims, 24);
  EXPECT_EQ(config.rope.frequency_scale, 1.0);
  EXPECT_TRUE(config.rope.frequency_factors.empty());
  EXPECT_TRUE(config.tied_output);
  EXPECT_FALSE(config.has_qkv_bias);
}

TEST(ModelConfig, ReadsAQwen2) {
  const ModelConfig config =
      config_of(TinyModel{.architecture = "qwen2", .tied_output = false, .qkv_bias = true}.build());
  EXPECT_EQ(config.name, "qwen2");
  EXPECT_EQ(config.architecture, &kQwen2Architecture);
  EXPECT_EQ(config.rope.pairing, RopePairing::kHalfSplit);
  EXPECT_FALSE(config.tied_output);
  EXPECT_TRUE(config.has_qkv_bias);
}

TEST(ModelConfig, ReadsAFalcon) {
  TinyModel tiny{.architecture = "falcon", .n_kv_heads = 1, .stacked_qkv = true, .shares_norm = true};
  ModelConfig config = config_of(tiny.build());
  EXPECT_EQ(config.norm, NormKind::kLayer);
  EXPECT_TRUE(config.has_norm_bias);
  EXPECT_TRUE(config.is_parallel);
  EXPECT_TRUE(config.shares_norm);
  EXPECT_TRUE(config.stacked_qkv);
  EXPECT_FALSE(config.has_gate);
  EXPECT_EQ(config.activation, Activation::kGelu);
  EXPECT_EQ(config.rope.pairing, RopePairing::kHalfSplit);
  tiny.shares_norm = false;  // as in the 40B model
  EXPECT_FALSE(config_of(tiny.build()).shares_norm);
  tiny.without = {"blk.1.attn_norm_2.weight"};
  expect_corrupt(tiny, "tensor 'blk.1.attn_norm_2.weight' is missing");
  tiny.without = {"output_norm.bias"};
  expect_corrupt(tiny, "tensor 'output_norm.bias' is missing");
}

TEST(ModelConfig, ReadsAGemma2) {
  TinyModel tiny{.architecture = "gemma2", .n_layers = 3};
  ModelConfig config = config_of(tiny.build());  // what the file does not say is as in the published models
  EXPECT_TRUE(config.has_post_norms);
  EXPECT_FALSE(config.has_head_norm);
  EXPECT_EQ(config.activation, Activation::kGeluTanh);
  EXPECT_EQ(config.embedding_scale, 8.0);
  EXPECT_FALSE(config.softmax_scale);
  EXPECT_EQ(config.score_cap, 50.0);
  EXPECT_EQ(config.logit_cap, 30.0);
  EXPECT_EQ(config.sliding_window, 4096);
  EXPECT_EQ(config.slides, (std::vector<bool>{true, false, true}));
  EXPECT_FALSE(config.sliding_rope);

  config = config_of(tiny.build()
                         .set("gemma2.attn_logit_softcapping", 5.0F)
                         .set("gemma2.final_logit_softcapping", 0.0F)
                         .set("gemma2.attention.sliding_window", 24)
                         .set("gemma2.attention.scale", 0.25F));
  EXPECT_EQ(config.score_cap, 5.0);
  EXPECT_EQ(config.logit_cap, 0.0);
  EXPECT_EQ(config.sliding_window, 24);
  EXPECT_EQ(config.softmax_scale, 0.25);
  tiny.n_layers = 46;
  EXPECT_EQ(config_of(tiny.build()).softmax_scale, 0.25);  // 1 / sqrt(64 / 4)
  expect_error(tiny.build().set("gemma2.attn_logit_softcapping", -5.0F), ErrorCode::kCorrupt,
               "memory: gemma2.attn_logit_softcapping is -5, must be above 0");
  tiny.without = {"blk.7.post_ffw_norm.weight"};
  expect_corrupt(tiny, "tensor 'blk.7.post_ffw_norm.weight' is missing");
}

TEST(ModelConfig, ReadsAGemma3) {
  const TinyModel tiny{.architecture = "gemma3", .n_layers = 7, .rope_base = 1e6F};
  const auto with_window = [&] { return tiny.build().set("gemma3.attention.sliding_window", 512); };
  ModelConfig config = config_of(with_window().set("gemma3.rope.scaling.factor", 8.0F));
  EXPECT_TRUE(config.has_head_norm);
  EXPECT_EQ(config.logit_cap, 0.0);
  EXPECT_EQ(config.slides, (std::vector<bool>{true, true, true, true, true, false, true}));
  EXPECT_EQ(config.rope.base, 1e6);
  EXPECT_EQ(config.rope.frequency_scale, 0.125);
  ASSERT_TRUE(config.sliding_rope);
  EXPECT_EQ(config.sliding_rope->base, 1e4);
  EXPECT_EQ(config.sliding_rope->frequency_scale, 1.0);
  EXPECT_EQ(config.sliding_rope->n_dims, 32);

  const std::string pattern = "gemma3.attention.sliding_window_pattern";
  EXPECT_EQ(config_of(with_window().set(pattern, 2)).slides,
            (std::vector<bool>{true, false, true, false, true, false, true}));
  const std::vector<int32_t> list{0, 1, 1, 0, 0, 0, 1};
  EXPECT_EQ(config_of(with_window().set(pattern, list)).slides,
            (std::vector<bool>{false, true, true, false, false, false, true}));
  expect_error(with_window().set(pattern, std::vector<int32_t>{1, 0}), ErrorCode::kCorrupt,
               "memory: gemma3.attention.sliding_window_pattern has 2 entries for 7 layers");
  EXPECT_EQ(config_of(with_window().set("gemma3.rope.freq_base_swa", 2e4F)).sliding_rope->base, 2e4);
  config = config_of(with_window().set(pattern, 1));
  EXPECT_EQ(config.sliding_window, 0);
  EXPECT_TRUE(config.slides.empty());
  EXPECT_FALSE(config.sliding_rope);
  EXPECT_TRUE(config_of(tiny.build()).slides.empty());
}

TEST(ModelConfig, ReadsAPhi3) {
  const TinyModel tiny{.architecture = "phi3", .stacked_qkv = true};
  const ModelConfig config = config_of(tiny.build().set("phi3.rope.dimension_count", 24));
  EXPECT_TRUE(config.stacked_qkv);
  EXPECT_TRUE(config.has_gate);
  EXPECT_EQ(config.rope.n_dims, 24);
  EXPECT_EQ(config.rope.scale, 1.0);
  EXPECT_EQ(config_of(tiny.build().set("phi3.attention.sliding_window", 0)).sliding_window, 0);
  EXPECT_EQ(config_of(tiny.build().set("phi3.attention.sliding_window", 37)).slides, (std::vector<bool>{true, true}));
}

// The extension of 256 tokens' context from 64: only the first 64 are to be had, with the factors for them.
TEST(ModelConfig, ReadsLongrope) {
  const TinyModel tiny{.architecture = "phi3", .stacked_qkv = true};
  const std::vector<float> shorter(16, 1.5F);
  const std::vector<float> longer(16, 4.0F);
  const auto extended = [&] {
    return tiny.build()
        .add("rope_factors_short.weight", {16}, shorter)
        .add("rope_factors_long.weight", {16}, longer)
        .set("phi3.rope.scaling.original_context_length", 64);
  };
  ModelConfig config = config_of(extended());
  EXPECT_EQ(config.rope.frequency_factors, shorter);
  EXPECT_EQ(config.context_length, 64);
  EXPECT_DOUBLE_EQ(config.rope.scale, std::sqrt(1.0 + std::log(4.0) / std::log(64.0)));
  config = config_of(extended().set("phi3.rope.scaling.type", "longrope").set("phi3.rope.scaling.attn_factor", 1.25F));
  EXPECT_EQ(config.rope.scale, 1.25);
}

TEST(ModelConfig, BiasesAreAsTheFileHasThem) {
  ModelConfig config = config_of(TinyModel{.qkv_bias = true, .other_biases = true}.build());
  EXPECT_TRUE(config.has_qkv_bias);
  EXPECT_TRUE(config.has_output_bias);
  EXPECT_TRUE(config.has_mlp_bias);
  config = config_of(TinyModel().build());
  EXPECT_FALSE(config.has_qkv_bias || config.has_output_bias || config.has_mlp_bias);
}

TEST(ModelConfig, FillsInWhatMayBeMissing) {
  const ModelConfig config = config_of(TinyModel{
      .n_kv_heads = 4,
      .head_dim = 16,
      .without = {"llama.attention.head_count_kv", "llama.attention.key_length", "llama.attention.value_length",
                  "llama.rope.freq_base"}}.build());
  EXPECT_EQ(config.n_kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.rope.base, 10000.0);
}

TEST(ModelConfig, ReadsRopeVariants) {
  const TinyModel tiny;
  EXPECT_EQ(config_of(tiny.build().set("llama.rope.dimension_count", 8)).rope.n_dims, 8);
  EXPECT_EQ(config_of(tiny.build().set("llama.rope.scaling.factor", 4.0F)).rope.frequency_scale, 0.25);
  EXPECT_EQ(config_of(tiny.build().set("llama.rope.scale_linear", 2.0F)).rope.frequency_scale, 0.5);
  EXPECT_EQ(config_of(tiny.build().set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 8.0F))
                .rope.frequency_scale,
            0.125);
  EXPECT_EQ(config_of(tiny.build().set("llama.rope.scaling.type", "none").set("llama.rope.scaling.factor", 8.0F))
                .rope.frequency_scale,
            1.0);
  expect_error(tiny.build().set("llama.rope.scaling.type", "yarn"), ErrorCode::kUnsupported,
               "memory: RoPE scaling of type 'yarn'; kivi has none, linear, longrope and the factors of Llama 3");

  std::vector<float> factors(16, 2.0F);
  EXPECT_EQ(config_of(tiny.build().add("rope_freqs.weight", {16}, factors)).rope.frequency_factors, factors);
  factors[3] = 0.0F;
  expect_error(tiny.build().add("rope_freqs.weight", {16}, factors), ErrorCode::kCorrupt,
               "memory: tensor 'rope_freqs.weight' has a factor that is not above 0");
  factors.assign(8, 1.0F);
  expect_error(tiny.build().add("rope_freqs.weight", {8}, factors), ErrorCode::kCorrupt,
               "memory: tensor 'rope_freqs.weight' is [1, 8], but the metadata says [1, 16]");
}

TEST(ModelConfig, NamesTheArchitecturesThereAre) {
  expect_error(TinyModel{.without = {"general.architecture"}}.build().set("general.architecture", "xyz"),
               ErrorCode::kUnsupported,
               "unknown architecture 'xyz': kivi runs falcon, gemma2, gemma3, llama, phi3, qwen2, qwen3");
  expect_corrupt({.without = {"general.architecture"}}, "metadata key 'general.architecture' is missing");
}

TEST(ModelConfig, ChecksItsNumbers) {
  expect_corrupt({.n_layers = 0}, "llama.block_count is 0, must be 1 to 2147483647");
  expect_corrupt({.without = {"llama.block_count"}}, "metadata key 'llama.block_count' is missing");
  expect_corrupt({.n_kv_heads = 3}, "4 query heads are not a multiple of 3 KV heads");
  expect_corrupt({.n_heads = 3, .n_kv_heads = 3, .without = {"llama.attention.key_length"}},
                 "hidden size 64 is not a multiple of 3 heads, and llama.attention.key_length is missing");
  expect_corrupt({.context_length = -1}, "llama.context_length is -1, must be 1 to 2147483647");
  expect_corrupt({.epsilon = 0.0F}, "llama.attention.layer_norm_rms_epsilon is 0, must be above 0");
  expect_corrupt({.rope_base = INFINITY}, "llama.rope.freq_base is inf, must be above 0");
  expect_corrupt({.head_dim = 15}, "RoPE turns 15 dimensions, must be even and at most the head's 15");
  expect_error(TinyModel().build().set("llama.rope.dimension_count", 34), ErrorCode::kCorrupt,
               "memory: RoPE turns 34 dimensions, must be even and at most the head's 32");
  expect_error(TinyModel{.without = {"llama.attention.value_length"}}.build().set("llama.attention.value_length", 64),
               ErrorCode::kUnsupported,
               "memory: keys have 32 elements and values 64; kivi runs models where both have the same");
}

TEST(ModelConfig, ChecksItsTensors) {
  expect_corrupt({.without = {"token_embd.weight"}}, "tensor 'token_embd.weight' is missing");
  expect_corrupt({.without = {"blk.1.ffn_up.weight"}}, "tensor 'blk.1.ffn_up.weight' is missing");
  expect_corrupt({.qkv_bias = true, .without = {"blk.1.attn_k.bias"}}, "tensor 'blk.1.attn_k.bias' is missing");
  const std::vector<float> values(64 * 32);
  expect_error(TinyModel{.without = {"blk.0.attn_k.weight"}}.build().add("blk.0.attn_k.weight", {64, 32}, values),
               ErrorCode::kCorrupt, "memory: tensor 'blk.0.attn_k.weight' is [32, 64], but the metadata says [64, 64]");
  expect_error(TinyModel{.without = {"blk.0.ffn_up.weight"}}.build().add("blk.0.ffn_up_exps.weight", {64, 32}, values),
               ErrorCode::kUnsupported,
               "memory: tensor 'blk.0.ffn_up_exps.weight' has no place in a llama model of 2 layers as kivi runs it");
  // A false number of layers must not cost memory or time.
  expect_error(TinyModel{.without = {"llama.block_count"}}.build().set("llama.block_count", 2000000000),
               ErrorCode::kCorrupt, "memory: llama.block_count is 2000000000, but the file has only 20 tensors");
}

TEST(ModelConfig, EveryFlippedBitOfTheHeaderIsReadOrAnError) {
  const auto whole = TinyModel{.n_layers = 1, .hidden_size = 8, .ffn_size = 8, .qkv_bias = true}.build().build();
  const size_t header_bits = 8 * (read_gguf(std::span(whole)).tensor("token_embd.weight").view.data - whole.data());
  int n_errors = 0;
  for (size_t bit = 0; bit < header_bits; ++bit) {
    auto flipped = whole;
    flipped[bit / 8] ^= std::byte{1} << (bit % 8);
    try {
      read_config(read_gguf(std::span(flipped)));
    } catch (const Error&) {
      ++n_errors;
    }
  }
  EXPECT_GT(n_errors, 1000);
}

// The real models of models/: what they are is known.
ModelConfig real_config(const std::string& name) {
  return read_config(read_gguf(std::string(KIVI_SOURCE_DIR "/models/") + name + ".gguf"));
}

bool is_here(const std::string& name) {
  return std::filesystem::exists(KIVI_SOURCE_DIR "/models/" + name + ".gguf");
}

TEST(ModelConfig, ReadsSmolLM2) {
  if (!is_here("smollm2-135m")) {
    ASSERT_EQ(std::getenv("KIVI_REQUIRE_MODEL"), nullptr) << "run tools/get-model smollm2-135m";
    GTEST_SKIP() << "run tools/get-model smollm2-135m to include this test";
  }
  const ModelConfig config = real_config("smollm2-135m");
  EXPECT_EQ(config.quantisation, "Q4_1, Q8_0");
  EXPECT_EQ(config.n_layers, 30);
  EXPECT_EQ(config.n_heads, 9);
  EXPECT_EQ(config.n_kv_heads, 3);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.vocab_size, 49152);
  EXPECT_EQ(config.rope.base, 100000.0);
  EXPECT_TRUE(config.tied_output);
}

TEST(ModelConfig, ReadsQwen25Coder) {
  struct Expected {
    std::string name;
    int64_t n_layers, n_heads, n_kv_heads, head_dim;
  };
  int n_read = 0;
  for (const Expected& expected :
       {Expected{"qwen2.5-coder-0.5b", 24, 14, 2, 64}, {"qwen2.5-coder-1.5b", 28, 12, 2, 128}}) {
    if (!is_here(expected.name)) continue;
    const ModelConfig config = real_config(expected.name);
    EXPECT_EQ(config.n_layers, expected.n_layers);
    EXPECT_EQ(config.n_heads, expected.n_heads);
    EXPECT_EQ(config.n_kv_heads, expected.n_kv_heads);
    EXPECT_EQ(config.head_dim, expected.head_dim);
    EXPECT_EQ(config.rope.base, 1000000.0);
    EXPECT_TRUE(config.has_qkv_bias);
    ++n_read;
  }
  if (n_read == 0) GTEST_SKIP() << "no Qwen2.5-Coder in models/";
}

}  // namespace
}  // namespace kivi
