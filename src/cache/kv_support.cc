#include "cache/kv_support.h"

#include "backend/tensor.h"
#include "cache/kv_cache.h"

namespace kivi {

void require_kernels(Backend& backend, const KvShape& shape, int64_t n_heads, const KvConfig& config, float score_cap) {
  config.validate(shape);
  const Tensor zeros(backend, DType::kI32, {4});  // one sequence: no tokens, no rows, page 0 where a page is
  auto* const zero = static_cast<int32_t*>(zeros.view().data);
  const TensorView<const int32_t, 2> table(zero, {1, 1});
  const TensorView<const int32_t, 1> seq_begin(zero, {2});
  const auto no_rows = [&](DType dtype, int64_t heads) {
    AnyView rows;
    rows.data = zero;
    rows.dtype = dtype;
    rows.rank = 3;
    rows.shape = {0, heads, shape.head_dim};
    rows.stride = {heads * shape.head_dim, shape.head_dim, 1};
    return rows;
  };
  format::KvBatchView view;
  view.layout = config.layout(shape);
  view.layout.order = backend.code_order();
  view.window_dtype = window_dtype(backend.activation_dtype());
  view.packed_pages = view.window_pages = reinterpret_cast<std::byte*>(zero);
  view.packed_table = view.key_window_table = view.value_window_table = table;
  view.n_past = TensorView<const int32_t, 1>(zero, {1});

  const AnyView q = no_rows(backend.activation_dtype(), n_heads);
  const AnyView kv = no_rows(view.window_dtype, shape.n_kv_heads);
  for (const LayerGroup& group : layer_groups(shape, config)) {
    view.key_policy = group.keys;
    view.value_policy = group.values;
    view.group = group.id;
    backend.plan_attend({.seq_begin = seq_begin, .cache = view, .n_rows = 0, .n_heads = n_heads});
    backend.attend({.q = q,
                    .new_keys = kv,
                    .new_values = kv,
                    .seq_begin = seq_begin,
                    .cache = view,
                    .softmax_scale = 1.0F,
                    .score_cap = score_cap,
                    .out = q});
    backend.store_kv({.new_keys = kv, .new_values = kv, .seq_begin = seq_begin, .cache = view});
  }
  backend.synchronize();
}

}  // namespace kivi
