// A backend in front of another that does what the other does: for those that look at some operations, or add to them.
#pragma once

#include "backend/backend.h"

namespace kivi {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(Backend& inner) : inner_(&inner) {}

  BackendInfo info() const override { return inner_->info(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  format::CodeOrder code_order() const override { return inner_->code_order(); }
  std::unique_ptr<Buffer> allocate(size_t size_bytes) override { return inner_->allocate(size_bytes); }
  void copy_to_device(void* device, const void* host, size_t size_bytes) override {
    inner_->copy_to_device(device, host, size_bytes);
  }
  void copy_to_host(void* host, const void* device, size_t size_bytes) override {
    inner_->copy_to_host(host, device, size_bytes);
  }
  void copy(void* to, const void* from, size_t size_bytes) override { inner_->copy(to, from, size_bytes); }
  void synchronize() override { inner_->synchronize(); }
  size_t free_bytes() override { return inner_->free_bytes(); }
  // Nothing is recorded: what stands in front would not see a recording's operations when it is replayed.
  std::unique_ptr<Recording> record(const std::function<void()>& /*run*/) override { return nullptr; }
  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override { return inner_->load_weight(parts); }
  std::unique_ptr<Weight> random_weight(int64_t rows, int64_t cols, float scale, uint64_t seed) override {
    return inner_->random_weight(rows, cols, scale, seed);
  }

  void embed(const EmbedArgs& args) override { inner_->embed(args); }
  void norm(const NormArgs& args) override { inner_->norm(args); }
  void linear(const LinearArgs& args) override { inner_->linear(args); }
  void rope(const RopeArgs& args) override { inner_->rope(args); }
  void hadamard(const HadamardArgs& args) override { inner_->hadamard(args); }
  void gate(const GateArgs& args) override { inner_->gate(args); }
  void soft_cap(const SoftCapArgs& args) override { inner_->soft_cap(args); }
  void gather(const GatherArgs& args) override { inner_->gather(args); }
  void argmax(const ArgmaxArgs& args) override { inner_->argmax(args); }
  void convert(const ConvertArgs& args) override { inner_->convert(args); }
  void sum_words(const SumWordsArgs& args) override { inner_->sum_words(args); }
  void plan_attend(const PlanAttendArgs& args) override { inner_->plan_attend(args); }
  void attend(const AttendArgs& args) override { inner_->attend(args); }
  void store_kv(const StoreKvArgs& args) override { inner_->store_kv(args); }

 protected:
  Backend& inner() const { return *inner_; }

 private:
  Backend* inner_;
};

}  // namespace kivi
