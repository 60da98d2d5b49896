// The weights of a model on a backend, by what they are for.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/tensor.h"
#include "io/model_file.h"
#include "model/config.h"

namespace kivi {

struct LayerWeights {
  Tensor attention_norm;            // [hidden]
  std::unique_ptr<Weight> qkv;      // [(H + 2 K) * D, hidden]: q, then k, then v
  Tensor qkv_bias;                  // [(H + 2 K) * D]; empty where the model has none
  std::unique_ptr<Weight> output;   // [hidden, H * D]
  Tensor mlp_norm;                  // [hidden]
  std::unique_ptr<Weight> gate_up;  // [2 * ffn, hidden]: gate, then up
  std::unique_ptr<Weight> down;     // [hidden, ffn]
};

struct ModelWeights {
  ModelConfig config;
  std::unique_ptr<Weight> embedding;  // [vocabulary, hidden]
  std::vector<LayerWeights> layers;
  Tensor output_norm;              // [hidden]
  std::unique_ptr<Weight> output;  // [vocabulary, hidden]; null where it is tied to the embedding
  Tensor inverse_frequency;        // [rotary channels / 2]

  const Weight& head() const { return output ? *output : *embedding; }
};

// inverse_frequency of a model, and any vector, on the backend.
std::vector<float> inverse_frequencies(const RopeConfig& rope);
Tensor upload_vector(Backend& backend, const std::vector<float>& values);

// Checks every shape against the configuration; throws Error{kCorrupt} naming the tensor.
ModelWeights load_weights(Backend& backend, const ModelFile& file, const ModelConfig& config);

}  // namespace kivi
