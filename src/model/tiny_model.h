// Small random models in GGUF, for tests.
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
  float rms_eps = 1e-5F;
  float rope_base = 10000.0F;
  bool tied_output = true;
  bool qkv_bias = false;
  std::set<std::string, std::less<>> without{};  // metadata keys and tensors to leave out
  uint32_t seed = 1;

  // The file so far: more may be set and added. All weights are F32, of a size that keeps activations near 1.
  GgufBuilder build() const {
    GgufBuilder file;
    set_metadata(file);
    add_tensors(file);
    return file;
  }

 private:
  void set_metadata(GgufBuilder& file) const {
    const auto set = [&](std::string_view key, const auto& value) {
      if (!without.contains(key)) file.set(key, value);
    };
    const auto set_own = [&](std::string_view key, const auto& value) {
      set(fmt::format("{}.{}", architecture, key), value);
    };
    set("general.architecture", architecture);
    set_own("block_count", n_layers);
    set_own("context_length", context_length);
    set_own("embedding_length", hidden_size);
    set_own("feed_forward_length", ffn_size);
    set_own("attention.head_count", n_heads);
    set_own("attention.head_count_kv", n_kv_heads);
    set_own("attention.key_length", head_dim);
    set_own("attention.value_length", head_dim);
    set_own("attention.layer_norm_rms_epsilon", rms_eps);
    set_own("rope.freq_base", rope_base);
  }

  void add_tensors(GgufBuilder& file) const {
    std::mt19937 random(seed);
    const auto add = [&](std::string_view name, int64_t rows, int64_t cols, float mean = 0.0F) {
      if (without.contains(name)) return;
      std::normal_distribution<float> distribution(mean, 1.0F / std::sqrt(static_cast<float>(cols)));
      std::vector<float> values(static_cast<size_t>(rows * cols));
      for (float& value : values) value = distribution(random);
      std::vector<uint64_t> shape = {static_cast<uint64_t>(cols)};
      if (rows > 1) shape.push_back(static_cast<uint64_t>(rows));
      file.add(name, std::move(shape), values);
    };
    const TensorNames names;
    const int64_t q = n_heads * head_dim;
    const int64_t kv = n_kv_heads * head_dim;
    add(names.token_embd, vocab_size, hidden_size);
    add(names.output_norm, 1, hidden_size, 1.0F);
    if (!tied_output) add(names.output, vocab_size, hidden_size);
    for (int64_t layer = 0; layer < n_layers; ++layer) {
      add(names.attn_norm(layer), 1, hidden_size, 1.0F);
      add(names.attn_q(layer), q, hidden_size);
      add(names.attn_k(layer), kv, hidden_size);
      add(names.attn_v(layer), kv, hidden_size);
      if (qkv_bias) {
        add(names.attn_q_bias(layer), 1, q);
        add(names.attn_k_bias(layer), 1, kv);
        add(names.attn_v_bias(layer), 1, kv);
      }
      add(names.attn_output(layer), hidden_size, q);
      add(names.ffn_norm(layer), 1, hidden_size, 1.0F);
      add(names.ffn_gate(layer), ffn_size, hidden_size);
      add(names.ffn_up(layer), ffn_size, hidden_size);
      add(names.ffn_down(layer), hidden_size, ffn_size);
    }
  }
};

}  // namespace kivi
