// What the backends of the CPU share: memory of the process, weights read where the file mapping has them, f32
// activations, operations that are done when the call returns.
#pragma once

#include <cstring>

#include "backend/backend.h"
#include "backend/f32_args.h"
#include "backend/host_buffer.h"

namespace kivi {

void sum_words_on_host(const SumWordsArgs& args, int n_threads);

class HostBackend : public Backend {
 public:
  DType activation_dtype() const override { return DType::kF32; }

  std::unique_ptr<Buffer> allocate(size_t size_bytes) override { return allocate_host_buffer(size_bytes); }
  void copy_to_device(void* device, const void* host, size_t size_bytes) override {
    if (size_bytes > 0) std::memcpy(device, host, size_bytes);
  }
  void copy_to_host(void* host, const void* device, size_t size_bytes) override {
    if (size_bytes > 0) std::memcpy(host, device, size_bytes);
  }
  void copy(void* to, const void* from, size_t size_bytes) override {
    if (size_bytes > 0) std::memcpy(to, from, size_bytes);
  }
  void synchronize() override {}

  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override {
    return std::make_unique<MappedWeight>(parts);
  }
  std::unique_ptr<Weight> random_weight(int64_t rows, int64_t cols, float scale, uint64_t seed) override;
};

}  // namespace kivi
