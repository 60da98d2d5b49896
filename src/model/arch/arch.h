// What distinguishes the architectures that kivi runs: names and conventions, as data. The decoder is one and the same.
// To add one: a file beside this that defines its constant, and a line in arch.cc.
#pragma once

#include <cstdint>
#include <string_view>

#include "backend/backend.h"

namespace kivi {

// GGUF's names, of which `.weight` or `.bias` is the rest; those of a layer have `blk.N.` before them. H query heads,
// K KV heads, D head_dim; shapes are [rows, cols], a vector has one row. Any matrix of a layer may have a bias [rows].
struct TensorNames {
  std::string_view token_embd = "token_embd";    // [vocab, hidden]
  std::string_view output_norm = "output_norm";  // [hidden]
  std::string_view output = "output";            // [vocab, hidden]; absent: token_embd is used
  // What the wavelengths of RoPE are multiplied by, [n_dims / 2]; may be absent.
  std::string_view rope_freqs = "rope_freqs";          // at every length (Llama 3.1)
  std::string_view rope_short = "rope_factors_short";  // up to the context before its extension (Phi-3)
  std::string_view rope_long = "rope_factors_long";    // beyond it; kivi does not go there

  std::string_view attn_norm = "attn_norm";      // [hidden]; in a parallel block it may be absent: ffn_norm is used
  std::string_view attn_qkv = "attn_qkv";        // [(H + 2 K) * D, hidden], or the three that follow
  std::string_view attn_q = "attn_q";            // [H * D, hidden]
  std::string_view attn_k = "attn_k";            // [K * D, hidden]
  std::string_view attn_v = "attn_v";            // [K * D, hidden]
  std::string_view attn_q_norm = "attn_q_norm";  // [D]
  std::string_view attn_k_norm = "attn_k_norm";  // [D]
  std::string_view attn_output = "attn_output";  // [hidden, H * D]
  std::string_view post_attention_norm = "post_attention_norm";  // [hidden]
  std::string_view ffn_norm = "ffn_norm";                        // [hidden]
  std::string_view ffn_gate = "ffn_gate";            // [ffn, hidden]; no name: its rows are before those of ffn_up
  std::string_view ffn_up = "ffn_up";                // [ffn, hidden]
  std::string_view ffn_down = "ffn_down";            // [hidden, ffn]
  std::string_view post_ffw_norm = "post_ffw_norm";  // [hidden]
};

struct Architecture {
  std::string_view name;  // general.architecture, and the prefix of the architecture's metadata keys
  RopePairing rope_pairing = RopePairing::kHalfSplit;
  NormKind norm = NormKind::kRms;
  bool has_norm_bias = false;
  bool has_head_norm = false;   // q and k are normalised, each head by itself
  bool has_post_norms = false;  // what attention and MLP give is normalised before it is added
  bool is_parallel = false;     // the MLP takes what the layer takes, without what attention adds
  bool has_gate = true;         // of the MLP
  Activation activation = Activation::kSilu;
  bool scales_embedding = false;  // by the root of the hidden size

  // What a file may leave out.
  double rope_base = 1e4;
  double sliding_rope_base = 0;      // of layers with a sliding window, which then have no RoPE scaling; 0: as others
  int64_t sliding_window = 0;        // tokens; 0: none
  int64_t full_attention_every = 0;  // with a sliding window, the last of so many layers has none; 0: all have it
  double score_cap = 0;              // of attention; 0: none
  double logit_cap = 0;              // 0: none
  int64_t wide_score_layers = 0;     // a model of so many layers divides scores by sqrt(hidden / H) instead of sqrt(D)

  TensorNames names{};
};

extern const Architecture kFalconArchitecture;
extern const Architecture kGemma2Architecture;
extern const Architecture kGemma3Architecture;
extern const Architecture kLlamaArchitecture;
extern const Architecture kPhi3Architecture;
extern const Architecture kQwen2Architecture;
extern const Architecture kQwen3Architecture;

// The architecture of that name. Throws Error{kUnsupported} that lists those there are.
const Architecture& find_architecture(std::string_view name);

}  // namespace kivi
