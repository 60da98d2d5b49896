#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "model/arch/hf_arch.h"

namespace kivi {
namespace {

constexpr HfName kNames[] = {
    {"model.layers.N.post_attention_layernorm", "blk.N.ffn_norm"},
};

void translate_llama(HfTranslation& t) {
  t.set_sizes();
  t.set_rope();
}

// Each layer has the sliding window, if there is one (Mistral 7B v0.1).
void translate_mistral(HfTranslation& t) {
  translate_llama(t);
  t.set_sliding_window();
}

// Layers from max_window_layers on have the sliding window, if it is used at all.
void translate_qwen(HfTranslation& t) {
  translate_llama(t);
  if (!t.config().find_strings("layer_types")) {
    std::vector<std::string> types;
    const int64_t n_layers = std::min(t.config().get_int("num_hidden_layers"), std::ssize(t.tensors()));
    const int64_t first = t.config().find_int("max_window_layers").value_or(28);
    for (int64_t i = 0; i < n_layers; ++i) {
      types.emplace_back(i < first ? "full_attention" : "sliding_attention");
    }
    t.assume("layer_types", std::move(types));
  }
  t.assume("use_sliding_window", false);
  t.set_sliding_window();
}

}  // namespace

constinit const HfArchitecture kHfLlama{.model_type = "llama",
                                        .architecture = "llama",
                                        .names = kNames,
                                        .shared_names = kHfSplitNames,
                                        .activation = "silu",
                                        .translate = translate_llama};

constinit const HfArchitecture kHfMistral{.model_type = "mistral",
                                          .architecture = "llama",
                                          .names = kNames,
                                          .shared_names = kHfSplitNames,
                                          .activation = "silu",
                                          .translate = translate_mistral};

constinit const HfArchitecture kHfQwen2{.model_type = "qwen2",
                                        .architecture = "qwen2",
                                        .names = kNames,
                                        .shared_names = kHfSplitNames,
                                        .activation = "silu",
                                        .translate = translate_qwen};

constinit const HfArchitecture kHfQwen3{.model_type = "qwen3",
                                        .architecture = "qwen3",
                                        .names = kNames,
                                        .shared_names = kHfSplitNames,
                                        .activation = "silu",
                                        .translate = translate_qwen};

}  // namespace kivi
