#include "model/arch/hf_arch.h"

namespace kivi {
namespace {

constexpr HfName kNames[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
    {"model.layers.N.input_layernorm", "blk.N.attn_norm"},
    {"model.layers.N.self_attn.qkv_proj", "blk.N.attn_qkv"},
    {"model.layers.N.self_attn.o_proj", "blk.N.attn_output"},
    {"model.layers.N.post_attention_layernorm", "blk.N.ffn_norm"},
    {"model.layers.N.mlp.gate_up_proj", "blk.N.ffn_up"},
    {"model.layers.N.mlp.down_proj", "blk.N.ffn_down"},
};

void translate_phi3(HfTranslation& t) {
  t.set_sizes();
  t.set_rope();
  t.set_sliding_window();
}

}  // namespace

constinit const HfArchitecture kHfPhi3{
    .model_type = "phi3", .architecture = "phi3", .names = kNames, .activation = "silu", .translate = translate_phi3};

}  // namespace kivi
