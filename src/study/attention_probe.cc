#include "study/attention_probe.h"

#include <algorithm>
#include <cmath>

namespace kivi {
namespace {

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

Matrix head_rows(const TensorView<const float, 3>& x, int64_t head) {
  Matrix rows(x.shape[0], x.shape[2]);
  for (int64_t n = 0; n < x.shape[0]; ++n) std::copy_n(&x(n, head, 0), x.shape[2], rows.row(n));
  return rows;
}

AttentionProbe::AttentionProbe(const LayerCapture& layer, int64_t kv_head, int64_t n_tokens)
    : softmax_scale_(layer.softmax_scale), score_cap_(layer.score_cap) {
  const int64_t n = layer.n_tokens();
  const int64_t half = n / 2;
  n_tokens = std::min(n_tokens, n - half);
  for (int64_t i = 1; i <= n_tokens; ++i) {
    const int64_t token = half + i * (n - half) / n_tokens - 1;
    for (int64_t j = 0; j < layer.group_heads(); ++j) {
      const int64_t head = kv_head * layer.group_heads() + j;
      queries_.push_back({&layer.queries(token, head, 0), layer.attention.first_seen(token), token + 1});
    }
  }
}

Matrix AttentionProbe::probabilities(const Matrix& keys) const {
  Matrix out(std::ssize(queries_), keys.rows);
  for (int64_t i = 0; i < out.rows; ++i) {
    const Query& query = queries_[i];
    float* p = out.row(i);
    float highest = -INFINITY;
    for (int64_t t = query.first; t < query.end; ++t) {
      p[t] = softmax_scale_ * dot(query.row, keys.row(t), keys.cols);
      if (score_cap_ > 0) p[t] = score_cap_ * std::tanh(p[t] / score_cap_);
      highest = std::max(highest, p[t]);
    }
    double sum = 0;
    for (int64_t t = query.first; t < query.end; ++t) sum += p[t] = std::exp(p[t] - highest);
    for (int64_t t = query.first; t < query.end; ++t) p[t] = static_cast<float>(p[t] / sum);
  }
  return out;
}

Matrix AttentionProbe::outputs(const Matrix& probabilities, const Matrix& values) const {
  Matrix out(probabilities.rows, values.cols);
  for (int64_t i = 0; i < out.rows; ++i) {
    float* sum = out.row(i);
    for (int64_t t = queries_[i].first; t < queries_[i].end; ++t) {
      const float p = probabilities.row(i)[t];
      const float* v = values.row(t);
#pragma omp simd
      for (int64_t c = 0; c < values.cols; ++c) sum[c] += p * v[c];
    }
  }
  return out;
}

double AttentionProbe::sparsity(const Matrix& probabilities) const {
  double sum = 0;
  for (int64_t i = 0; i < probabilities.rows; ++i) {
    const std::span seen(probabilities.row(i) + queries_[i].first, probabilities.row(i) + queries_[i].end);
    const float threshold = 0.01F * *std::ranges::max_element(seen);
    const auto n_small = std::ranges::count_if(seen, [threshold](float p) { return p < threshold; });
    sum += static_cast<double>(n_small) / static_cast<double>(seen.size());
  }
  return sum / static_cast<double>(probabilities.rows);
}

double AttentionProbe::mass_of_first(const Matrix& probabilities, int64_t n) const {
  double sum = 0;
  for (int64_t i = 0; i < probabilities.rows; ++i) {
    for (int64_t t = 0; t < std::min(n, probabilities.cols); ++t) sum += probabilities.row(i)[t];
  }
  return sum / static_cast<double>(probabilities.rows);
}

}  // namespace kivi
