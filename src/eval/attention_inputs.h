// Random numbers that attention is timed on: nearly normal, keys with a few loud channels as models have them.
#pragma once

#include <cstdint>
#include <random>
#include <utility>

#include "backend/backend.h"
#include "backend/tensor.h"
#include "eval/attention_bench.h"

namespace kivi {

class AttentionInputs {
 public:
  static constexpr int64_t kMostRows = 2048;  // of a step

  AttentionInputs(Backend& backend, const AttentionShape& shape);

  const AttentionShape& shape() const { return shape_; }
  // Keys and values of n rows, [n, K, D] each, from row `first` of a pool on: not every token has its own.
  std::pair<AnyView, AnyView> keys_and_values(int64_t first, int64_t n) const;
  int64_t random_row(std::mt19937& random, int64_t n) const { return random() % (n_pool_ - n + 1); }
  AnyView q() const;  // [B, H, D]
  AnyView out() const;

  // Throws Error{kInternal} if what attention wrote last cannot be right.
  void check_output() const;

 private:
  Backend& backend_;
  AttentionShape shape_;
  int64_t n_pool_;
  Tensor pool_;  // [rows, keys of all heads | values of all heads]
  Tensor q_;
  Tensor out_;
};

}  // namespace kivi
