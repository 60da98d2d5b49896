// Scores that a model caps:  s becomes  cap * tanh(s / cap).
#pragma once

#include "backend/cuda/device/ptx.cuh"

namespace kivi::cuda {

// cap * tanh(x / cap), off by 2e-7 of the cap. (The instruction tanh.approx is off by a thousandth.)
__device__ __forceinline__ float capped(float x, float cap) {
  constexpr float k2Log2E = 2.8853900817779268F;
  return cap - 2.0F * __fdividef(cap, 1.0F + exp2_approx(k2Log2E * __fdividef(x, cap)));
}

}  // namespace kivi::cuda
