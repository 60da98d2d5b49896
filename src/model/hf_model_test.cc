// Folders that are wrong somewhere, and settings that the golden models (tests/golden/models) do not have.
#include "model/hf_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "io/safetensors_builder.h"
#include "model/model.h"

namespace kivi {
namespace {

// A folder with a model of one layer that is as small as can be.
class Folder {
 public:
  Folder() {
    set(R"({"model_type":"llama","hidden_size":4,"intermediate_size":2,"num_hidden_layers":1,"num_attention_heads":2,
            "max_position_embeddings":64,"rms_norm_eps":1e-5,"tie_word_embeddings":true)");
    for (const auto& [name, rows, cols] : {Named{"embed_tokens", 3, 4}, Named{"norm", 0, 4}})
      add("model." + name, rows, cols);
    for (const auto& [name, rows, cols] :
         {Named{"input_layernorm", 0, 4}, Named{"post_attention_layernorm", 0, 4}, Named{"self_attn.q_proj", 4, 4},
          Named{"self_attn.k_proj", 4, 4}, Named{"self_attn.v_proj", 4, 4}, Named{"self_attn.o_proj", 4, 4},
          Named{"mlp.gate_proj", 2, 4}, Named{"mlp.up_proj", 2, 4}, Named{"mlp.down_proj", 4, 2}}) {
      add("model.layers.0." + name, rows, cols);
    }
  }

  // config.json from its begin on, without the closing brace; members that come later win.
  void set(std::string_view config) { config_ = config; }
  Folder& with(std::string_view member) {
    config_ += fmt::format(",{}", member);
    return *this;
  }
  void add(const std::string& name, int64_t rows, int64_t cols) {
    const std::vector<float> values(static_cast<size_t>(std::max<int64_t>(rows, 1) * cols), 0.25F);
    tensors_.add_floats(name + ".weight", rows == 0 ? std::vector{cols} : std::vector{rows, cols}, values);
  }

  std::string write() const {
    folder_.write("config.json", config_ + "}");
    folder_.write("model.safetensors", tensors_.build());
    return folder_.path();
  }
  const TemporaryFolder& folder() const { return folder_; }

