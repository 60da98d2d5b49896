#include "study/capture.h"

#include <vector>

#include "core/error.h"

namespace kivi {
namespace {

// A dense copy of heads.
struct HeadRows {
  std::vector<float> data;
  std::array<int64_t, 3> shape{};

  template <typename T>
  void copy(const TensorView<const T, 3>& x, int64_t first_head) {
    shape = {x.shape[0], x.shape[1] - first_head, x.shape[2]};
    data.resize(static_cast<size_t>(shape[0] * shape[1] * shape[2]));
    float* out = data.data();
    for (int64_t n = 0; n < shape[0]; ++n) {
      for (int64_t head = 0; head < shape[1]; ++head) {
        for (int64_t c = 0; c < shape[2]; ++c) *out++ = as_float(x(n, first_head + head, c));
      }
    }
  }
  TensorView<const float, 3> view() const { return {data.data(), shape}; }

 private:
  static float as_float(float x) { return x; }
  static float as_float(Half x) { return to_float(x); }
};

class CaptureBackend : public ForwardingBackend {
 public:
  CaptureBackend(Backend& inner, int64_t n_heads, const CaptureCallback& callback)
      : ForwardingBackend(inner), n_heads_(n_heads), callback_(&callback) {}

  void rope(const RopeArgs& args) override {
    keys_before_rope_.copy(args.x.as<const float, 3>(), n_heads_);
    ForwardingBackend::rope(args);
  }
  void attend(const AttendArgs& args) override {
    queries_.copy(args.q.as<const float, 3>(), 0);
    keys_.copy(args.new_keys.as<const Half, 3>(), 0);
    values_.copy(args.new_values.as<const Half, 3>(), 0);
    (*callback_)({.layer = layer_++,
                  .queries = queries_.view(),
                  .keys_before_rope = keys_before_rope_.view(),
                  .keys = keys_.view(),
                  .values = values_.view(),
                  .softmax_scale = args.softmax_scale,
                  .score_cap = args.score_cap,
                  .attention = args.cache.key_policy});
    ForwardingBackend::attend(args);
  }

 private:
  int64_t n_heads_;
  const CaptureCallback* callback_;
  int layer_ = 0;
  HeadRows queries_, keys_before_rope_, keys_, values_;
};

}  // namespace

void capture(Backend& backend, const ModelWeights& weights, std::span<const TokenId> tokens,
             const CaptureCallback& callback) {
  if (backend.activation_dtype() != DType::kF32) {
    fail(ErrorCode::kUnsupported, "device {}: its keys and values cannot be looked at; use the CPU",
         backend.info().device);
  }
  CaptureBackend front(backend, weights.config.n_heads, callback);
  Decoder decoder(front, weights);
  const auto n_tokens = std::ssize(tokens);
  KvCache cache(front, decoder.kv_shape(), parse_kv_config("f16"), {.max_tokens = n_tokens});
  const StepSequence entry{.id = cache.create(), .n_new = static_cast<int32_t>(n_tokens)};
  if (!cache.reserve({&entry, 1})) fail(ErrorCode::kInternal, "KV cache f16 is full");
  decoder.step(cache, {.tokens = tokens});
}

}  // namespace kivi
