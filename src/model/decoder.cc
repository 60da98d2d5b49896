#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "model/slices.h"

namespace kivi {
namespace {

bool are_consecutive(std::span<const int32_t> rows) {
  return rows.back() - rows.front() + 1 == std::ssize(rows);
}

bool is_decode(const KvCache& cache) {
  return std::ranges::all_of(cache.step(), [](const StepSequence& entry) { return entry.n_new == 1; });
}

void check(const KvCache& cache, const DecoderStep& step) {
  int64_t n_rows = 0;
  for (const StepSequence& entry : cache.step()) n_rows += entry.n_new;
  if (n_rows != step.n_rows() || n_rows == 0) {
    fail(ErrorCode::kInternal, "decoder: {} tokens for a reserved step of {}", step.n_rows(), n_rows);
  }
  for (const std::span<const int32_t> rows : {step.logit_rows, step.argmax_rows}) {
    if (std::ssize(rows) > n_rows || (!rows.empty() && (rows.front() < 0 || rows.back() >= n_rows))) {
      fail(ErrorCode::kInternal, "decoder: rows of logits beyond a step of {} rows", n_rows);
    }
  }
}

int64_t padded_batch(int64_t n, int64_t most) {
  return std::min(kivi::padded_batch(n), most);
}

float softmax_scale(const ModelConfig& config) {
  if (config.softmax_scale) return static_cast<float>(*config.softmax_scale);
  return 1.0F / std::sqrt(static_cast<float>(config.head_dim));
}

}  // namespace

Decoder::Decoder(Backend& backend, const ModelWeights& weights) : backend_(&backend), weights_(&weights) {}

KvShape kv_shape(const ModelConfig& config) {
  return {.n_layers = static_cast<int>(config.n_layers),
          .n_kv_heads = static_cast<int>(config.n_kv_heads),
          .head_dim = static_cast<int>(config.head_dim),
          .sliding_window = config.sliding_window,
          .slides = config.slides};
}

void Decoder::reserve(int64_t n_rows, int64_t n_wanted_rows) {
  const int64_t head_rows = std::min(n_wanted_rows, Activations::kHeadRows);
  if (n_rows <= activations_.n_rows && head_rows <= activations_.n_head_rows) return;
  drop_started();
  recordings_.clear();
  activations_.reserve(*backend_, config(), n_rows, head_rows);
  const auto most_best = static_cast<size_t>(activations_.n_rows) * sizeof(TokenId);
  for (auto& readback : readbacks_) readback = backend_->make_readback(most_best);
}

void Decoder::release() {
  drop_started();
  recordings_.clear();
  readbacks_ = {};
  activations_ = {};
}

DecoderOutput Decoder::step(KvCache& cache, const DecoderStep& step) {
  start(cache, step);
  return finish();
}

bool Decoder::can_follow(const KvCache& cache, int64_t n) const {
  const int64_t padded = padded_batch(n, cache.capacity().max_sequences);
  return !recordings_.empty() && padded <= std::min(activations_.n_rows, activations_.n_head_rows);
}

void Decoder::start(KvCache& cache, const DecoderStep& step) {
  check(cache, step);
  if (started_.size() >= (step.follows.empty() ? 1 : kMostStarted)) {
    fail(ErrorCode::kInternal, "decoder: a step before the one before it is finished");
  }
  const int64_t n_rows = step.n_rows();
  const auto n_best = std::ssize(step.argmax_rows);
  const bool chooses_all = n_best == n_rows && step.logit_rows.empty();
  const Recorded* recorded = nullptr;
  if (is_decode(cache)) {
    const int64_t padded = padded_batch(n_rows, cache.capacity().max_sequences);
    reserve(padded, std::max({std::ssize(step.logit_rows), n_best, chooses_all ? padded : 0}));
    recorded = record(cache, padded, chooses_all);
  } else {
    reserve(n_rows, std::max(std::ssize(step.logit_rows), n_best));
  }

  const int64_t n_run = recorded != nullptr ? recorded->n_rows : n_rows;
  upload(cache, step, n_run);
  if (!step.follows.empty()) take_tokens(inputs(2 * n_run, n_rows));
  if (recorded != nullptr) {
    backend_->replay(*recorded->recording);
  } else {
    run_layers(cache, {n_rows, std::ssize(cache.step())});
  }
  cache.commit();

  const auto n_logits = std::ssize(step.logit_rows);
  if (n_logits > 0) fetch_logits(step.logit_rows, inputs(2 * n_run, n_logits));
  Started started{.n_logits = n_logits, .n_best = n_best};
  if (n_best > 0) {
    if (recorded == nullptr || !chooses_all) choose(step.argmax_rows, inputs(2 * n_run + n_logits, n_best));
    started.best = readbacks_[next_readback_].get();
    next_readback_ = (next_readback_ + 1) % kMostStarted;
    started.best->start(activations_.best.view().data, static_cast<size_t>(n_best) * sizeof(TokenId));
  }
  started_.push_back(started);
}

DecoderOutput Decoder::finish() {
  if (started_.empty()) fail(ErrorCode::kInternal, "decoder: no step is started");
  const Started done = started_.front();
  started_.pop_front();
  const auto* best = done.best == nullptr ? nullptr : reinterpret_cast<const TokenId*>(done.best->wait());
  return {.logits = {host_logits_.data(), {done.n_logits, config().vocab_size}},
          .argmax = {best, static_cast<size_t>(done.n_best)}};
}

void Decoder::record_ahead(const KvCache& cache) {
  const int64_t most = cache.capacity().max_sequences;
  reserve(most, most);
  for (int64_t n = 1; n <= most; n = padded_batch(n, most) + 1) {
    if (record(cache, padded_batch(n, most), true) == nullptr) return;
  }
}

const Decoder::Recorded* Decoder::record(const KvCache& cache, int64_t n_rows, bool chooses) {
  for (const Recorded& known : recordings_) {
    if (known.n_rows == n_rows && known.chooses == chooses && known.cache.lock() == cache.memory_handle())
      return &known;
  }
  auto recording = backend_->record([&] {
    run_layers(cache, {n_rows, n_rows});
    if (!chooses) return;
    std::vector<int32_t> rows(static_cast<size_t>(n_rows));
    std::iota(rows.begin(), rows.end(), 0);
    choose(rows, {});
  });
  if (!recording) return nullptr;
  std::erase_if(recordings_, [](const Recorded& known) { return known.cache.expired(); });
  recordings_.push_back({cache.memory_handle(), n_rows, chooses, std::move(recording)});
  return &recordings_.back();
}

AnyView Decoder::inputs(int64_t begin, int64_t n) const {
  AnyView view = offset(activations_.inputs.view(), begin);
  view.shape[0] = n;
  return view;
}

// All in one copy. Rows of padding have token 0 at position 0.
void Decoder::upload(const KvCache& cache, const DecoderStep& step, int64_t n_rows) {
  host_inputs_.assign(step.tokens.begin(), step.tokens.end());
  host_inputs_.resize(static_cast<size_t>(n_rows));
  for (const StepSequence& entry : cache.step()) {
    const auto first = static_cast<int32_t>(cache.n_tokens(entry.id));
    for (int32_t i = 0; i < entry.n_new; ++i) host_inputs_.push_back(first + i);
  }
  host_inputs_.resize(static_cast<size_t>(2 * n_rows));
  host_inputs_.insert(host_inputs_.end(), step.follows.begin(), step.follows.end());
  host_inputs_.insert(host_inputs_.end(), step.logit_rows.begin(), step.logit_rows.end());
  host_inputs_.insert(host_inputs_.end(), step.argmax_rows.begin(), step.argmax_rows.end());
  backend_->copy_to_device(activations_.inputs.view().data, host_inputs_.data(), host_inputs_.size() * sizeof(int32_t));
}

// Each row's token is the choice of the row that it follows. Ids are gathered as the floats that have their bits.
void Decoder::take_tokens(const AnyView& follows) {
  const auto as_floats = [](const AnyView& ids) {
    return TensorView<float, 2>(static_cast<float*>(ids.data), {ids.shape[0], 1});
  };
  const AnyView tokens = inputs(0, follows.shape[0]);
  backend_->gather({.x = as_floats(activations_.best.view()), .rows = follows, .out = as_floats(tokens)});
}

NormArgs Decoder::norm_args(const NormOf<Tensor>& norm, const AnyView& x, const AnyView& out) const {
  return {.x = x,
          .weight = norm.weight.view(),
          .bias = norm.bias.view(),
          .kind = config().norm,
          .epsilon = static_cast<float>(config().norm_epsilon),
          .out = out};
}

void Decoder::run_layers(const KvCache& cache, const Extent& extent) {
  for (int group = 0; group < cache.n_groups(); ++group) {
    backend_->plan_attend({.seq_begin = cache.seq_begin(extent.n_sequences),
                           .cache = cache.view(cache.first_layer(group), extent.n_sequences),
                           .n_rows = extent.n_rows,
                           .n_heads = config().n_heads});
  }
  backend_->embed({.table = weights_->embedding.get(),
                   .tokens = inputs(0, extent.n_rows),
                   .out = activations_.x.rows(extent.n_rows),
                   .scale = static_cast<float>(config().embedding_scale)});
  for (int layer = 0; layer < config().n_layers; ++layer) run_layer(layer, cache, extent);
}

void Decoder::run_layer(int layer, const KvCache& cache, const Extent& extent) {
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const AnyView x = activations_.x.rows(extent.n_rows);
  const AnyView normed = activations_.normed.rows(extent.n_rows);
  const auto norm_for_mlp = [&] {
    if (!config().shares_norm) backend_->norm(norm_args(w.mlp_norm, x, normed));
  };
  backend_->norm(norm_args(w.attention_norm, x, normed));
  attend(layer, cache, extent);
  if (config().is_parallel) norm_for_mlp();  // while x is what the layer takes
  add(activations_.attended.rows(extent.n_rows), w.output, w.post_attention_norm, 0);
  if (!config().is_parallel) norm_for_mlp();
  add_mlp(layer, extent.n_rows);
}

void Decoder::attend(int layer, const KvCache& cache, const Extent& extent) {
  const ModelConfig& c = config();
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const Activations& a = activations_;
  const int64_t n = extent.n_rows;
  const int64_t q_columns = c.n_heads * c.head_dim;
  const int64_t k_columns = c.n_kv_heads * c.head_dim;
  const AnyView qkv = a.qkv.rows(n);

  backend_->linear({.x = a.normed.rows(n), .weight = w.qkv.matrix.get(), .bias = w.qkv.bias.view(), .out = qkv});
  const AnyView q_and_k = as_heads(column_range(qkv, 0, q_columns + k_columns), c.head_dim);
  if (c.has_head_norm) backend_->norm(norm_args(w.head_norm, q_and_k, q_and_k));
  rotate(layer, q_and_k, n);
  const format::KvBatchView view = cache.view(layer, extent.n_sequences);
  const AnyView out = as_heads(a.attended.rows(n), c.head_dim);
  const auto rotate_values = [&](const AnyView& values) {
    if (view.layout.has_rotated_values()) backend_->hadamard({.x = values, .block = view.layout.value_group});
  };
  rotate_values(as_heads(column_range(qkv, q_columns + k_columns, k_columns), c.head_dim));
  AnyView kv = column_range(qkv, q_columns, 2 * k_columns);
  if (!a.kv16.view().empty()) {
    backend_->convert({.x = kv, .out = a.kv16.rows(n)});
    kv = a.kv16.rows(n);
  }
  const AnyView new_keys = as_heads(column_range(kv, 0, k_columns), c.head_dim);
  const AnyView new_values = as_heads(column_range(kv, k_columns, k_columns), c.head_dim);
  const AnyView seq_begin = cache.seq_begin(extent.n_sequences);
  backend_->attend({.q = as_heads(column_range(qkv, 0, q_columns), c.head_dim),
                    .new_keys = new_keys,
                    .new_values = new_values,
                    .seq_begin = seq_begin,
                    .cache = view,
                    .softmax_scale = softmax_scale(c),
                    .score_cap = static_cast<float>(c.score_cap),
                    .out = out});
  rotate_values(out);
  backend_->store_kv({.new_keys = new_keys, .new_values = new_values, .seq_begin = seq_begin, .cache = view});
}

void Decoder::rotate(int layer, const AnyView& q_and_k, int64_t n) {
  const ModelConfig& c = config();
  const bool own = c.sliding_rope && c.slides[static_cast<size_t>(layer)];
  const RopeConfig& rope = own ? *c.sliding_rope : c.rope;
  backend_->rope({.x = q_and_k,
                  .positions = inputs(n, n),
                  .inverse_frequency = (own ? weights_->sliding_inverse_frequency : weights_->inverse_frequency).view(),
                  .pairing = rope.pairing,
                  .scale = static_cast<float>(rope.scale)});
}

void Decoder::add_mlp(int layer, int64_t n) {
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const Activations& a = activations_;
  const int64_t width = config().ffn_size;
  for (int64_t begin = 0; begin < n; begin += activations_.n_mlp_rows) {
    const int64_t rows = std::min(activations_.n_mlp_rows, n - begin);
    const AnyView both = a.up.rows(rows);
    const AnyView first = column_range(both, 0, width);
    backend_->linear({.x = row_range(a.normed.view(), begin, rows),
                      .weight = w.up.matrix.get(),
                      .bias = w.up.bias.view(),
                      .out = both});
    backend_->gate({.gate = first,
                    .up = config().has_gate ? column_range(both, width, width) : AnyView(),
                    .activation = config().activation,
                    .out = first});
    add(first, w.down, w.post_mlp_norm, begin);
  }
}

void Decoder::add(const AnyView& x, const LinearOf<std::unique_ptr<Weight>, Tensor>& linear, const NormOf<Tensor>& norm,
                  int64_t first_row) {
  const AnyView sum = row_range(activations_.x.view(), first_row, x.shape[0]);
  const AnyView branch = config().has_post_norms ? activations_.branch.rows(x.shape[0]) : sum;
  backend_->linear({.x = x,
                    .weight = linear.matrix.get(),
                    .bias = linear.bias.view(),
                    .out = branch,
                    .accumulate = !config().has_post_norms});
  if (!config().has_post_norms) return;
  NormArgs args = norm_args(norm, branch, sum);
  args.accumulate = true;
  backend_->norm(args);
}

// Calls use(first, logits) for the logits of all rows, some rows[first], rows[first + 1] ... at a time. device_rows
// holds the same rows; it is not read where they follow one another.
template <typename Use>
void Decoder::for_logits(std::span<const int32_t> rows, const AnyView& device_rows, Use use) {
  const Activations& a = activations_;
  for (int64_t first = 0; first < std::ssize(rows); first += a.n_head_rows) {
    const int64_t n = std::min(a.n_head_rows, std::ssize(rows) - first);
    const auto part = rows.subspan(static_cast<size_t>(first), static_cast<size_t>(n));
    AnyView x = row_range(a.x.view(), part.front(), n);
    if (!are_consecutive(part)) {
      AnyView part_rows = offset(device_rows, first);
      part_rows.shape[0] = n;
      x = a.last.rows(n);
      backend_->gather({.x = a.x.view(), .rows = part_rows, .out = x});
    }
    backend_->norm(norm_args(weights_->output_norm, x, a.normed.rows(n)));
    backend_->linear({.x = a.normed.rows(n), .weight = &weights_->head(), .bias = {}, .out = a.logits.rows(n)});
    use(first, a.logits.rows(n));
  }
}

// Capped logits have the same argmax.
void Decoder::choose(std::span<const int32_t> rows, const AnyView& device_rows) {
  for_logits(rows, device_rows, [&](int64_t first, const AnyView& logits) {
    AnyView best = offset(activations_.best.view(), first);
    best.shape[0] = logits.shape[0];
    backend_->argmax({.x = logits, .out = best});
  });
}

void Decoder::fetch_logits(std::span<const int32_t> rows, const AnyView& device_rows) {
  const auto width = static_cast<size_t>(config().vocab_size);
  host_logits_.resize(rows.size() * width);
  for_logits(rows, device_rows, [&](int64_t first, const AnyView& logits) {
    if (config().logit_cap > 0) backend_->soft_cap({.x = logits, .cap = static_cast<float>(config().logit_cap)});
    backend_->copy_to_host(host_logits_.data() + static_cast<size_t>(first) * width, logits.data,
                           static_cast<size_t>(logits.shape[0]) * width * sizeof(float));
  });
}

}  // namespace kivi
