// The attention of some queries of a layer, to be computed again with other keys and values.
#pragma once

#include <span>
#include <vector>

#include "study/capture.h"
#include "study/matrix.h"

namespace kivi {

// The rows of one head of a capture: [N, D].
Matrix head_rows(const TensorView<const float, 3>& x, int64_t head);

// Of the query heads of one KV head, at tokens that are spread evenly over the second half of the text.
class AttentionProbe {
 public:
  AttentionProbe(const LayerCapture& layer, int64_t kv_head, int64_t n_tokens);

  // softmax(q K^T) of every query over what it sees: [queries, N], 0 for what it does not. keys: [N, D].
  Matrix probabilities(const Matrix& keys) const;
  // probabilities * values: [queries, D].
  Matrix outputs(const Matrix& probabilities, const Matrix& values) const;

  // Part of what a query sees that gets less than a hundredth of its largest probability; mean over the queries.
  double sparsity(const Matrix& probabilities) const;
  // Probability of the first n tokens together; mean over the queries.
  double mass_of_first(const Matrix& probabilities, int64_t n) const;

 private:
  struct Query {
    const float* row;
    int64_t first;  // token that it sees
    int64_t end;
  };

  float softmax_scale_;
  float score_cap_;
  std::vector<Query> queries_;
};

}  // namespace kivi
