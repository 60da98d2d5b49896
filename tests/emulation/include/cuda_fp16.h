// Stands for CUDA's header where kernels are emulated: the conversions that the kernels use.
#pragma once

#include <cstdint>

#include "core/half.h"

struct __half {
  kivi::Half number;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline __half __ushort_as_half(uint16_t bits) {
  return {{bits}};
}
inline uint16_t __half_as_ushort(__half x) {
  return x.number.bits;
}
inline float __half2float(__half x) {
  return kivi::to_float(x.number);
}
inline __half __float2half_rn(float x) {
  return {kivi::to_half(x)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
