// A dense matrix of floats that owns its memory, and how far two of them are apart.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/tensor_view.h"

namespace kivi {

struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> data;

  Matrix(int64_t rows_, int64_t cols_) : rows(rows_), cols(cols_), data(static_cast<size_t>(rows_ * cols_)) {}

  float* row(int64_t i) { return data.data() + i * cols; }
  const float* row(int64_t i) const { return data.data() + i * cols; }
  TensorView<float, 2> view() { return {data.data(), {rows, cols}}; }
};

// ||x - y|| / ||x||, Frobenius; 0 where both are 0.
inline double relative_error(const Matrix& x, const Matrix& y) {
  double error = 0;
  double size = 0;
  for (size_t i = 0; i < x.data.size(); ++i) {
    const double difference = double{x.data[i]} - double{y.data[i]};
    error += difference * difference;
    size += double{x.data[i]} * double{x.data[i]};
  }
  return error == 0 ? 0 : std::sqrt(error / size);
}

}  // namespace kivi
