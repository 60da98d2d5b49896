#include "study/fake_cache.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace kivi {

FakeCacheConfig with_axes(const KvConfig& config, const KvShape& shape, GroupAxis keys, GroupAxis values) {
  const auto side = [&](GroupAxis axis, int bits) {
    if (axis == GroupAxis::kChannel) return FakeSide{{axis, bits, config.group_size}, config.key_policy()};
    return FakeSide{{axis, bits, std::gcd(config.group_size, shape.head_dim)}, config.value_policy()};
  };
  return {.name = config.name, .keys = side(keys, config.key_bits), .values = side(values, config.value_bits)};
}

FakeCacheBackend::FakeCacheBackend(Backend& inner, FakeCacheConfig config)
    : ForwardingBackend(inner), config_(std::move(config)) {
  if (inner.activation_dtype() != DType::kF32) {
    fail(ErrorCode::kUnsupported, "device {}: its cache cannot be overwritten; use the CPU", inner.info().device);
  }
}

void FakeCacheBackend::store_kv(const StoreKvArgs& args) {
  ForwardingBackend::store_kv(args);
  for (int64_t b = 0; b + 1 < args.seq_begin.shape[0]; ++b) {
    round_side(config_.keys, args, &format::KvBatchView::key_row, b);
    round_side(config_.values, args, &format::KvBatchView::value_row, b);
  }
}

// The tokens that leave the window with this step.
void FakeCacheBackend::round_side(const FakeSide& side, const StoreKvArgs& args, RowOf row_of, int64_t sequence) {
  const auto seq_begin = args.seq_begin.as<const int32_t, 1>();
  const format::KvBatchView& cache = args.cache;
  const int64_t n_before = cache.n_past(sequence);
  const int64_t n_after = n_before + seq_begin(sequence + 1) - seq_begin(sequence);
  const int64_t begin =
      std::max(side.policy.sinks + side.policy.n_packed(n_before), cache.key_policy.first_stored(n_after));
  const int64_t end = side.policy.sinks + side.policy.n_packed(n_after);
  if (begin >= end) return;
  const int64_t head_dim = cache.layout.head_dim;
  rows_.resize(static_cast<size_t>((end - begin) * head_dim));
  const TensorView<float, 2> rows(rows_.data(), {end - begin, head_dim});
  for (int head = 0; head < cache.layout.n_kv_heads; ++head) {
    const auto stored = [&](int64_t i) { return reinterpret_cast<Half*>((cache.*row_of)(sequence, begin + i, head)); };
    for (int64_t i = 0; i < rows.shape[0]; ++i)
      std::transform(stored(i), stored(i) + head_dim, &rows(i, 0), [](Half h) { return to_float(h); });
    quantise_in_place(rows, side.grouping);
    for (int64_t i = 0; i < rows.shape[0]; ++i) std::transform(&rows(i, 0), &rows(i, 0) + head_dim, stored(i), to_half);
  }
}

}  // namespace kivi
