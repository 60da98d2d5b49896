#include "model/weights.h"

#include <cmath>

#include "core/error.h"

namespace kivi {
namespace {

class Loader {
 public:
  Loader(Backend& backend, const GgufFile& file) : backend_(backend), file_(file) {}

  std::unique_ptr<Weight> matrix(std::string_view name) const { return backend_.load_weight(file_.tensor(name).view); }

  // A vector as floats; empty if the file does not have it.
  Tensor vector(std::string_view name) const {
    const GgufTensor* tensor = file_.find_tensor(name);
    if (tensor == nullptr) return {};
    std::vector<float> values(static_cast<size_t>(tensor->view.cols));
    decode_row(tensor->view, 0, values);
    return upload(values);
  }

  Tensor upload(const std::vector<float>& values) const {
    Tensor out(backend_, DType::kF32, {static_cast<int64_t>(values.size())});
    backend_.copy_to_device(out.view().data, values.data(), values.size() * sizeof(float));
    return out;
  }

 private:
  Backend& backend_;
  const GgufFile& file_;
};

std::vector<float> inverse_frequencies(const RopeConfig& rope) {
  std::vector<float> out;
  for (int64_t i = 0; i < rope.n_dims / 2; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(rope.n_dims);
    const double factor = rope.frequency_factors.empty() ? 1.0 : double{rope.frequency_factors[static_cast<size_t>(i)]};
    out.push_back(static_cast<float>(rope.frequency_scale * std::pow(rope.base, exponent) / factor));
  }
  return out;
}

}  // namespace

ModelWeights load_weights(Backend& backend, const GgufFile& file, const ModelConfig& config) {
  const TensorNames& names = config.architecture->names;
  const Loader load(backend, file);
  ModelWeights weights;
  weights.config = config;
  weights.embedding = load.matrix(names.token_embd);
  weights.output_norm = load.vector(names.output_norm);
  if (!config.tied_output) weights.output = load.matrix(names.output);
  weights.inverse_frequency = load.upload(inverse_frequencies(config.rope));
  for (int64_t i = 0; i < config.n_layers; ++i) {
    LayerWeights layer;
    layer.attention_norm = load.vector(names.attn_norm(i));
    layer.q = load.matrix(names.attn_q(i));
    layer.k = load.matrix(names.attn_k(i));
    layer.v = load.matrix(names.attn_v(i));
    layer.output = load.matrix(names.attn_output(i));
    layer.q_bias = load.vector(names.attn_q_bias(i));
    layer.k_bias = load.vector(names.attn_k_bias(i));
    layer.v_bias = load.vector(names.attn_v_bias(i));
    layer.mlp_norm = load.vector(names.ffn_norm(i));
    layer.gate = load.matrix(names.ffn_gate(i));
    layer.up = load.matrix(names.ffn_up(i));
    layer.down = load.matrix(names.ffn_down(i));
    weights.layers.push_back(std::move(layer));
  }
  return weights;
}

}  // namespace kivi
