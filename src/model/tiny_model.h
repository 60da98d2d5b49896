// Small random models of every architecture in GGUF, for tests.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/gguf_builder.h"
#include "model/arch/arch.h"
#include "model/tensors.h"

namespace kivi {

struct TinyModel {
  std::string architecture = "llama";
  int64_t n_layers = 2;
  int64_t n_heads = 4;
  int64_t n_kv_heads = 2;
  int64_t head_dim = 32;
  int64_t hidden_size = 64;
  int64_t ffn_size = 96;
  int64_t vocab_size = 50;
  int64_t context_length = 256;
  float epsilon = 1e-5F;
  float rope_base = 10000.0F;
  bool tied_output = true;
  bool stacked_qkv = false;
  bool shares_norm = false;  // of a parallel block
  bool qkv_bias = false;
  bool other_biases = false;
  std::set<std::string, std::less<>> without{};  // metadata keys and tensors to leave out
  uint32_t seed = 1;

  // The file so far: more may be set and added. All weights are F32, of a size that keeps activations near 1.
  GgufBuilder build() const {
    GgufBuilder file;
    set_metadata(file);
    std::mt19937 random(seed);
    std::set<std::string> added;
    for (const TensorSpec& spec : all_of(model_tensors(config()))) {
      if (without.contains(spec.name) || !added.insert(spec.name).second) continue;
      add(file, spec, random);
    }
    return file;
  }

 private:
  ModelConfig config() const {
    ModelConfig c;
    c.architecture = &find_architecture(architecture);
    c.n_layers = n_layers;
    c.n_heads = n_heads;
    c.n_kv_heads = n_kv_heads;
    c.head_dim = head_dim;
    c.hidden_size = hidden_size;
    c.ffn_size = ffn_size;
    c.vocab_size = vocab_size;
    c.has_norm_bias = c.architecture->has_norm_bias;
    c.has_head_norm = c.architecture->has_head_norm;
    c.has_post_norms = c.architecture->has_post_norms;
    c.has_gate = c.architecture->has_gate;
    c.tied_output = tied_output;
    c.stacked_qkv = stacked_qkv;
    c.shares_norm = shares_norm;
    c.has_qkv_bias = qkv_bias;
    c.has_output_bias = other_biases;
    c.has_mlp_bias = other_biases;
    return c;
  }

  void set_metadata(GgufBuilder& file) const {
    const auto set = [&](std::string_view key, const auto& value) {
      if (!without.contains(key)) file.set(key, value);
    };
    const auto set_own = [&](std::string_view key, const auto& value) {
      set(fmt::format("{}.{}", architecture, key), value);
    };
    const bool is_rms = find_architecture(architecture).norm == NormKind::kRms;
    set("general.architecture", architecture);
    set_own("block_count", n_layers);
    set_own("context_length", context_length);
    set_own("embedding_length", hidden_size);
    set_own("feed_forward_length", ffn_size);
    set_own("attention.head_count", n_heads);
    set_own("attention.head_count_kv", n_kv_heads);
    set_own("attention.key_length", head_dim);
    set_own("attention.value_length", head_dim);
    set_own(is_rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", epsilon);
    set_own("rope.freq_base", rope_base);
  }

  static void add(GgufBuilder& file, const TensorSpec& spec, std::mt19937& random) {
    const float mean = spec.name.ends_with("norm.weight") ? 1.0F : 0.0F;
    std::normal_distribution<float> distribution(mean, 1.0F / std::sqrt(static_cast<float>(spec.cols)));
    std::vector<float> values(static_cast<size_t>(spec.rows * spec.cols));
    for (float& value : values) value = distribution(random);
    std::vector<uint64_t> shape = {static_cast<uint64_t>(spec.cols)};
    if (spec.rows > 1) shape.push_back(static_cast<uint64_t>(spec.rows));
    file.add(spec.name, std::move(shape), values);
  }
};

}  // namespace kivi
