#include "study/layer_study.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "core/parallel.h"
#include "format/packed_word.h"
#include "study/attention_probe.h"
#include "study/group_axis.h"

namespace kivi {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<int64_t, 4> kFirstTokens = {1, 2, 4, 16};

struct Side {
  const char* name;
  const TensorView<const float, 3> LayerCapture::*rows;
};
constexpr std::array<Side, 3> kSides = {{{"key_before_rope", &LayerCapture::keys_before_rope},
                                         {"key", &LayerCapture::keys},
                                         {"value", &LayerCapture::values}}};

double norm_of(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double{x[i]} * double{x[i]};
  return std::sqrt(sum);
}

double median(std::vector<double> x) {
  const auto middle = x.begin() + std::ssize(x) / 2;
  std::ranges::nth_element(x, middle);
  return *middle;
}

Json study_side(const TensorView<const float, 3>& x) {
  const auto [n_tokens, n_heads, head_dim] = x.shape;
  Json channels = Json::array();
  double first_token = 0;
  for (int64_t head = 0; head < n_heads; ++head) {
    const Matrix rows = head_rows(x, head);
    std::vector<double> magnitude(static_cast<size_t>(head_dim));
    std::vector<double> norms;
    for (int64_t t = 0; t < n_tokens; ++t) {
      for (int64_t c = 0; c < head_dim; ++c) magnitude[c] += std::abs(double{rows.row(t)[c]});
      norms.push_back(norm_of(rows.row(t), head_dim));
    }
    for (const double sum : magnitude) channels.push_back(rounded(sum / static_cast<double>(n_tokens)));
    first_token += norms.front() / std::max(median(norms), 1e-30) / static_cast<double>(n_heads);
  }
  return {{"channels", std::move(channels)}, {"first_token", first_token}};
}

// Relative errors of a head under one setting.
struct Errors {
  double reconstruction = 0;
  double score = 0;
  double output = 0;
};

// One KV head: its rows, and the attention that it has in 16 bits.
struct HeadStudy {
  Matrix keys;
  Matrix values;
  AttentionProbe probe;
  Matrix probabilities;
  Matrix outputs;

  HeadStudy(const LayerCapture& layer, int64_t head, int64_t n_queries)
      : keys(head_rows(layer.keys, head)),
        values(head_rows(layer.values, head)),
        probe(layer, head, n_queries),
        probabilities(probe.probabilities(keys)),
        outputs(probe.outputs(probabilities, values)) {}

  Errors of_keys(const Grouping& grouping) const {
    Matrix quantised = keys;
    quantise_in_place(quantised.view(), grouping);
    const Matrix p = probe.probabilities(quantised);
    return {relative_error(keys, quantised), relative_error(probabilities, p),
            relative_error(outputs, probe.outputs(p, values))};
  }
  Errors of_values(const Grouping& grouping) const {
    Matrix quantised = values;
    quantise_in_place(quantised.view(), grouping);
    return {relative_error(values, quantised), 0, relative_error(outputs, probe.outputs(probabilities, quantised))};
  }
};

struct Setting {
  bool is_key;
  Grouping grouping;
};

std::vector<Setting> settings(int group_size, int64_t head_dim) {
  std::vector<Setting> all;
  for (const bool is_key : {true, false}) {
    for (const GroupAxis axis : {GroupAxis::kToken, GroupAxis::kChannel}) {
      // As the cache does where a head is narrower than a group, or no multiple of it.
      const int size = axis == GroupAxis::kToken ? std::gcd(group_size, static_cast<int>(head_dim)) : group_size;
      for (const int bits : studied_bits()) all.push_back({is_key, {axis, bits, size}});
    }
  }
  return all;
}

Json study_errors(const std::vector<HeadStudy>& heads, const LayerStudyOptions& options) {
  const std::vector<Setting> all = settings(options.group_size, heads.front().keys.cols);
  const auto n_heads = std::ssize(heads);
  std::vector<Errors> errors(all.size() * heads.size());
  parallel_for(options.n_threads, std::ssize(errors), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Setting& setting = all[i / n_heads];
      const HeadStudy& head = heads[i % n_heads];
      errors[i] = setting.is_key ? head.of_keys(setting.grouping) : head.of_values(setting.grouping);
    }
  });
  Json list = Json::array();
  for (size_t i = 0; i < all.size(); ++i) {
    Errors mean;
    for (int64_t head = 0; head < n_heads; ++head) {
      const Errors& e = errors[i * heads.size() + head];
      mean.reconstruction += e.reconstruction / static_cast<double>(n_heads);
      mean.score += e.score / static_cast<double>(n_heads);
      mean.output += e.output / static_cast<double>(n_heads);
    }
    list.push_back({{"side", all[i].is_key ? "key" : "value"},
                    {"axis", name(all[i].grouping.axis)},
                    {"bits", all[i].grouping.bits},
                    {"reconstruction", mean.reconstruction},
                    {"score", mean.score},
                    {"output", mean.output}});
  }
  return list;
}

Json study_attention(const std::vector<HeadStudy>& heads) {
  const auto n_heads = static_cast<double>(heads.size());
  double sparsity = 0;
  for (const HeadStudy& head : heads) sparsity += head.probe.sparsity(head.probabilities) / n_heads;
  Json masses = Json::array();
  for (const int64_t n : kFirstTokens) {
    double mass = 0;
    for (const HeadStudy& head : heads) mass += head.probe.mass_of_first(head.probabilities, n) / n_heads;
    masses.push_back({n, mass});
  }
  return {{"sparsity", sparsity}, {"mass_of_first", std::move(masses)}};
}

}  // namespace

std::vector<int> studied_bits() {
  std::vector<int> bits;
  for (const int b : {2, 3, 4}) {
    if (format::is_packed_width(b)) bits.push_back(b);
  }
  return bits;
}

double rounded(double x) {
  return std::strtod(fmt::format("{:.4g}", x).c_str(), nullptr);
}

Json study_layer(const LayerCapture& layer, const LayerStudyOptions& options) {
  std::vector<HeadStudy> heads;
  for (int64_t head = 0; head < layer.n_kv_heads(); ++head) heads.emplace_back(layer, head, options.n_queries);
  Json sides;
  for (const Side& side : kSides) sides[side.name] = study_side(layer.*side.rows);
  return {{"layer", layer.layer},
          {"sides", std::move(sides)},
          {"attention", study_attention(heads)},
          {"errors", study_errors(heads, options)}};
}

Json magnitude_maps(const LayerCapture& layer, int64_t head, int64_t n_bins) {
  Json maps = Json::array();
  const int64_t per_bin = (layer.n_tokens() + n_bins - 1) / n_bins;
  for (const Side& side : kSides) {
    const Matrix rows = head_rows(layer.*side.rows, head);
    Json bins = Json::array();
    for (int64_t begin = 0; begin < rows.rows; begin += per_bin) {
      std::vector<double> largest(static_cast<size_t>(rows.cols));
      for (int64_t t = begin; t < std::min(begin + per_bin, rows.rows); ++t) {
        for (int64_t c = 0; c < rows.cols; ++c) largest[c] = std::max(largest[c], std::abs(double{rows.row(t)[c]}));
      }
      std::ranges::transform(largest, largest.begin(), rounded);
      bins.push_back(std::move(largest));
    }
    maps.push_back({{"layer", layer.layer},
                    {"head", head},
                    {"side", side.name},
                    {"tokens_per_bin", per_bin},
                    {"bins", std::move(bins)}});
  }
  return maps;
}

}  // namespace kivi
