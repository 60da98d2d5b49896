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
  config.norm_epsilon = 1e-5;
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

class RandomSource : public WeightSource {
 public:
  explicit RandomSource(Backend& backend) : backend_(backend) {}

  // Of a size that keeps activations near 1.
  std::unique_ptr<Weight> matrix(const TensorStack& stack) override {
    int64_t rows = 0;
    for (const TensorSpec& spec : stack) rows += spec.rows;
    const int64_t cols = stack.front().cols;
    return backend_.random_weight(rows, cols, std::sqrt(3.0F / static_cast<float>(cols)), next_seed_++);
  }
  // Norms that only normalise, biases that add nothing.
  std::vector<float> vector(const TensorSpec& spec) override {
    return std::vector<float>(static_cast<size_t>(spec.cols), spec.name.ends_with(".bias") ? 0.0F : 1.0F);
  }

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

int64_t random_weight_bytes(const ModelConfig& config) {
  int64_t bytes = 0;
  for (const TensorSpec& spec : all_of(model_tensors(config))) {
    bytes += spec.rows * spec.cols * static_cast<int64_t>(spec.rows == 1 ? sizeof(float) : sizeof(Half));
  }
  return bytes;
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

ModelWeights random_weights(Backend& backend, const ModelConfig& config, const ProgressCallback& progress) {
  RandomSource source(backend);
  return make_weights(backend, config, source, progress);
}

}  // namespace kivi
