// What distinguishes the architectures that kivi runs: names and conventions, as data. The decoder is one and the same.
// To add one: a file beside this that defines its constant, and a line in arch.cc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "backend/backend.h"

namespace kivi {

// The name of a tensor that every layer has: names.attn_q(3) is "blk.3.attn_q.weight".
struct LayerTensorName {
  std::string_view suffix;
  std::string operator()(int64_t layer) const;
};

// GGUF's names. H query heads, K KV heads, D head_dim; shapes are [rows, cols], a vector has one row.
struct TensorNames {
  std::string_view token_embd = "token_embd.weight";    // [vocab, hidden]
  std::string_view output_norm = "output_norm.weight";  // [hidden]
  std::string_view output = "output.weight";            // [vocab, hidden]; absent: token_embd is used
  std::string_view rope_freqs = "rope_freqs.weight";    // [n_dims / 2]; may be absent

  LayerTensorName attn_norm{"attn_norm.weight"};      // [hidden]
  LayerTensorName attn_q{"attn_q.weight"};            // [H * D, hidden]
  LayerTensorName attn_k{"attn_k.weight"};            // [K * D, hidden]
  LayerTensorName attn_v{"attn_v.weight"};            // [K * D, hidden]
  LayerTensorName attn_q_bias{"attn_q.bias"};         // [H * D]; may be absent, all three together
  LayerTensorName attn_k_bias{"attn_k.bias"};         // [K * D]
  LayerTensorName attn_v_bias{"attn_v.bias"};         // [K * D]
  LayerTensorName attn_output{"attn_output.weight"};  // [hidden, H * D]
  LayerTensorName ffn_norm{"ffn_norm.weight"};        // [hidden]
  LayerTensorName ffn_gate{"ffn_gate.weight"};        // [ffn, hidden]
  LayerTensorName ffn_up{"ffn_up.weight"};            // [ffn, hidden]
  LayerTensorName ffn_down{"ffn_down.weight"};        // [hidden, ffn]
};

struct Architecture {
  std::string_view name;  // general.architecture, and the prefix of the architecture's metadata keys
  RopePairing rope_pairing;
  TensorNames names{};
};

extern const Architecture kLlama;
extern const Architecture kQwen2;

// The architecture of that name. Throws Error{kUnsupported} that lists those there are.
const Architecture& find_architecture(std::string_view name);

}  // namespace kivi
