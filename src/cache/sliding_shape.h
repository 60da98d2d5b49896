// A small shape for tests: three layers, of which two may slide.
#pragma once

#include <cstdint>

#include "cache/kv_config.h"

namespace kivi {

// sliding_window: of the first two layers; 0: none slides.
inline KvShape shape_of(int64_t sliding_window) {
  KvShape shape{.n_layers = 3, .n_kv_heads = 1, .head_dim = 64, .sliding_window = sliding_window};
  if (sliding_window > 0) shape.slides = {true, true, false};
  return shape;
}

}  // namespace kivi
