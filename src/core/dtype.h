// Element types of tensors that are computed with. Block-quantised weight formats are in weights/format.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/half.h"

namespace kivi {

enum class DType : uint8_t { kF32, kF16, kBF16, kI32 };

KIVI_HD constexpr size_t size_bytes(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kI32 ? 4 : 2;
}

constexpr std::string_view name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI32:
      return "i32";
  }
  return "?";
}

template <typename T>
inline constexpr DType kDTypeOf = [] { static_assert(sizeof(T) == 0, "no DType for this type"); }();
template <>
inline constexpr DType kDTypeOf<float> = DType::kF32;
template <>
inline constexpr DType kDTypeOf<Half> = DType::kF16;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::kBF16;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kI32;

}  // namespace kivi
