#include "model/weights.h"

#include <cmath>
#include <initializer_list>
#include <span>

namespace kivi {
namespace {

class FileSource : public WeightSource {
 public:
  FileSource(Backend& backend, const ModelFile& file) : backend_(backend), file_(file) {}

  std::unique_ptr<Weight> matrix(const TensorStack& stack) override {
    std::vector<WeightView> parts;
    for (const TensorSpec& spec : stack) {
      const std::vector<WeightView> more = file_.tensor(spec.name).parts();
      parts.insert(parts.end(), more.begin(), more.end());
    }
    for (const WeightView& part : parts) read_ahead({part.data, static_cast<size_t>(part.size_bytes())});
    return backend_.load_weight(parts);
  }
  std::vector<float> vector(const TensorSpec& spec) override {
    const WeightView& view = file_.tensor(spec.name).view;
    std::vector<float> values(static_cast<size_t>(view.cols));
    decode_row(view, 0, values);
    return values;
  }

 private:
  Backend& backend_;
  const ModelFile& file_;
};

int64_t n_elements(std::span<const TensorSpec> tensors) {
  int64_t n = 0;
  for (const TensorSpec& spec : tensors) n += spec.rows * spec.cols;
  return n;
}

// From what a model consists of to its weights.
class Maker {
 public:
  Maker(Backend& backend, WeightSource& source, int64_t n_all, const ProgressCallback& progress)
      : backend_(backend), source_(source), n_all_(n_all), progress_(progress) {}

  std::unique_ptr<Weight> matrix(const TensorStack& stack) {
    if (stack.empty()) return nullptr;
    std::unique_ptr<Weight> weight = source_.matrix(stack);
    tell(stack);
    return weight;
  }
  Tensor vector(const TensorStack& stack) {
    const std::vector<float> values = elements(stack);
    return values.empty() ? Tensor() : upload(values, {std::ssize(values)});
  }
  Tensor upload(const std::vector<float>& values, std::initializer_list<int64_t> shape) {
    Tensor out(backend_, DType::kF32, shape);
    backend_.copy_to_device(out.view().data, values.data(), values.size() * sizeof(float));
    return out;
  }

  NormOf<Tensor> norm(const NormOf<TensorStack>& of) { return {.weight = vector(of.weight), .bias = vector(of.bias)}; }
  NormOf<Tensor> norm_of_heads(const NormOf<TensorStack>& of) {
    if (of.weight.empty()) return {};
    return {.weight = upload(elements(of.weight), {std::ssize(of.weight), of.weight.front().cols}), .bias = {}};
  }
  LinearOf<std::unique_ptr<Weight>, Tensor> linear(const LinearOf<TensorStack, TensorStack>& of) {
    return {.matrix = matrix(of.matrix), .bias = vector(of.bias)};
  }
  LayerWeights layer(const LayerTensors& of) {
    return {.attention_norm = norm(of.attention_norm),
            .qkv = linear(of.qkv),
            .head_norm = norm_of_heads(of.head_norm),
            .output = linear(of.output),
            .post_attention_norm = norm(of.post_attention_norm),
            .mlp_norm = norm(of.mlp_norm),
            .up = linear(of.up),
            .down = linear(of.down),
            .post_mlp_norm = norm(of.post_mlp_norm)};
  }

 private:
  std::vector<float> elements(const TensorStack& stack) {
    std::vector<float> values;
    for (const TensorSpec& spec : stack) {
      const std::vector<float> part = source_.vector(spec);
      values.insert(values.end(), part.begin(), part.end());
    }
    tell(stack);
    return values;
  }
  void tell(const TensorStack& made) {
    n_made_ += n_elements(made);
    if (progress_) progress_(static_cast<double>(n_made_) / static_cast<double>(n_all_));
  }

  Backend& backend_;
  WeightSource& source_;
  int64_t n_all_;
  int64_t n_made_ = 0;
  const ProgressCallback& progress_;
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

ModelWeights make_weights(Backend& backend, const ModelConfig& config, WeightSource& source,
                          const ProgressCallback& progress) {
  const ModelTensors tensors = model_tensors(config);
  Maker make(backend, source, n_elements(all_of(tensors)), progress);
  ModelWeights weights;
  weights.config = config;
  weights.embedding = make.matrix(tensors.embedding);
  weights.output_norm = make.norm(tensors.output_norm);
  weights.output = make.matrix(tensors.output);
  const auto upload_rope = [&](const RopeConfig& rope) {
    return make.upload(inverse_frequencies(rope), {rope.n_dims / 2});
  };
  weights.inverse_frequency = upload_rope(config.rope);
  if (config.sliding_rope) weights.sliding_inverse_frequency = upload_rope(*config.sliding_rope);
  for (const LayerTensors& layer : tensors.layers) weights.layers.push_back(make.layer(layer));
  return weights;
}

ModelWeights load_weights(Backend& backend, const ModelFile& file, const ModelConfig& config,
                          const ProgressCallback& progress) {
  FileSource source(backend, file);
  return make_weights(backend, config, source, progress);
}

}  // namespace kivi