 private:
  struct Named {
    std::string name;
    int64_t rows, cols;
  };
  std::string config_;
  SafetensorsBuilder tensors_;
  TemporaryFolder folder_;
};

template <typename Run>
void expect_error(Run run, ErrorCode code, const std::string& message) {
  try {
    run();
    FAIL() << "no error; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), message);
    EXPECT_EQ(error.code(), code);
  }
}
void expect_error(const Folder& folder, ErrorCode code, const std::string& message) {
  const std::string path = folder.write();
  expect_error([&] { read_hf_folder(path); }, code, path + message);
}

TEST(HfModel, TranslatesSettingsAndNames) {
  const Folder folder;
  const ModelFile file = read_hf_folder(folder.write());
  EXPECT_EQ(file.get_string("general.architecture"), "llama");
  EXPECT_EQ(file.get_string("general.name"), std::filesystem::path(folder.folder().path()).filename());
  EXPECT_EQ(file.get_int("llama.block_count"), 1);
  EXPECT_EQ(file.get_int("llama.embedding_length"), 4);
  EXPECT_EQ(file.get_int("llama.feed_forward_length"), 2);
  EXPECT_EQ(file.get_int("llama.context_length"), 64);
  EXPECT_EQ(file.get_int("llama.attention.head_count"), 2);
  EXPECT_EQ(file.get_float("llama.attention.layer_norm_rms_epsilon"), 1e-5);
  EXPECT_EQ(file.find_bool("llama.rope.interleaved"), false);
  EXPECT_EQ(file.get_int("llama.rope.dimension_count"), 2);
  EXPECT_EQ(file.tensor("blk.0.ffn_up.weight").view.rows, 2);
  EXPECT_EQ(file.tensors().size(), 11U);
}

TEST(HfModel, EveryPathToAFolder) {
  const Folder folder;
  const std::string path = folder.write();
  for (const std::string& name : {path, path + "/", path + "/config.json", path + "/model.safetensors"}) {
    EXPECT_EQ(read_model_file(name).get_string("general.architecture"), "llama") << name;
  }
  EXPECT_EQ(model_folder(path + "/model.safetensors.index.json"), path);
  EXPECT_EQ(model_folder("config.json"), ".");
  EXPECT_EQ(model_folder("model.gguf"), "");
}

TEST(HfModel, OneOutputMatrixIfTied) {
  Folder folder;
  folder.add("lm_head", 3, 4);
  EXPECT_EQ(read_hf_folder(folder.write()).find_tensor("output.weight"), nullptr);
  folder.with(R"("tie_word_embeddings":false)");
  EXPECT_NE(read_hf_folder(folder.write()).find_tensor("output.weight"), nullptr);
}

TEST(HfModel, FrequenciesAreNotWeights) {
  Folder folder;
  folder.add("model.layers.0.self_attn.rotary_emb.inv_freq", 0, 1);
  folder.write();
  // add() ends every name with .weight, which these do not have.
  SafetensorsBuilder extra;
  extra.add_floats("model.layers.0.self_attn.rotary_emb.inv_freq", {1}, {1.0F});
  extra.add_floats("lm_head.weight", {3, 4}, std::vector<float>(12));
  folder.folder().write("model.safetensors", extra.build());
  EXPECT_EQ(read_hf_folder(folder.folder().path()).tensors().size(), 0U);
}

TEST(HfModel, TextModelOfOneThatSees) {
  Folder folder;
  folder.set(R"({"model_type":"gemma3","text_config":{"model_type":"gemma3_text","hidden_size":8,"intermediate_size":2,
      "num_hidden_layers":1,"sliding_window":16,"rope_scaling":{"rope_type":"linear","factor":8.0}})");
  folder.write();
  SafetensorsBuilder tensors;
  tensors.add_floats("language_model.model.norm.weight", {2}, {0.5F, -1.0F});
  tensors.add_floats("vision_tower.encoder.norm.weight", {2}, {0.5F, -1.0F});
  folder.folder().write("model.safetensors", tensors.build());
  const ModelFile file = read_hf_folder(folder.folder().path());
  EXPECT_EQ(file.get_string("general.architecture"), "gemma3");
  EXPECT_EQ(file.get_int("gemma3.attention.head_count"), 8);
  EXPECT_EQ(file.get_int("gemma3.attention.key_length"), 256);
  EXPECT_EQ(file.get_float("gemma3.rope.scaling.factor"), 8.0);
  EXPECT_EQ(file.get_float("gemma3.attention.scale"), 1.0 / 16.0);
  ASSERT_EQ(file.tensors().size(), 1U);
  std::vector<float> norm(2);
  decode_row(file.tensor("output_norm.weight").view, 0, norm);
  EXPECT_EQ(norm, (std::vector<float>{1.5F, 0.0F}));
}

TEST(HfModel, WhichLayersSlide) {
  const auto pattern = [](std::string_view members) {
    Folder folder;
    folder.with(R"("model_type":"qwen2","num_hidden_layers":3)").with(members);
    const ModelFile file = read_hf_folder(folder.write());
    const std::vector<int64_t>* slides = file.find_ints("qwen2.attention.sliding_window_pattern");
    EXPECT_EQ(slides != nullptr, file.find_int("qwen2.attention.sliding_window").has_value());
    return slides == nullptr ? std::vector<int64_t>{} : *slides;
  };
  EXPECT_EQ(pattern(R"("sliding_window":8,"max_window_layers":1)"), std::vector<int64_t>{});
  EXPECT_EQ(pattern(R"("sliding_window":8,"max_window_layers":1,"use_sliding_window":true)"),
            (std::vector<int64_t>{0, 1, 1}));
  EXPECT_EQ(pattern(R"("sliding_window":8,"use_sliding_window":true)"), std::vector<int64_t>{});
  EXPECT_EQ(pattern(R"("sliding_window":8,"use_sliding_window":true,
                       "layer_types":["sliding_attention","full_attention","sliding_attention"])"),
            (std::vector<int64_t>{1, 0, 1}));
}

TEST(HfModel, LongRope) {
  Folder folder;
  folder.with(R"("max_position_embeddings":4096,"original_max_position_embeddings":64,
                 "rope_scaling":{"type":"su","short_factor":[1.5],"long_factor":[4]})");
  const ModelFile file = read_hf_folder(folder.write());
  EXPECT_EQ(file.get_string("llama.rope.scaling.type"), "longrope");
  EXPECT_EQ(file.get_int("llama.rope.scaling.original_context_length"), 64);
  EXPECT_NEAR(file.get_float("llama.rope.scaling.attn_factor"), std::sqrt(2.0), 1e-12);  // 64 = 4096 / 64
  std::vector<float> factor(1);
  decode_row(file.tensor("rope_factors_short.weight").view, 0, factor);
  EXPECT_EQ(factor[0], 1.5F);
  decode_row(file.tensor("rope_factors_long.weight").view, 0, factor);
  EXPECT_EQ(factor[0], 4.0F);
}

TEST(BrokenHfModel, Files) {
  const TemporaryFolder empty;
  expect_error([&] { read_model_file(empty.path()); }, ErrorCode::kNotFound,
               empty.path() + ": has no config.json; give a GGUF file, or a folder as Hugging Face has it");
  empty.write("config.json", "{}");
  expect_error([&] { read_model_file(empty.path()); }, ErrorCode::kNotFound,
               empty.path() +
                   ": has neither model.safetensors nor model.safetensors.index.json; kivi reads weights in these "
                   "or in a GGUF file");
  empty.write("config.json", "{\"a\":");
  expect_error([&] { read_model_file(empty.path()); }, ErrorCode::kCorrupt,
               empty.path("config.json") + ": is not JSON from byte 5 on; fetch the file again");
}

TEST(BrokenHfModel, Settings) {
  expect_error(
      Folder().with(R"("model_type":"mamba")"), ErrorCode::kUnsupported,
      "/config.json: unknown model_type 'mamba': kivi runs falcon, gemma2, gemma3_text, llama, mistral, phi3, qwen2, "
      "qwen3");
  expect_error(Folder().with(R"("model_type":7)"), ErrorCode::kCorrupt,
               "/config.json: metadata key 'model_type' is an integer, must be a string");
  expect_error(Folder().with(R"("hidden_size":"4")"), ErrorCode::kCorrupt,
               "/config.json: metadata key 'hidden_size' is a string, must be an integer");
  expect_error(Folder().with(R"("hidden_size":null)"), ErrorCode::kCorrupt,
               "/config.json: metadata key 'hidden_size' is missing");
  expect_error(Folder().with(R"("hidden_act":"relu")"), ErrorCode::kUnsupported,
               "/config.json: hidden_act is 'relu'; kivi runs llama models with 'silu'");
  expect_error(Folder().with(R"("rope_scaling":{"rope_type":"yarn"})"), ErrorCode::kUnsupported,
               "/config.json: rope_scaling.rope_type is 'yarn'; kivi has default, linear, llama3 and longrope");
  expect_error(Folder().with(R"("rope_parameters":{"rope_type":"dynamic"})"), ErrorCode::kUnsupported,
               "/config.json: rope_parameters.rope_type is 'dynamic'; kivi has default, linear, llama3 and longrope");
  expect_error(
      Folder().with(R"("quantization_config":{"quant_method":"gptq"})"), ErrorCode::kUnsupported,
      "/config.json: the weights are quantised by 'gptq'; kivi reads F32, F16 and BF16 from folders, and quantised "
      "weights from GGUF files");
  expect_error(Folder().with(R"("model_type":"mistral","sliding_window":8,"layer_types":["chunked_attention"])"),
               ErrorCode::kUnsupported,
               "/config.json: layer_types has 'chunked_attention'; kivi has full_attention and sliding_attention");
  expect_error(Folder().with(R"("num_attention_heads":0)"), ErrorCode::kCorrupt,
               "/config.json: num_attention_heads is 0, must be above 0");
  expect_error(Folder().with(R"("partial_rotary_factor":1.5)"), ErrorCode::kCorrupt,
               "/config.json: partial_rotary_factor is 1.5 of a head of 2, must be above 0 and at most 1");
}

TEST(BrokenHfModel, Tensors) {
  Folder bias;
  bias.add("model.layers.0.self_attn.rotary", 0, 4);
  expect_error(bias, ErrorCode::kUnsupported,
               ": tensor 'model.layers.0.self_attn.rotary.weight' has no place in a llama model as kivi runs it");
  expect_error(Folder().with(R"("tie_word_embeddings":false)"), ErrorCode::kCorrupt,
               ": tensor 'lm_head.weight' is missing, and tie_word_embeddings is false");
  Folder shape;
  shape.with(R"("intermediate_size":3)");
  const std::string path = shape.write();
  EXPECT_THROW(read_config(read_hf_folder(path)), Error);
}

}  // namespace
}  // namespace kivi
