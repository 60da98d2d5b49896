// Which tensors a model consists of, by what they are for: one list for checking a file, for loading it and for making
// up weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/model_file.h"
#include "model/config.h"

namespace kivi {

// What a layer computes with. Matrix and Vector are its weights (weights.h) or what the file has of them, below.
template <typename Vector>
struct NormOf {
  Vector weight;
  Vector bias;  // may be absent
};
template <typename Matrix, typename Vector>
struct LinearOf {
  Matrix matrix;
  Vector bias;  // may be absent
};
template <typename Matrix, typename Vector>
struct LayerOf {
  NormOf<Vector> attention_norm;       // [hidden]
  LinearOf<Matrix, Vector> qkv;        // [(H + 2 K) * D, hidden]: q, then k, then v
  NormOf<Vector> head_norm;            // [H + K, D]: of each head of q and k; may be absent
  LinearOf<Matrix, Vector> output;     // [hidden, H * D]
  NormOf<Vector> post_attention_norm;  // [hidden]; may be absent
  NormOf<Vector> mlp_norm;             // [hidden]; absent where the MLP takes what attention takes
  LinearOf<Matrix, Vector> up;         // [2 * ffn, hidden]: gate, then up; [ffn, hidden] without a gate
  LinearOf<Matrix, Vector> down;       // [hidden, ffn]
  NormOf<Vector> post_mlp_norm;        // [hidden]; may be absent
};
template <typename Matrix, typename Vector>
struct ModelOf {
  Matrix embedding;            // [vocabulary, hidden]
  NormOf<Vector> output_norm;  // [hidden]
  Matrix output;               // [vocabulary, hidden]; absent where it is tied to the embedding
  std::vector<LayerOf<Matrix, Vector>> layers;
};

struct TensorSpec {
  std::string name;
  int64_t rows;  // 1: a vector
  int64_t cols;
};
// Tensors of a file whose rows, or elements, follow one another in one of ours. Empty: the model does not have it.
using TensorStack = std::vector<TensorSpec>;
using LayerTensors = LayerOf<TensorStack, TensorStack>;
using ModelTensors = ModelOf<TensorStack, TensorStack>;

ModelTensors model_tensors(const ModelConfig& config);
// All of them, one after the other; one that serves several heads comes once for each.
std::vector<TensorSpec> all_of(const ModelTensors& tensors);

// The name of a tensor that every layer has: "blk.3.attn_q".
std::string in_layer(int64_t layer, std::string_view name);
std::string weight_name(std::string_view name);  // "output_norm.weight"
std::string bias_name(std::string_view name);

}  // namespace kivi
