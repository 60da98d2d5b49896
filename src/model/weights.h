// The weights of a model on a backend, by what they are for.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/tensor.h"
#include "core/progress.h"
#include "io/model_file.h"
#include "model/config.h"
#include "model/tensors.h"

namespace kivi {

using LayerWeights = LayerOf<std::unique_ptr<Weight>, Tensor>;

struct ModelWeights : ModelOf<std::unique_ptr<Weight>, Tensor> {
  ModelConfig config;
  Tensor inverse_frequency;          // [rotary channels / 2]
  Tensor sliding_inverse_frequency;  // of layers that slide; absent where it is the same

  const Weight& head() const { return output ? *output : *embedding; }
};

// Where weights come from.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual std::unique_ptr<Weight> matrix(const TensorStack& stack) = 0;  // of one tensor at least
  virtual std::vector<float> vector(const TensorSpec& spec) = 0;
};
ModelWeights make_weights(Backend& backend, const ModelConfig& config, WeightSource& source,
                          const ProgressCallback& progress = {});

std::vector<float> inverse_frequencies(const RopeConfig& rope);

// Throws Error{kCorrupt} naming a tensor that the file does not have.
ModelWeights load_weights(Backend& backend, const ModelFile& file, const ModelConfig& config,
                          const ProgressCallback& progress = {});

}  // namespace kivi
