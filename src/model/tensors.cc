#include "model/tensors.h"

#include "core/error.h"

namespace kivi {
namespace {

// Matrices over one another; `bias` says whether they have biases.
struct NamedRows {
  std::string name;
  int64_t rows;
};
LinearOf<TensorStack, TensorStack> linear(std::initializer_list<NamedRows> parts, int64_t cols, bool has_bias) {
  LinearOf<TensorStack, TensorStack> out;
  for (const auto& [name, rows] : parts) {
    out.matrix.push_back({weight_name(name), rows, cols});
    if (has_bias) out.bias.push_back({bias_name(name), 1, rows});
  }
  return out;
}

class LayerList {
 public:
  LayerList(const ModelConfig& config, int64_t layer) : c_(config), names_(c_.architecture->names), layer_(layer) {}

  LayerTensors list() const {
    LayerTensors out;
    out.attention_norm = norm(c_.shares_norm ? names_.ffn_norm : names_.attn_norm);
    if (!c_.shares_norm) out.mlp_norm = norm(names_.ffn_norm);
    if (c_.has_post_norms) {
      out.post_attention_norm = norm(names_.post_attention_norm);
      out.post_mlp_norm = norm(names_.post_ffw_norm);
    }
    out.qkv = qkv();
    if (c_.has_head_norm) out.head_norm = head_norm();
    out.output = linear({{at(names_.attn_output), c_.hidden_size}}, c_.n_heads * c_.head_dim, c_.has_output_bias);
    out.up = up();
    out.down = linear({{at(names_.ffn_down), c_.hidden_size}}, c_.ffn_size, c_.has_mlp_bias);
    return out;
  }

 private:
  std::string at(std::string_view name) const { return in_layer(layer_, name); }

  NormOf<TensorStack> norm(std::string_view name) const {
    NormOf<TensorStack> out{.weight = {{weight_name(at(name)), 1, c_.hidden_size}}, .bias = {}};
    if (c_.has_norm_bias) out.bias = {{bias_name(at(name)), 1, c_.hidden_size}};
    return out;
  }

  LinearOf<TensorStack, TensorStack> qkv() const {
    const int64_t q = c_.n_heads * c_.head_dim;
    const int64_t kv = c_.n_kv_heads * c_.head_dim;
    if (c_.stacked_qkv) return linear({{at(names_.attn_qkv), q + 2 * kv}}, c_.hidden_size, c_.has_qkv_bias);
    return linear({{at(names_.attn_q), q}, {at(names_.attn_k), kv}, {at(names_.attn_v), kv}}, c_.hidden_size,
                  c_.has_qkv_bias);
  }

  // The same weights for every head of q, and of k.
  NormOf<TensorStack> head_norm() const {
    NormOf<TensorStack> out;
    const TensorSpec q{weight_name(at(names_.attn_q_norm)), 1, c_.head_dim};
    const TensorSpec k{weight_name(at(names_.attn_k_norm)), 1, c_.head_dim};
    out.weight.assign(static_cast<size_t>(c_.n_heads), q);
    out.weight.insert(out.weight.end(), static_cast<size_t>(c_.n_kv_heads), k);
    return out;
  }

  LinearOf<TensorStack, TensorStack> up() const {
    const int64_t rows = c_.ffn_size;
    if (!c_.has_gate) return linear({{at(names_.ffn_up), rows}}, c_.hidden_size, c_.has_mlp_bias);
    if (names_.ffn_gate.empty()) return linear({{at(names_.ffn_up), 2 * rows}}, c_.hidden_size, c_.has_mlp_bias);
    return linear({{at(names_.ffn_gate), rows}, {at(names_.ffn_up), rows}}, c_.hidden_size, c_.has_mlp_bias);
  }

  const ModelConfig& c_;
  const TensorNames& names_;
  int64_t layer_;
};

}  // namespace

std::string in_layer(int64_t layer, std::string_view name) {
  return fmt::format("blk.{}.{}", layer, name);
}
std::string weight_name(std::string_view name) {
  return fmt::format("{}.weight", name);
}
std::string bias_name(std::string_view name) {
  return fmt::format("{}.bias", name);
}

ModelTensors model_tensors(const ModelConfig& c) {
  const TensorNames& names = c.architecture->names;
  ModelTensors out;
  out.embedding = {{weight_name(names.token_embd), c.vocab_size, c.hidden_size}};
  out.output_norm.weight = {{weight_name(names.output_norm), 1, c.hidden_size}};
  if (c.has_norm_bias) out.output_norm.bias = {{bias_name(names.output_norm), 1, c.hidden_size}};
  if (!c.tied_output) out.output = {{weight_name(names.output), c.vocab_size, c.hidden_size}};
  for (int64_t layer = 0; layer < c.n_layers; ++layer) out.layers.push_back(LayerList(c, layer).list());
  return out;
}

std::vector<TensorSpec> all_of(const ModelTensors& tensors) {
  std::vector<TensorSpec> all;
  const auto add = [&](const TensorStack& stack) { all.insert(all.end(), stack.begin(), stack.end()); };
  const auto add_norm = [&](const NormOf<TensorStack>& norm) {
    add(norm.weight);
    add(norm.bias);
  };
  add(tensors.embedding);
  add_norm(tensors.output_norm);
  add(tensors.output);
  for (const LayerTensors& layer : tensors.layers) {
    for (const auto* norm :
         {&layer.attention_norm, &layer.head_norm, &layer.post_attention_norm, &layer.mlp_norm, &layer.post_mlp_norm}) {
      add_norm(*norm);
    }
    for (const auto* linear : {&layer.qkv, &layer.output, &layer.up, &layer.down}) {
      add(linear->matrix);
      add(linear->bias);
    }
  }
  return all;
}

}  // namespace kivi
