#include <cmath>

#include "model/arch/hf_arch.h"

namespace kivi {
namespace {

constexpr HfName kNames[] = {
    {"model.layers.N.post_attention_layernorm", "blk.N.post_attention_norm"},
    {"model.layers.N.pre_feedforward_layernorm", "blk.N.ffn_norm"},
    {"model.layers.N.post_feedforward_layernorm", "blk.N.post_ffw_norm"},
};

// Config.json leaves out what Transformers takes for granted.
void translate_common(HfTranslation& t) {
  t.assume("head_dim", int64_t{256});
  t.assume("query_pre_attn_scalar", int64_t{256});
  t.assume("rms_norm_eps", 1e-6);
  t.set_sizes();
  t.set_rope();
  t.set_sliding_window();
  t.set("attention.scale", 1.0 / std::sqrt(t.config().get_float("query_pre_attn_scalar")));
  t.copy_float_if_there("final_logit_softcapping", "final_logit_softcapping");
  t.copy_float_if_there("attn_logit_softcapping", "attn_logit_softcapping");
}

void translate_gemma2(HfTranslation& t) {
  t.assume("sliding_window", int64_t{4096});
  translate_common(t);
}

void translate_gemma3(HfTranslation& t) {
  t.assume("num_attention_heads", int64_t{8});
  t.assume("num_key_value_heads", int64_t{4});
  t.assume("max_position_embeddings", int64_t{131072});
  t.assume("sliding_window", int64_t{4096});
  translate_common(t);
  t.copy_float_if_there("rope_local_base_freq", "rope.freq_base_swa");
  t.copy_float_if_there("rope_parameters.sliding_attention.rope_theta", "rope.freq_base_swa");
}

}  // namespace

constinit const HfArchitecture kHfGemma2{.model_type = "gemma2",
                                         .architecture = "gemma2",
                                         .names = kNames,
                                         .shared_names = kHfSplitNames,
                                         .activation = "gelu_pytorch_tanh",
                                         .is_tied = true,
                                         .norm_offset = 1.0F,
                                         .translate = translate_gemma2};

constinit const HfArchitecture kHfGemma3{.model_type = "gemma3_text",
                                         .architecture = "gemma3",
                                         .names = kNames,
                                         .shared_names = kHfSplitNames,
                                         .activation = "gelu_pytorch_tanh",
                                         .is_tied = true,
                                         .norm_offset = 1.0F,
                                         .translate = translate_gemma3};

}  // namespace kivi
