// What backends check about the shapes of arguments. All throw Error{kInternal}: callers compute shapes, people do not.
#pragma once

#include <string_view>

#include "core/error.h"
#include "core/tensor_view.h"

namespace kivi {

inline void require_extent(std::string_view what, int64_t is, int64_t wanted) {
  if (is != wanted) fail(ErrorCode::kInternal, "{} is {}, wanted {}", what, is, wanted);
}

inline void require_same_shape(std::string_view what, const AnyView& a, const AnyView& b) {
  require_extent(what, a.rank, b.rank);
  for (int i = 0; i < a.rank; ++i) require_extent(what, a.shape[i], b.shape[i]);
}

inline void require_hadamard_block(int block, int64_t head_dim) {
  if (block < 4 || block > 128 || (block & (block - 1)) != 0 || head_dim % block != 0) {
    fail(ErrorCode::kInternal, "hadamard: blocks of {}, wanted a power of two, 4 to 128, that divides head_dim {}",
         block, head_dim);
  }
}

}  // namespace kivi
