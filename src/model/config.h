// The facts of a model that the decoder is driven by, read from the model file and checked against its tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/model_file.h"
#include "model/arch/arch.h"

namespace kivi {

// Rotary position embedding: pair i of the first n_dims elements of a head is rotated at position p by the angle
//   p * frequency_scale * base^(-2i / n_dims) / frequency_factors[i]
// and scaled by `scale`.
struct RopeConfig {
  RopePairing pairing = RopePairing::kInterleaved;
  double base = 10000.0;
  int64_t n_dims = 0;                      // even, at most head_dim; elements beyond it stay as they are
  double frequency_scale = 1.0;            // linear scaling: 1 / factor
  std::vector<float> frequency_factors{};  // [n_dims / 2] (Llama 3.1, Phi-3), or empty: all 1
  double scale = 1.0;                      // longrope's attention factor
};

struct ModelConfig {
  std::string name;                                        // general.name, or the architecture's if the file has none
  std::string quantisation;                                // formats of its matrices, most bytes first: "Q4_1, Q8_0"
  const Architecture* architecture = &kLlamaArchitecture;  // has static lifetime
  int64_t n_layers = 0;
  int64_t n_heads = 0;  // query heads, a multiple of n_kv_heads
  int64_t n_kv_heads = 0;
  int64_t head_dim = 0;  // of q, k and v; need not be hidden_size / n_heads
  int64_t hidden_size = 0;
  int64_t ffn_size = 0;
  int64_t vocab_size = 0;
  int64_t context_length = 0;  // tokens that the model was trained for, with this RoPE

  // What a layer consists of.
  NormKind norm = NormKind::kRms;
  double norm_epsilon = 0.0;
  bool has_norm_bias = false;
  bool has_head_norm = false;   // q and k are normalised, each head by itself, before RoPE
  bool has_post_norms = false;  // what attention and MLP give is normalised before it is added
  bool is_parallel = false;     // the MLP takes what the layer takes, without what attention adds
  bool shares_norm = false;     // in a parallel block: MLP and attention have the same norm
  bool has_gate = true;         // the MLP is down(activation(gate) * up); without, down(activation(up))
  Activation activation = Activation::kSilu;
  bool stacked_qkv = false;  // the file has q, k and v as one matrix
  bool has_qkv_bias = false;
  bool has_output_bias = false;  // of attention
  bool has_mlp_bias = false;
  bool tied_output = false;  // no output matrix: logits use the token embedding

  double embedding_scale = 1.0;
  std::optional<double> softmax_scale{};  // 1 / sqrt(head_dim) without
  double score_cap = 0.0;                 // AttendArgs; 0: none
  double logit_cap = 0.0;                 // SoftCapArgs; 0: none
  RopeConfig rope;
  int64_t sliding_window = 0;                // tokens, the attending one among them
  std::vector<bool> slides{};                // by layer, whether it has the sliding window; empty: none does
  std::optional<RopeConfig> sliding_rope{};  // of those that do, if it is another
};

// Every tensor of the file is known, and every tensor that the decoder needs is there in its shape (tensors.h).
// Throws Error{kUnsupported} for an architecture, RoPE scaling or tensor that the decoder does not have,
// Error{kCorrupt} for a value that is missing, out of range or contradicts a tensor's shape.
ModelConfig read_config(const ModelFile& file);

}  // namespace kivi
