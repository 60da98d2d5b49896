// Stands for CUDA's header where kernels are emulated: the conversions that the kernels use.
#pragma once

#include <cstdint>

#include "core/half.h"

struct __nv_bfloat16 {
  kivi::BFloat16 number;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
  return {{bits}};
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) {
  return x.number.bits;
}
inline float __bfloat162float(__nv_bfloat16 x) {
  return kivi::to_float(x.number);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return {kivi::to_bfloat16(x)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
