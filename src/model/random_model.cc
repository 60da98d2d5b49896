#include "model/random_model.h"

#include <array>
#include <cmath>
#include <vector>

#include "core/error.h"

namespace kivi {
namespace {

struct Sizes {
  const char* name;
  int64_t n_layers, n_heads, n_kv_heads, hidden_size, ffn_size, vocab_size, context_length;
  double rope_base;
};

ModelConfig to_config(const Sizes& sizes) {
  ModelConfig config;
  config.name = sizes.name;
  config.n_layers = sizes.n_layers;
  config.n_heads = sizes.n_heads;
  config.n_kv_heads = sizes.n_kv_heads;
  config.head_dim = sizes.hidden_size / sizes.n_heads;
  config.hidden_size = sizes.hidden_size;
  config.ffn_size = sizes.ffn_size;
  config.vocab_size = sizes.vocab_size;
  config.context_length = sizes.context_length;
  config.rms_eps = 1e-5;
  config.rope.base = sizes.rope_base;
  config.rope.n_dims = config.head_dim;
  return config;
}

void check(const ModelConfig& c) {
  constexpr int64_t kLargest = int64_t{1} << 31;
  for (const int64_t size :
       {c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.hidden_size, c.ffn_size, c.vocab_size, c.context_length}) {
    if (size < 1 || size >= kLargest) {
      fail(ErrorCode::kInvalidArgument, "model shape {}: has a size of {}; must be 1 to 2^31", c.name, size);
    }
  }
  if (c.n_heads % c.n_kv_heads != 0 || c.head_dim % 2 != 0) {
    fail(ErrorCode::kInvalidArgument,
         "model shape {}: {} query heads must be a multiple of {} KV heads, and head_dim {} even", c.name, c.n_heads,
         c.n_kv_heads, c.head_dim);
  }
}

class Maker {
 public:
  explicit Maker(Backend& backend) : backend_(backend) {}

  // Of a size that keeps activations near 1.
  std::unique_ptr<Weight> matrix(int64_t rows, int64_t cols) {
    return backend_.random_weight(rows, cols, std::sqrt(3.0F / static_cast<float>(cols)), next_seed_++);
  }
  Tensor ones(int64_t n) const { return upload_vector(backend_, std::vector<float>(static_cast<size_t>(n), 1.0F)); }
  Tensor zeros(int64_t n) const { return upload_vector(backend_, std::vector<float>(static_cast<size_t>(n))); }

 private:
  Backend& backend_;
  uint64_t next_seed_ = 1;
};

}  // namespace

std::span<const ModelConfig> known_shapes() {
  static const std::array shapes = {
      to_config({"llama-2-7b", 32, 32, 32, 4096, 11008, 32000, 4096, 1e4}),
      to_config({"llama-2-13b", 40, 40, 40, 5120, 13824, 32000, 4096, 1e4}),
      to_config({"llama-3-8b", 32, 32, 8, 4096, 14336, 128256, 8192, 5e5}),
      to_config({"mistral-7b", 32, 32, 8, 4096, 14336, 32000, 32768, 1e6}),
  };
  return shapes;
}

int64_t random_weight_bytes(const ModelConfig& c) {
  const int64_t q = c.n_heads * c.head_dim;
  const int64_t qkv = q + 2 * c.n_kv_heads * c.head_dim;
  const int64_t layer = (qkv + q + 3 * c.ffn_size) * c.hidden_size;
  const int64_t vocabulary = (c.tied_output ? 1 : 2) * c.vocab_size * c.hidden_size;
  const int64_t vectors = c.n_layers * (2 * c.hidden_size + (c.has_qkv_bias ? qkv : 0)) + c.hidden_size;
  return 2 * (c.n_layers * layer + vocabulary) + 4 * vectors;
}

std::unique_ptr<Model> open_random_model(const ModelConfig& config) {
  check(config);
  auto model = std::make_unique<Model>();
  model->config = config;
  model->config.name = config.name + ", random weights";
  model->config.quantisation = "random 16 bits";
  model->weight_bytes = random_weight_bytes(config);
  return model;
}

ModelWeights random_weights(Backend& backend, const ModelConfig& c) {
  const int64_t q = c.n_heads * c.head_dim;
  const int64_t qkv = q + 2 * c.n_kv_heads * c.head_dim;

  Maker make(backend);
  ModelWeights weights;
  weights.config = c;
  weights.embedding = make.matrix(c.vocab_size, c.hidden_size);
  weights.output_norm = make.ones(c.hidden_size);
  if (!c.tied_output) weights.output = make.matrix(c.vocab_size, c.hidden_size);
  weights.inverse_frequency = upload_vector(backend, inverse_frequencies(c.rope));
  for (int64_t i = 0; i < c.n_layers; ++i) {
    LayerWeights layer;
    layer.attention_norm = make.ones(c.hidden_size);
    layer.qkv = make.matrix(qkv, c.hidden_size);
    if (c.has_qkv_bias) layer.qkv_bias = make.zeros(qkv);
    layer.output = make.matrix(c.hidden_size, q);
    layer.mlp_norm = make.ones(c.hidden_size);
    layer.gate_up = make.matrix(2 * c.ffn_size, c.hidden_size);
    layer.down = make.matrix(c.hidden_size, c.ffn_size);
    weights.layers.push_back(std::move(layer));
  }
  return weights;
}

}  // namespace kivi
