// KIVI's Algorithm 1 for one KV head, as the paper lists it: plain rows, nothing paged, nothing packed. Slow and
// obviously right: what the paged cache and every backend are compared with.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "format/window_policy.h"

namespace kivi::reference {

using Row = std::vector<float>;  // head_dim numbers

struct Algorithm1Config {
  int key_bits = 2;      // 0: keys stay as they are
  int value_bits = 2;    // 0: values stay as they are
  int key_group = 32;    // tokens
  int value_group = 32;  // channels
  format::WindowPolicy key_policy;
  format::WindowPolicy value_policy;
  format::ParamFormat params = format::ParamFormat::kHalf;  // kByte: rows of values come rotated
};

class Algorithm1 {
 public:
  explicit Algorithm1(const Algorithm1Config& config) : config_(config) {}

  // Attends with each query to all stored rows and, causally, to the new rows, then stores the new rows. All new rows
  // at once is the paper's prefill, one at a time its decoding: attend first, then flush.
  std::vector<Row> step(std::span<const Row> queries, std::span<const Row> keys, std::span<const Row> values,
                        float scale);

  // Stored rows as a query sees them, oldest first: quantised ones dequantised.
  const std::vector<Row>& keys() const { return keys_; }
  const std::vector<Row>& values() const { return values_; }
  int64_t n_packed_keys() const { return n_packed_keys_; }
  int64_t n_packed_values() const { return n_packed_values_; }

 private:
  void flush_keys();
  void flush_values();

  Algorithm1Config config_;
  std::vector<Row> keys_;
  std::vector<Row> values_;
  int64_t n_packed_keys_ = 0;  // after the sinks
  int64_t n_packed_values_ = 0;
};

// softmax(q K^T * scale) V over the given rows, in double. score_cap above 0: a scaled score s becomes score_cap *
// tanh(s / score_cap).
Row attend_dense(const Row& query, std::span<const Row> keys, std::span<const Row> values, float scale,
                 float score_cap = 0.0F);

}  // namespace kivi::reference
