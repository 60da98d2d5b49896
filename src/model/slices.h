// Parts of matrices, as views.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor_view.h"

namespace kivi {

inline AnyView offset(AnyView x, int64_t n_elements) {
  x.data = static_cast<std::byte*>(x.data) + n_elements * static_cast<int64_t>(size_bytes(x.dtype));
  return x;
}

// n rows of a matrix, from row `begin` on.
inline AnyView row_range(AnyView x, int64_t begin, int64_t n) {
  x = offset(x, begin * x.stride[0]);
  x.shape[0] = n;
  return x;
}

// n columns of a matrix, from column `begin` on.
inline AnyView column_range(AnyView x, int64_t begin, int64_t n) {
  x = offset(x, begin);
  x.shape[1] = n;
  return x;
}

// The columns of a matrix [N, heads * D] as [N, heads, D].
inline AnyView as_heads(AnyView x, int64_t head_dim) {
  x.rank = 3;
  x.shape = {x.shape[0], x.shape[1] / head_dim, head_dim};
  x.stride = {x.stride[0], head_dim, 1};
  return x;
}

}  // namespace kivi
