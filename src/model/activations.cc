#include "model/activations.h"

#include <algorithm>

#include "cache/kv_cache.h"

namespace kivi {

bool Activations::reserve(Backend& backend, const ModelConfig& c, int64_t rows, int64_t head_rows) {
  head_rows = std::min(head_rows, kHeadRows);
  if (rows <= n_rows && head_rows <= n_head_rows) return false;
  head_rows = std::max(head_rows, n_head_rows);
  rows = std::max({rows, n_rows, head_rows});
  *this = {};  // the old ones go before the new ones come
  n_rows = rows;
  n_head_rows = head_rows;
  const DType act = backend.activation_dtype();
  const DType stored = window_dtype(act);
  inputs = Tensor(backend, DType::kI32, {4 * rows});
  x = Tensor(backend, DType::kF32, {rows, c.hidden_size});
  normed = Tensor(backend, act, {rows, c.hidden_size});
  qkv = Tensor(backend, act, {rows, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim});
  if (act != stored) kv16 = Tensor(backend, stored, {rows, 2 * c.n_kv_heads * c.head_dim});
  attended = Tensor(backend, act, {rows, c.n_heads * c.head_dim});
  n_mlp_rows = std::min(rows, act == DType::kF32 ? kMlpRows : kMlpRowsOfGpu);
  up = Tensor(backend, act, {n_mlp_rows, (c.has_gate ? 2 : 1) * c.ffn_size});
  if (c.has_post_norms) branch = Tensor(backend, DType::kF32, {rows, c.hidden_size});
  best = Tensor(backend, DType::kI32, {rows});
  if (head_rows > 0) {
    last = Tensor(backend, DType::kF32, {head_rows, c.hidden_size});
    logits = Tensor(backend, DType::kF32, {head_rows, c.vocab_size});
  }
  return true;
}

int64_t Activations::size_bytes() const {
  size_t total = 0;
  for (const Tensor* tensor : {&inputs, &x, &normed, &qkv, &kv16, &attended, &up, &branch, &best, &last, &logits}) {
    total += tensor->size_bytes();
  }
  return static_cast<int64_t>(total);
}

}  // namespace kivi
