#include "reference/algorithm1.h"

#include <algorithm>
#include <cmath>

#include "format/group_params.h"

namespace kivi::reference {
namespace {

// What a reader sees of x in a group with this line.
float seen(float x, const format::GroupLine& line, int bits) {
  return format::dequantise(format::quantise(x, line.scale, line.zero, bits), line.scale, line.zero);
}

// Quantises `n` rows in place, each channel a group.
void quantise_channels(Row* rows, int n, int bits, format::ParamFormat params) {
  const size_t n_channels = rows[0].size();
  std::vector<format::GroupRange> ranges(n_channels);
  float largest_zero = 0;
  for (size_t c = 0; c < n_channels; ++c) {
    for (int t = 0; t < n; ++t) ranges[c].add(rows[t][c]);
    largest_zero = std::max(largest_zero, std::abs(format::key_group_params(ranges[c], bits).zero));
  }
  const float unit = to_float(format::zero_unit(largest_zero));
  for (size_t c = 0; c < n_channels; ++c) {
    format::GroupLine line = line_of(format::group_params(ranges[c], bits));
    if (params == format::ParamFormat::kByte) {
      const format::KeyGroupParams wanted = format::key_group_params(ranges[c], bits);
      line = {format::scale_of_byte(wanted.scale), format::zero_of_byte(format::zero_to_byte(wanted.zero, unit), unit)};
    }
    for (int t = 0; t < n; ++t) rows[t][c] = seen(rows[t][c], line, bits);
  }
}

// Quantises a group of a row in place.
void quantise_group(std::span<float> x, int bits, format::ParamFormat params) {
  format::GroupRange range;
  for (const float number : x) range.add(number);
  format::GroupLine line = line_of(format::group_params(range, bits));
  if (params == format::ParamFormat::kByte) {
    const uint8_t scale = format::value_scale(format::sum_of_squares(x), static_cast<int>(x.size()), bits);
    line = format::value_line(scale, bits);
  }
  for (float& number : x) number = seen(number, line, bits);
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
      quantise_channels(&keys_[policy.sinks + n_packed_keys_], config_.key_group, config_.key_bits, config_.params);
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
        quantise_group(std::span(row).subspan(c, config_.value_group), config_.value_bits, config_.params);
      }
      ++n_packed_values_;
    }
  }
}

}  // namespace kivi::reference
