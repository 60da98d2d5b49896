// Backend::attend on the CPU.
//
// A sequence with one new token (decoding): its tokens are split into stretches of kSplitTokens; each (KV head,
// stretch) is one item of work that reads its packed codes once for all query heads, and the stretches are merged in
// order. Splits depend on the sequence alone, so a result depends neither on the batch nor on the number of threads. A
// sequence with several (prefill, chunks): items are (KV head, block of new tokens); tiles of keys and values are
// brought to float once an item and multiplied with all its queries.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attend_kernels.h"

namespace kivi::cpu {

class Attention {
 public:
  Attention(Isa isa, int n_threads) : kernels_(attend_kernels(isa)), tiles_(tile_kernels(isa)), n_threads_(n_threads) {}

  void run(const AttendArgs& args);

 private:
  const AttendKernels& kernels_;
  const TileKernels& tiles_;
  int n_threads_;
  std::vector<float> partial_;  // of the stretches; kept between calls for its memory
};

}  // namespace kivi::cpu
