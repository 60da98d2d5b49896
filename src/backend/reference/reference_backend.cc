#include "backend/reference/reference_backend.h"

#include <cstring>

#include "backend/f32_args.h"
#include "backend/host_buffer.h"
#include "backend/reference/paged.h"
#include "core/error.h"
#include "reference/ops.h"

namespace kivi {
namespace {

class ReferenceBackend : public Backend {
 public:
  BackendInfo info() const override { return {"reference", "scalar code in double precision, 1 thread", 1}; }
  DType activation_dtype() const override { return DType::kF32; }

  std::unique_ptr<Buffer> allocate(size_t size_bytes) override { return allocate_host_buffer(size_bytes); }
  void copy_to_device(void* device, const void* host, size_t size_bytes) override {
    std::memcpy(device, host, size_bytes);
  }
  void copy_to_host(void* host, const void* device, size_t size_bytes) override {
    std::memcpy(host, device, size_bytes);
  }
  void synchronize() override {}

  std::unique_ptr<Weight> load_weight(const WeightView& weight) override {
    return std::make_unique<MappedWeight>(weight);
  }

  void embed(const EmbedArgs& args) override { reference::embed(typed(args)); }
  void rms_norm(const RmsNormArgs& args) override { reference::rms_norm(typed(args)); }
  void linear(const LinearArgs& args) override { reference::linear(typed(args)); }
  void rope(const RopeArgs& args) override { reference::rope(typed(args)); }
  void gate(const GateArgs& args) override { reference::gate(typed(args)); }
  void gather(const GatherArgs& args) override { reference::gather(typed(args)); }
  void convert(const ConvertArgs& args) override { reference::convert(typed(args)); }
  void attend(const AttendArgs& args) override { reference::attend(args); }
  void store_kv(const StoreKvArgs& args) override { reference::store_kv(args); }
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend() {
  return std::make_unique<ReferenceBackend>();
}

}  // namespace kivi
