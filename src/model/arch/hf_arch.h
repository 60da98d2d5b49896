// What distinguishes the model types of Hugging Face folders: names, and what config.json calls things. Each becomes
// one of arch.h's architectures, under GGUF's names. To add one: a constant in a file beside this, and a line in
// hf_model.cc.
#pragma once

#include <span>
#include <string_view>

#include "model/hf_translation.h"

namespace kivi {

// Of a tensor without ".weight" or ".bias"; N stands for a layer's number.
struct HfName {
  std::string_view hf;
  std::string_view gguf;
};

// Names that model types share whose queries, keys and values, and gates, are matrices of their own.
inline constexpr HfName kHfSplitNames[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
    {"model.layers.N.input_layernorm", "blk.N.attn_norm"},
    {"model.layers.N.self_attn.q_proj", "blk.N.attn_q"},
    {"model.layers.N.self_attn.k_proj", "blk.N.attn_k"},
    {"model.layers.N.self_attn.v_proj", "blk.N.attn_v"},
    {"model.layers.N.self_attn.q_norm", "blk.N.attn_q_norm"},
    {"model.layers.N.self_attn.k_norm", "blk.N.attn_k_norm"},
    {"model.layers.N.self_attn.o_proj", "blk.N.attn_output"},
    {"model.layers.N.mlp.gate_proj", "blk.N.ffn_gate"},
    {"model.layers.N.mlp.up_proj", "blk.N.ffn_up"},
    {"model.layers.N.mlp.down_proj", "blk.N.ffn_down"},
};

struct HfArchitecture {
  std::string_view model_type;                // of config.json
  std::string_view architecture;              // GGUF's
  std::span<const HfName> names;              // its own
  std::span<const HfName> shared_names = {};  // beside them
  std::string_view activation;                // the one that the architecture has, as config.json calls it
  bool is_tied = false;                       // where config.json does not say
  float norm_offset = 0.0F;                   // norms are stored without it
  void (*translate)(HfTranslation&);  // config.json to metadata, and what is to be done to tensors, already renamed
};

extern const HfArchitecture kHfFalcon;
extern const HfArchitecture kHfGemma2;
extern const HfArchitecture kHfGemma3;
extern const HfArchitecture kHfLlama;
extern const HfArchitecture kHfMistral;
extern const HfArchitecture kHfPhi3;
extern const HfArchitecture kHfQwen2;
extern const HfArchitecture kHfQwen3;

}  // namespace kivi
