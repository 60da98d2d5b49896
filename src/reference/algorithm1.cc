#include "reference/algorithm1.h"

#include <algorithm>
#include <cmath>

#include "format/quantise.h"

namespace kivi::reference {
namespace {

// Replaces the numbers that `at(i)` names, i in [0, n), by what a reader of their packed group sees.
template <typename At>
void quantise_in_place(int n, int bits, At at) {
  format::GroupRange range;
  for (int i = 0; i < n; ++i) range.add(at(i));
  const format::GroupParams params = format::group_params(range, bits);
  const float scale = to_float(params.scale);
  const float zero = to_float(params.zero);
  for (int i = 0; i < n; ++i) at(i) = format::dequantise(format::quantise(at(i), scale, zero, bits), scale, zero);
}

}  // namespace

Row attend_dense(const Row& query, std::span<const Row> keys, std::span<const Row> values, float scale,
                 float score_cap) {
  std::vector<double> weights(keys.size());
  double top = -INFINITY;
  for (size_t t = 0; t < keys.size(); ++t) {
    double score = 0;
    for (size_t c = 0; c < query.size(); ++c) score += double{query[c]} * double{keys[t][c]};
    weights[t] = score * double{scale};
    if (score_cap > 0) weights[t] = double{score_cap} * std::tanh(weights[t] / double{score_cap});
    top = std::max(top, weights[t]);
  }
  double total = 0;
  for (double& weight : weights) total += weight = std::exp(weight - top);
  Row out(values[0].size());
  for (size_t c = 0; c < out.size(); ++c) {
    double sum = 0;
    for (size_t t = 0; t < values.size(); ++t) sum += weights[t] * double{values[t][c]};
    out[c] = static_cast<float>(sum / total);
  }
  return out;
}

std::vector<Row> Algorithm1::step(std::span<const Row> queries, std::span<const Row> keys, std::span<const Row> values,
                                  float scale) {
  std::vector<Row> out;
  for (size_t i = 0; i < queries.size(); ++i) {
    keys_.push_back(keys[i]);
    values_.push_back(values[i]);
    out.push_back(attend_dense(queries[i], keys_, values_, scale));
  }
  flush_keys();
  flush_values();
  return out;
}

void Algorithm1::flush_keys() {
  const format::WindowPolicy& policy = config_.key_policy;
  const auto n_tokens = static_cast<int64_t>(keys_.size());
  while (n_tokens - policy.sinks - n_packed_keys_ >= int64_t{policy.keep} + policy.flush) {
    for (int group = 0; group < policy.flush / config_.key_group; ++group) {
      Row* rows = &keys_[policy.sinks + n_packed_keys_];
      for (size_t c = 0; c < rows[0].size(); ++c) {
        quantise_in_place(config_.key_group, config_.key_bits, [&](int t) -> float& { return rows[t][c]; });
      }
      n_packed_keys_ += config_.key_group;
    }
  }
}

void Algorithm1::flush_values() {
  const format::WindowPolicy& policy = config_.value_policy;
  const auto n_tokens = static_cast<int64_t>(values_.size());
  while (n_tokens - policy.sinks - n_packed_values_ >= int64_t{policy.keep} + policy.flush) {
    for (int token = 0; token < policy.flush; ++token) {
      Row& row = values_[policy.sinks + n_packed_values_];
      for (size_t c = 0; c < row.size(); c += config_.value_group) {
        quantise_in_place(config_.value_group, config_.value_bits, [&](int i) -> float& { return row[c + i]; });
      }
      ++n_packed_values_;
    }
  }
}

}  // namespace kivi::reference
