#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/tensor.h"
#include "core/error.h"

namespace kivi {
namespace {

// Rows that the MLP takes at a time: its activations are the widest, and a long prompt must not need ffn_size of them
// each.
constexpr int64_t kMlpRows = 512;

// The first n rows of a [rows, heads * D] tensor as [n, heads, D].
AnyView as_heads(const Tensor& tensor, int64_t n, int64_t heads) {
  AnyView view = tensor.rows(n);
  const int64_t head_dim = view.shape[1] / heads;
  view.rank = 3;
  view.shape = {n, heads, head_dim};
  view.stride = {view.stride[0], head_dim, 1};
  return view;
}

AnyView row_range(const Tensor& tensor, int64_t begin, int64_t n) {
  AnyView view = tensor.rows(n);
  view.data =
      static_cast<std::byte*>(view.data) + begin * view.stride[0] * static_cast<int64_t>(size_bytes(view.dtype));
  return view;
}

}  // namespace

// Activations of a step. Grows with the largest step seen.
struct Decoder::Scratch {
  int64_t n_rows = 0;
  Tensor tokens, positions;  // [N] i32
  Tensor x, normed;          // [N, hidden]: the residual stream, and what goes into a matrix
  Tensor q, attended;        // [N, H * D]
  Tensor k, v, k16, v16;     // [N, K * D], as computed and as cached
  Tensor gate, up;           // [kMlpRows, ffn]

  int64_t n_logit_rows = 0;
  Tensor logit_rows;  // [M] i32
  Tensor last;        // [M, hidden]
  Tensor logits;      // [M, vocabulary] f32
  std::vector<float> host_logits;

  void reserve_rows(Backend& backend, const ModelConfig& c, int64_t n) {
    if (n <= n_rows) return;
    *this = {};  // the old ones go before the new ones come
    n_rows = n;
    const DType act = backend.activation_dtype();
    tokens = Tensor(backend, DType::kI32, {n});
    positions = Tensor(backend, DType::kI32, {n});
    x = Tensor(backend, act, {n, c.hidden_size});
    normed = Tensor(backend, act, {n, c.hidden_size});
    q = Tensor(backend, act, {n, c.n_heads * c.head_dim});
    attended = Tensor(backend, act, {n, c.n_heads * c.head_dim});
    k = Tensor(backend, act, {n, c.n_kv_heads * c.head_dim});
    v = Tensor(backend, act, {n, c.n_kv_heads * c.head_dim});
    k16 = Tensor(backend, DType::kF16, {n, c.n_kv_heads * c.head_dim});
    v16 = Tensor(backend, DType::kF16, {n, c.n_kv_heads * c.head_dim});
    gate = Tensor(backend, act, {std::min(n, kMlpRows), c.ffn_size});
    up = Tensor(backend, act, {std::min(n, kMlpRows), c.ffn_size});
  }

