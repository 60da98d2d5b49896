#include "backend/cpu/scratch.h"

#include <algorithm>
#include <memory>
#include <new>

namespace kivi::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Free {
  void operator()(float* p) const { ::operator delete[](p, kAlignment); }
};

}  // namespace

float* thread_scratch(size_t n_floats) {
  thread_local std::unique_ptr<float[], Free> memory;
  thread_local size_t size = 0;
  if (n_floats > size) {
    memory.reset();
    size = 0;
    memory.reset(new (kAlignment) float[n_floats]);
    size = n_floats;
  }
  return memory.get();
}

}  // namespace kivi::cpu
