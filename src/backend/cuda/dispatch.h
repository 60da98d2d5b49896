// From a DType, known at run time, to the type of the elements.
#pragma once

#include <string_view>

#include "core/dtype.h"
#include "core/error.h"

namespace kivi::cuda {

// Calls body(T{}) for the element type of dtype. Throws Error{kUnsupported} naming the operation for another one.
template <typename Body>
auto with_16_bits(DType dtype, std::string_view operation, const Body& body) {
  if (dtype == DType::kF16) return body(Half{});
  if (dtype == DType::kBF16) return body(BFloat16{});
  fail(ErrorCode::kUnsupported, "{}: no kernel for {}", operation, name(dtype));
}
template <typename Body>
auto with_floats(DType dtype, std::string_view operation, const Body& body) {
  if (dtype == DType::kF32) return body(float{});
  return with_16_bits(dtype, operation, body);
}

}  // namespace kivi::cuda
