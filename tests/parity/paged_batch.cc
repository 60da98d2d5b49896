#include "paged_batch.h"

#include <algorithm>
#include <numeric>

namespace kivi::parity {
namespace {

constexpr std::byte kPoison{0xFF};  // the largest code at every place; NaN as binary16, bfloat16 and float

std::unique_ptr<Buffer> poisoned(Backend& backend, int64_t size_bytes) {
  auto buffer = backend.allocate(static_cast<size_t>(size_bytes));
  const std::vector<std::byte> host(buffer->size_bytes(), kPoison);
  backend.copy_to_device(buffer->data(), host.data(), host.size());
  return buffer;
}

}  // namespace

PagedBatch::PagedBatch(Backend& backend, const CacheCase& which, DType window_dtype, format::CodeOrder order,
                       int n_sequences, int64_t max_tokens)
    : backend_(&backend) {
  const KvConfig config = parse_kv_config(which.kv);
  const KvShape shape{.n_layers = 1, .n_kv_heads = which.n_kv_heads, .head_dim = which.head_dim};
  config.validate(shape);
  view_.layout = config.layout(shape);
  view_.layout.order = order;
  view_.key_policy = which.key_policy.value_or(config.key_policy());
  view_.value_policy = which.value_policy.value_or(config.value_policy());
  view_.key_policy.sliding_window = view_.value_policy.sliding_window = which.sliding_window;
  view_.window_dtype = window_dtype;
  view_.packed_stride = view_.layout.page_bytes() + 256;
  view_.window_stride = view_.window_page_bytes() + 256;

  std::mt19937 random(n_sequences);
  const int64_t pages = (max_tokens + format::kPageTokens - 1) / format::kPageTokens;
  const int32_t key_slots = view_.key_policy.n_slots(max_tokens);
  const int32_t value_slots = view_.value_policy.n_slots(max_tokens);
  packed_table_ = random_table(n_sequences, pages, 0, random);
  key_table_ = random_table(n_sequences, key_slots, 0, random);
  value_table_ = random_table(n_sequences, value_slots, n_sequences * key_slots, random);
  n_past_ = Tensor(backend, DType::kI32, {n_sequences});
  packed_ = poisoned(backend, n_sequences * pages * view_.packed_stride);
  window_ = poisoned(backend, int64_t{n_sequences} * (key_slots + value_slots) * view_.window_stride);

  view_.packed_pages = packed_->data();
  view_.window_pages = window_->data();
  view_.packed_table = packed_table_.as<const int32_t, 2>();
  view_.key_window_table = key_table_.as<const int32_t, 2>();
  view_.value_window_table = value_table_.as<const int32_t, 2>();
  view_.n_past = n_past_.as<const int32_t, 1>();
}

Tensor PagedBatch::random_table(int64_t rows, int64_t columns, int32_t first, std::mt19937& random) {
  std::vector<int32_t> pages(static_cast<size_t>(rows * columns));
  std::iota(pages.begin(), pages.end(), first);
  std::shuffle(pages.begin(), pages.end(), random);
  return upload(*backend_, pages, {rows, columns});
}

format::KvBatchView PagedBatch::view(const std::vector<int32_t>& n_past) {
  backend_->copy_to_device(n_past_.view().data, n_past.data(), n_past.size() * sizeof(int32_t));
  return view_;
}

std::vector<std::byte> PagedBatch::bytes() const {
  std::vector<std::byte> all(packed_->size_bytes() + window_->size_bytes());
  backend_->copy_to_host(all.data(), packed_->data(), packed_->size_bytes());
  backend_->copy_to_host(all.data() + packed_->size_bytes(), window_->data(), window_->size_bytes());
  return all;
}

}  // namespace kivi::parity
