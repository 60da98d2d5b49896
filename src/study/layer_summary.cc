#include "study/layer_summary.h"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <set>
#include <vector>

#include "study/layer_study.h"

namespace kivi {
namespace {

using Json = nlohmann::ordered_json;
using Channels = std::vector<double>;

constexpr size_t kNamedOutliers = 4;

struct Outlier {
  int64_t head = 0;
  int64_t channel = 0;
  double ratio = 0;
};

template <typename Measure>
double mean_of(std::span<const Json> chunks, Measure measure) {
  double sum = 0;
  for (const Json& chunk : chunks) sum += measure(chunk);
  return sum / static_cast<double>(chunks.size());
}

Channels ratios_to_median(std::span<const double> head) {
  Channels sorted(head.begin(), head.end());
  std::ranges::sort(sorted);
  const double median = std::max(sorted[sorted.size() / 2], 1e-30);
  Channels ratios;
  for (const double x : head) ratios.push_back(x / median);
  return ratios;
}

std::set<int64_t> largest(std::span<const double> head, int64_t n) {
  std::vector<int64_t> order(head.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::partial_sort(order, order.begin() + n, std::greater{}, [&](int64_t i) { return head[i]; });
  return {order.begin(), order.begin() + n};
}

// Of the same head in all chunks: the mean part of the largest channels of one that are among those of another.
double overlap(const std::vector<Channels>& chunks, int64_t begin, int64_t head_dim) {
  const int64_t n = std::max<int64_t>(1, head_dim / 16);
  std::vector<std::set<int64_t>> sets;
  for (const Channels& chunk : chunks) sets.push_back(largest(std::span(chunk).subspan(begin, head_dim), n));
  double sum = 0;
  double n_pairs = 0;
  for (size_t i = 0; i < sets.size(); ++i) {
    for (size_t j = 0; j < i; ++j, ++n_pairs) {
      const auto n_common = std::ranges::count_if(sets[i], [&](int64_t c) { return sets[j].contains(c); });
      sum += static_cast<double>(n_common) / static_cast<double>(n);
    }
  }
  return sum / n_pairs;
}

Json summarise_side(const std::vector<Channels>& chunks, int64_t head_dim) {
  Channels mean(chunks.front().size());
  for (const Channels& chunk : chunks) {
    for (size_t c = 0; c < mean.size(); ++c) mean[c] += chunk[c] / static_cast<double>(chunks.size());
  }
  const auto n_heads = std::ssize(mean) / head_dim;
  std::vector<Outlier> outliers;
  double sum = 0;
  double stability = 0;
  for (int64_t head = 0; head < n_heads; ++head) {
    const Channels ratios = ratios_to_median(std::span(mean).subspan(head * head_dim, head_dim));
    for (int64_t c = 0; c < head_dim; ++c) outliers.push_back({head, c, ratios[c]});
    sum += std::ranges::max(ratios);
    if (chunks.size() > 1) stability += overlap(chunks, head * head_dim, head_dim);
  }
  std::ranges::stable_sort(outliers, std::greater{}, &Outlier::ratio);
  outliers.resize(std::min(kNamedOutliers, outliers.size()));
  Json named = Json::array();
  for (const Outlier& o : outliers) {
    named.push_back({{"head", o.head}, {"channel", o.channel}, {"ratio", rounded(o.ratio)}});
  }
  return {{"outlier_ratio", sum / static_cast<double>(n_heads)},
          {"largest_outlier_ratio", outliers.front().ratio},
          {"outliers", std::move(named)},
          {"stability", chunks.size() > 1 ? Json(stability / static_cast<double>(n_heads)) : Json(nullptr)}};
}

Json summarise_layer(std::span<const Json> chunks, size_t layer, int64_t head_dim) {
  const Json& first = chunks.front()["layers"][layer];
  Json sides;
  for (const auto& [side, of_first] : first["sides"].items()) {
    std::vector<Channels> channels;
    for (const Json& chunk : chunks) channels.push_back(chunk["layers"][layer]["sides"][side]["channels"]);
    sides[side] = summarise_side(channels, head_dim);
    sides[side]["first_token"] =
        mean_of(chunks, [&](const Json& c) { return c["layers"][layer]["sides"][side]["first_token"].get<double>(); });
  }
  const auto attention = [layer](const Json& chunk) -> const Json& { return chunk["layers"][layer]["attention"]; };
  Json masses = first["attention"]["mass_of_first"];
  for (size_t i = 0; i < masses.size(); ++i) {
    masses[i][1] = mean_of(chunks, [&](const Json& c) { return attention(c)["mass_of_first"][i][1].get<double>(); });
  }
  return {{"layer", layer},
          {"attention",
           {{"sparsity", mean_of(chunks, [&](const Json& c) { return attention(c)["sparsity"].get<double>(); })},
            {"mass_of_first", std::move(masses)}}},
          {"sides", std::move(sides)}};
}

// The paper's Table 2, as printed: Llama-2-13B, 2 bits.
Json paper_errors() {
  return {{"model", "Llama-2-13B"},
          {"rows",
           {{{"side", "key"}, {"axis", "token"}, {"bits", 2}, {"reconstruction", 13.67}, {"score", 47.0}},
            {{"side", "key"}, {"axis", "channel"}, {"bits", 2}, {"reconstruction", 4.55}, {"score", 9.6}},
            {{"side", "value"}, {"axis", "token"}, {"bits", 2}, {"reconstruction", 4.57}, {"output", 3.55}},
            {{"side", "value"}, {"axis", "channel"}, {"bits", 2}, {"reconstruction", 3.73}, {"output", 49.89}}}},
          {"sparsity", 84.3}};
}

}  // namespace

Json summarise_layers(std::span<const Json> chunks, int64_t head_dim) {
  Json layers = Json::array();
  for (size_t i = 0; i < chunks.front()["layers"].size(); ++i) {
    layers.push_back(summarise_layer(chunks, i, head_dim));
  }
  return layers;
}

Json summarise_errors(std::span<const Json> chunks) {
  constexpr std::array kMeasures = {"reconstruction", "score", "output"};
  const size_t n_layers = chunks.front()["layers"].size();
  Json rows = Json::array();
  for (size_t i = 0; i < chunks.front()["layers"][0]["errors"].size(); ++i) {
    Json row = chunks.front()["layers"][0]["errors"][i];
    for (const char* measure : kMeasures) row[measure] = 0.0;
    for (size_t layer = 0; layer < n_layers; ++layer) {
      Json of_layer = Json::array();
      for (const char* measure : kMeasures) {
        const double mean =
            mean_of(chunks, [&](const Json& c) { return c["layers"][layer]["errors"][i][measure].get<double>(); });
        row[measure] = row[measure].get<double>() + mean / static_cast<double>(n_layers);
        of_layer.push_back(rounded(mean));
      }
      row["layers"].push_back(std::move(of_layer));
    }
    rows.push_back(std::move(row));
  }
  double sparsity = 0;
  for (size_t layer = 0; layer < n_layers; ++layer) {
    sparsity +=
        mean_of(chunks, [&](const Json& c) { return c["layers"][layer]["attention"]["sparsity"].get<double>(); }) /
        static_cast<double>(n_layers);
  }
  return {{"rows", std::move(rows)}, {"sparsity", sparsity}, {"paper", paper_errors()}};
}

}  // namespace kivi
