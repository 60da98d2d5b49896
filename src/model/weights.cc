#include "model/weights.h"

#include <cmath>
#include <initializer_list>
#include <span>
#include <string>

#include "core/error.h"

namespace kivi {
namespace {

class Loader {
 public:
  Loader(Backend& backend, const ModelFile& file) : backend_(backend), file_(file) {}

  // The rows of several matrices, one after the other.
  std::unique_ptr<Weight> matrix(std::initializer_list<std::string> names) const {
    std::vector<WeightView> parts;
    for (const std::string& name : names) parts.push_back(file_.tensor(name).view);
    return backend_.load_weight(parts);
  }
  std::unique_ptr<Weight> matrix(std::string_view name) const { return backend_.load_weight(file_.tensor(name).view); }

  Tensor vector(std::string_view name) const {
    std::vector<float> values;
    append(file_.tensor(name).view, values);
    return upload_vector(backend_, values);
  }

  // The biases of stacked matrices: zeros for one that the file does not have, empty if it has none of them.
  struct Bias {
    std::string name;
    int64_t n;
  };
  Tensor bias(std::initializer_list<Bias> biases) const {
    std::vector<float> values;
    bool any = false;
    for (const Bias& bias : biases) {
      const ModelTensor* tensor = file_.find_tensor(bias.name);
      if (tensor != nullptr) append(tensor->view, values);
      if (tensor == nullptr) values.resize(values.size() + static_cast<size_t>(bias.n));
      any = any || tensor != nullptr;
    }
    return any ? upload_vector(backend_, values) : Tensor();
  }

 private:
  static void append(const WeightView& vector, std::vector<float>& values) {
    values.resize(values.size() + static_cast<size_t>(vector.cols));
    decode_row(vector, 0, std::span(values).last(static_cast<size_t>(vector.cols)));
  }

  Backend& backend_;
  const ModelFile& file_;
};

}  // namespace

std::vector<float> inverse_frequencies(const RopeConfig& rope) {
  std::vector<float> out;
  for (int64_t i = 0; i < rope.n_dims / 2; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(rope.n_dims);
    const double factor = rope.frequency_factors.empty() ? 1.0 : double{rope.frequency_factors[static_cast<size_t>(i)]};
    out.push_back(static_cast<float>(rope.frequency_scale * std::pow(rope.base, exponent) / factor));
  }
  return out;
}

Tensor upload_vector(Backend& backend, const std::vector<float>& values) {
  Tensor out(backend, DType::kF32, {std::ssize(values)});
  backend.copy_to_device(out.view().data, values.data(), values.size() * sizeof(float));
  return out;
}

ModelWeights load_weights(Backend& backend, const ModelFile& file, const ModelConfig& config) {
  const TensorNames& names = config.architecture->names;
  const Loader load(backend, file);
  const int64_t q = config.n_heads * config.head_dim;
  const int64_t kv = config.n_kv_heads * config.head_dim;
  ModelWeights weights;
  weights.config = config;
  weights.embedding = load.matrix(names.token_embd);
  weights.output_norm = load.vector(names.output_norm);
  if (!config.tied_output) weights.output = load.matrix(names.output);
  weights.inverse_frequency = upload_vector(backend, inverse_frequencies(config.rope));
  for (int64_t i = 0; i < config.n_layers; ++i) {
    LayerWeights layer;
    layer.attention_norm = load.vector(names.attn_norm(i));
    layer.qkv = load.matrix({names.attn_q(i), names.attn_k(i), names.attn_v(i)});
    layer.qkv_bias = load.bias({{names.attn_q_bias(i), q}, {names.attn_k_bias(i), kv}, {names.attn_v_bias(i), kv}});
    layer.output = load.matrix(names.attn_output(i));
    layer.mlp_norm = load.vector(names.ffn_norm(i));
    layer.gate_up = load.matrix({names.ffn_gate(i), names.ffn_up(i)});
    layer.down = load.matrix(names.ffn_down(i));
    weights.layers.push_back(std::move(layer));
  }
  return weights;
}

}  // namespace kivi
