// A backend in front of another that notes the operations of what is recorded, so that they can be run again in parts.
#pragma once

#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "eval/forwarding_backend.h"

namespace kivi {

class OperationTape : public ForwardingBackend {
 public:
  struct Operation {
    std::string_view name;
    std::function<void()> run;
  };

  using ForwardingBackend::ForwardingBackend;
  // Of the last recording. They point into the memory that it did.
  const std::vector<Operation>& operations() const { return operations_; }

  std::unique_ptr<Recording> record(const std::function<void()>& run) override {
    operations_.clear();
    is_recording_ = true;
    run();
    is_recording_ = false;
    return std::make_unique<Recording>();
  }
  void replay(const Recording& /*recording*/) override {  // there is one
    for (const Operation& operation : operations_) operation.run();
  }

  void embed(const EmbedArgs& args) override { note("embed", &Backend::embed, args); }
  void norm(const NormArgs& args) override { note("norm", &Backend::norm, args); }
  void linear(const LinearArgs& args) override { note("linear", &Backend::linear, args); }
  void rope(const RopeArgs& args) override { note("rope", &Backend::rope, args); }
  void hadamard(const HadamardArgs& args) override { note("hadamard", &Backend::hadamard, args); }
  void gate(const GateArgs& args) override { note("gate", &Backend::gate, args); }
  void soft_cap(const SoftCapArgs& args) override { note("soft_cap", &Backend::soft_cap, args); }
  void gather(const GatherArgs& args) override { note("gather", &Backend::gather, args); }
  void argmax(const ArgmaxArgs& args) override { note("argmax", &Backend::argmax, args); }
  void convert(const ConvertArgs& args) override { note("convert", &Backend::convert, args); }
  void plan_attend(const PlanAttendArgs& args) override { note("plan_attend", &Backend::plan_attend, args); }
  void attend(const AttendArgs& args) override { note("attend", &Backend::attend, args); }
  void store_kv(const StoreKvArgs& args) override { note("store_kv", &Backend::store_kv, args); }

 private:
  template <typename Args>
  void note(std::string_view name, void (Backend::*operation)(const Args&), const Args& args) {
    if (!is_recording_) return (inner().*operation)(args);
    operations_.push_back({name, [inner = &inner(), operation, args] { (inner->*operation)(args); }});
  }

  bool is_recording_ = false;
  std::vector<Operation> operations_;
};

}  // namespace kivi
