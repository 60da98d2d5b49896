// A device that does nothing, in no time: what a step costs on it is what the host spends. For tests.
#pragma once

#include <cstring>

#include "backend/backend.h"
#include "backend/host_buffer.h"

namespace kivi {

class NullDevice : public Backend {
 public:
  int64_t n_copies = 0;  // to the device

  BackendInfo info() const override { return {"null", "for tests", 1}; }
  DType activation_dtype() const override { return DType::kF16; }

  std::unique_ptr<Buffer> allocate(size_t size_bytes) override { return allocate_host_buffer(size_bytes); }
  void copy_to_device(void* device, const void* host, size_t size_bytes) override {
    ++n_copies;
    std::memcpy(device, host, size_bytes);
  }
  void copy_to_host(void* host, const void* device, size_t size_bytes) override {
    std::memcpy(host, device, size_bytes);
  }
  void copy(void* to, const void* from, size_t size_bytes) override {
    if (size_bytes > 0) std::memcpy(to, from, size_bytes);
  }
  void synchronize() override {}
  std::unique_ptr<Recording> record(const std::function<void()>& run) override {
    run();
    return std::make_unique<Recording>();
  }

  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override {
    int64_t rows = 0;
    for (const WeightView& part : parts) rows += part.rows;
    return std::make_unique<NullWeight>(rows, parts.front().cols);
  }
  void embed(const EmbedArgs& /*args*/) override {}
  void norm(const NormArgs& /*args*/) override {}
  void linear(const LinearArgs& /*args*/) override {}
  void rope(const RopeArgs& /*args*/) override {}
  void hadamard(const HadamardArgs& /*args*/) override {}
  void gate(const GateArgs& /*args*/) override {}
  void soft_cap(const SoftCapArgs& /*args*/) override {}
  void gather(const GatherArgs& /*args*/) override {}
  void argmax(const ArgmaxArgs& /*args*/) override {}
  void convert(const ConvertArgs& /*args*/) override {}
  void attend(const AttendArgs& /*args*/) override {}
  void store_kv(const StoreKvArgs& /*args*/) override {}

 private:
  struct NullWeight : Weight {
    NullWeight(int64_t rows, int64_t cols) : Weight(rows, cols) {}
  };
};

}  // namespace kivi
