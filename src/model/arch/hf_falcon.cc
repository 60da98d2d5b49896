#include "core/error.h"
#include "model/arch/hf_arch.h"

namespace kivi {
namespace {

constexpr HfName kNames[] = {
    {"transformer.word_embeddings", "token_embd"},
    {"transformer.ln_f", "output_norm"},
    {"lm_head", "output"},
    {"transformer.h.N.input_layernorm", "blk.N.attn_norm"},
    {"transformer.h.N.ln_mlp", "blk.N.attn_norm"},
    {"transformer.h.N.ln_attn", "blk.N.attn_norm_2"},
    {"transformer.h.N.self_attention.query_key_value", "blk.N.attn_qkv"},
    {"transformer.h.N.self_attention.dense", "blk.N.attn_output"},
    {"transformer.h.N.mlp.dense_h_to_4h", "blk.N.ffn_up"},
    {"transformer.h.N.mlp.dense_4h_to_h", "blk.N.ffn_down"},
};

// The rows are KV head after KV head: its queries, its key, its value. All queries come first, then all keys, then all
// values. With one KV head that is the same.
std::vector<RowRange> order_of_rows(int64_t n_heads, int64_t n_kv_heads, int64_t head_dim) {
  const int64_t queries = n_heads / n_kv_heads * head_dim;
  const int64_t stride = queries + 2 * head_dim;
  std::vector<RowRange> order;
  const auto add = [&](int64_t begin, int64_t n_rows) {
    for (int64_t i = 0; i < n_kv_heads; ++i) order.push_back({i * stride + begin, n_rows});
  };
  add(0, queries);
  add(queries, head_dim);
  add(queries + head_dim, head_dim);
  return order;
}

void order_heads(HfTranslation& t, int64_t n_heads, int64_t n_kv_heads) {
  const int64_t head_dim = t.config().get_int("hidden_size") / n_heads;
  for (auto& [name, tensor] : t.tensors()) {
    if (!name.ends_with("attn_qkv.weight")) continue;
    if (tensor.view.rows != (n_heads + 2 * n_kv_heads) * head_dim) {
      fail(ErrorCode::kCorrupt, "{}: query_key_value has {} rows, but {} heads over {} KV heads of {} have {}",
           t.config().path(), tensor.view.rows, n_heads, n_kv_heads, head_dim, (n_heads + 2 * n_kv_heads) * head_dim);
    }
    tensor.order = order_of_rows(n_heads, n_kv_heads, head_dim);
  }
}

void translate_falcon(HfTranslation& t) {
  t.require("alibi", false);
  t.require("bias", false);
  t.require("parallel_attn", true);
  const ModelFile& config = t.config();
  const int64_t n_heads = config.get_int("num_attention_heads");
  const bool is_grouped = config.find_bool("new_decoder_architecture").value_or(false);
  const bool has_one_kv_head = !is_grouped && config.find_bool("multi_query").value_or(true);
  const int64_t n_kv_heads = has_one_kv_head ? 1 : config.find_int("num_kv_heads").value_or(n_heads);
  if (n_heads < 1 || n_kv_heads < 1 || n_heads % n_kv_heads != 0 || n_heads > INT16_MAX) {
    fail(ErrorCode::kCorrupt, "{}: {} query heads are not a multiple of {} KV heads", config.path(), n_heads,
         n_kv_heads);
  }
  t.assume("max_position_embeddings", int64_t{2048});
  t.assume("ffn_hidden_size", 4 * (config.get_int("hidden_size") & INT32_MAX));

  t.copy_int("num_hidden_layers", "block_count");
  t.copy_int("hidden_size", "embedding_length");
  t.copy_int("ffn_hidden_size", "feed_forward_length");
  t.copy_int("max_position_embeddings", "context_length");
  t.set("attention.head_count", n_heads);
  t.set("attention.head_count_kv", n_kv_heads);
  t.copy_float("layer_norm_epsilon", "attention.layer_norm_epsilon");
  t.set_rope();
  if (n_kv_heads > 1) order_heads(t, n_heads, n_kv_heads);
}

}  // namespace

constinit const HfArchitecture kHfFalcon{.model_type = "falcon",
                                         .architecture = "falcon",
                                         .names = kNames,
                                         .activation = "gelu",
                                         .is_tied = true,
                                         .translate = translate_falcon};

}  // namespace kivi
