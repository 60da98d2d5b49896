// A cache of a batch of sequences on one backend, laid out for tests: pages in a random order and a stride longer than
// a page, everything that is not written poisoned. Two of the same seed and order on two backends hold the same bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "backend/tensor.h"
#include "cache/kv_config.h"

namespace kivi::parity {

// What is cached, and by what kind of model.
struct CacheCase {
  const char* kv;  // as parse_kv_config takes it
  int head_dim;
  int n_kv_heads;
  int heads_per_kv;
  std::optional<format::WindowPolicy> key_policy = {};  // other than that of `kv`
  std::optional<format::WindowPolicy> value_policy = {};
  int sliding_window = 0;
  float score_cap = 0.0F;

  int n_heads() const { return n_kv_heads * heads_per_kv; }
};

class PagedBatch {
 public:
  PagedBatch(Backend& backend, const CacheCase& which, DType window_dtype, format::CodeOrder order, int n_sequences,
             int64_t max_tokens);

  // The cache with sequences of these lengths.
  format::KvBatchView view(const std::vector<int32_t>& n_past);
  // All bytes of all pages, and what is between them.
  std::vector<std::byte> bytes() const;

 private:
  // A table [rows, columns] of pages, each named once, in a random order from `first` on.
  Tensor random_table(int64_t rows, int64_t columns, int32_t first, std::mt19937& random);

  Backend* backend_;
  format::KvBatchView view_;
  std::unique_ptr<Buffer> packed_;
  std::unique_ptr<Buffer> window_;
  Tensor packed_table_;
  Tensor key_table_;
  Tensor value_table_;
  Tensor n_past_;
};

// Copies to a backend. T: Half, BFloat16, float or int32_t.
template <typename T>
Tensor upload(Backend& backend, const std::vector<T>& host, std::initializer_list<int64_t> shape) {
  Tensor tensor(backend, kDTypeOf<T>, shape);
  backend.copy_to_device(tensor.view().data, host.data(), host.size() * sizeof(T));
  return tensor;
}

// 16-bit numbers of either kind as bits.
inline uint16_t to_bits(float x, DType dtype) {
  return dtype == DType::kF16 ? to_half(x).bits : to_bfloat16(x).bits;
}
inline float from_bits(uint16_t bits, DType dtype) {
  return dtype == DType::kF16 ? to_float(Half{bits}) : to_float(BFloat16{bits});
}

}  // namespace kivi::parity
