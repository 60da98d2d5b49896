#include "backend/reference/reference_backend.h"

#include "backend/host_backend.h"
#include "backend/reference/paged.h"
#include "core/error.h"
#include "reference/ops.h"

namespace kivi {
namespace {

class ReferenceBackend : public HostBackend {
 public:
  BackendInfo info() const override { return {"reference", "scalar code in double precision, 1 thread", 1}; }

  void embed(const EmbedArgs& args) override { reference::embed(typed(args)); }
  void norm(const NormArgs& args) override { reference::norm(typed(args)); }
  void linear(const LinearArgs& args) override {
    for (const F32Linear& part : typed(args)) reference::linear(part);
  }
  void rope(const RopeArgs& args) override { reference::rope(typed(args)); }
  void hadamard(const HadamardArgs& args) override { reference::hadamard(typed(args)); }
  void gate(const GateArgs& args) override { reference::gate(typed(args)); }
  void soft_cap(const SoftCapArgs& args) override { reference::soft_cap(typed(args)); }
  void gather(const GatherArgs& args) override { reference::gather(typed(args)); }
  void argmax(const ArgmaxArgs& args) override { reference::argmax(typed(args)); }
  void convert(const ConvertArgs& args) override { reference::convert(typed(args)); }
  void sum_words(const SumWordsArgs& args) override { sum_words_on_host(args, 1); }
  void attend(const AttendArgs& args) override { reference::attend(args); }
  void store_kv(const StoreKvArgs& args) override { reference::store_kv(args); }
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend() {
  return std::make_unique<ReferenceBackend>();
}

}  // namespace kivi