  void reserve_logits(Backend& backend, const ModelConfig& c, int64_t n) {
    if (n <= n_logit_rows) return;
    n_logit_rows = n;
    logit_rows = Tensor(backend, DType::kI32, {n});
    last = Tensor(backend, backend.activation_dtype(), {n, c.hidden_size});
    logits = Tensor(backend, DType::kF32, {n, c.vocab_size});
    host_logits.resize(static_cast<size_t>(n * c.vocab_size));
  }
};

Decoder::Decoder(Backend& backend, const ModelWeights& weights)
    : backend_(&backend), weights_(&weights), scratch_(std::make_unique<Scratch>()) {}
Decoder::~Decoder() = default;

const ModelConfig& Decoder::config() const {
  return weights_->config;
}

KvShape Decoder::kv_shape() const {
  return {.n_layers = static_cast<int>(config().n_layers),
          .n_kv_heads = static_cast<int>(config().n_kv_heads),
          .head_dim = static_cast<int>(config().head_dim)};
}

TensorView<const float, 2> Decoder::step(KvCache& cache, const DecoderStep& step) {
  const auto n_rows = static_cast<int64_t>(step.tokens.size());
  const auto n_logits = static_cast<int64_t>(step.logit_rows.size());
  std::vector<int32_t> positions;
  for (const StepSequence& sequence : cache.step()) {
    const auto first = static_cast<int32_t>(cache.n_tokens(sequence.id));
    for (int32_t i = 0; i < sequence.n_new; ++i) positions.push_back(first + i);
  }
  if (static_cast<int64_t>(positions.size()) != n_rows || n_rows == 0) {
    fail(ErrorCode::kInternal, "decoder: {} tokens for a reserved step of {}", n_rows, positions.size());
  }

  Scratch& s = *scratch_;
  s.reserve_rows(*backend_, config(), n_rows);
  backend_->copy_to_device(s.tokens.view().data, step.tokens.data(), step.tokens.size_bytes());
  backend_->copy_to_device(s.positions.view().data, positions.data(), positions.size() * sizeof(int32_t));
  backend_->embed({.table = weights_->embedding.get(), .tokens = s.tokens.rows(n_rows), .out = s.x.rows(n_rows)});
  for (int64_t layer = 0; layer < config().n_layers; ++layer) {
    attention(static_cast<int>(layer), cache, n_rows);
    mlp(static_cast<int>(layer), n_rows);
  }
  cache.commit();
  if (n_logits == 0) return {};

  s.reserve_logits(*backend_, config(), n_logits);
  backend_->copy_to_device(s.logit_rows.view().data, step.logit_rows.data(), step.logit_rows.size_bytes());
  backend_->gather({.x = s.x.rows(n_rows), .rows = s.logit_rows.rows(n_logits), .out = s.last.rows(n_logits)});
  normalise(s.last.rows(n_logits), weights_->output_norm, s.last.rows(n_logits));
  backend_->linear(
      {.x = s.last.rows(n_logits), .weight = &weights_->head(), .bias = {}, .out = s.logits.rows(n_logits)});
  const int64_t vocab_size = config().vocab_size;
  backend_->copy_to_host(s.host_logits.data(), s.logits.view().data,
                         static_cast<size_t>(n_logits * vocab_size) * sizeof(float));
  return {s.host_logits.data(), {n_logits, vocab_size}};
}

void Decoder::normalise(const AnyView& x, const Tensor& weight, const AnyView& out) {
  backend_->rms_norm({.x = x, .weight = weight.view(), .epsilon = static_cast<float>(config().rms_eps), .out = out});
}

void Decoder::attention(int layer, KvCache& cache, int64_t n) {
  const ModelConfig& c = config();
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  Scratch& s = *scratch_;
  normalise(s.x.rows(n), w.attention_norm, s.normed.rows(n));
  const auto project = [&](const Weight& weight, const Tensor& bias, const Tensor& out) {
    backend_->linear({.x = s.normed.rows(n), .weight = &weight, .bias = bias.view(), .out = out.rows(n)});
  };
  project(*w.q, w.q_bias, s.q);
  project(*w.k, w.k_bias, s.k);
  project(*w.v, w.v_bias, s.v);
  const auto rotate = [&](const Tensor& x, int64_t heads) {
    backend_->rope({.x = as_heads(x, n, heads),
                    .positions = s.positions.rows(n),
                    .inverse_frequency = weights_->inverse_frequency.view(),
                    .pairing = c.architecture->rope_pairing});
  };
  rotate(s.q, c.n_heads);
  rotate(s.k, c.n_kv_heads);
  backend_->convert({.x = s.k.rows(n), .out = s.k16.rows(n)});
  backend_->convert({.x = s.v.rows(n), .out = s.v16.rows(n)});

  const AnyView new_keys = as_heads(s.k16, n, c.n_kv_heads);
  const AnyView new_values = as_heads(s.v16, n, c.n_kv_heads);
  const format::KvBatchView view = cache.view(layer);
  backend_->attend({.q = as_heads(s.q, n, c.n_heads),
                    .new_keys = new_keys,
                    .new_values = new_values,
                    .seq_begin = cache.seq_begin(),
                    .cache = view,
                    .softmax_scale = 1.0F / std::sqrt(static_cast<float>(c.head_dim)),
                    .out = as_heads(s.attended, n, c.n_heads)});
  backend_->store_kv({.new_keys = new_keys, .new_values = new_values, .seq_begin = cache.seq_begin(), .cache = view});
  backend_->linear(
      {.x = s.attended.rows(n), .weight = w.output.get(), .bias = {}, .out = s.x.rows(n), .accumulate = true});
}

void Decoder::mlp(int layer, int64_t n) {
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  Scratch& s = *scratch_;
  normalise(s.x.rows(n), w.mlp_norm, s.normed.rows(n));
  for (int64_t begin = 0; begin < n; begin += kMlpRows) {
    const int64_t rows = std::min(kMlpRows, n - begin);
    const AnyView in = row_range(s.normed, begin, rows);
    backend_->linear({.x = in, .weight = w.gate.get(), .bias = {}, .out = s.gate.rows(rows)});
    backend_->linear({.x = in, .weight = w.up.get(), .bias = {}, .out = s.up.rows(rows)});
    backend_->gate({.gate = s.gate.rows(rows), .up = s.up.rows(rows), .out = s.gate.rows(rows)});
    backend_->linear({.x = s.gate.rows(rows),
                      .weight = w.down.get(),
                      .bias = {},
                      .out = row_range(s.x, begin, rows),
                      .accumulate = true});
  }
}

}  // namespace kivi
