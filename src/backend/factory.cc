#include <fmt/ranges.h>

#include <charconv>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa.h"
#include "backend/cuda_factory.h"
#include "backend/reference/reference_backend.h"
#include "core/environment.h"
#include "core/error.h"
#include "core/parallel.h"

namespace kivi {
namespace {

// "cpu:avx2" is {"cpu", "avx2"}.
struct DeviceName {
  std::string_view kind;
  std::string_view variant;
};

DeviceName split(std::string_view device) {
  const size_t colon = device.find(':');
  if (colon == std::string_view::npos) return {device, {}};
  return {device.substr(0, colon), device.substr(colon + 1)};
}

cpu::Isa choose_isa(std::string_view asked) {
  const std::optional<std::string> forced = environment::force_isa();
  if (!forced) return cpu::parse_isa(asked);
  if (!asked.empty() && asked != *forced) {
    fail(ErrorCode::kInvalidArgument, "device cpu:{}: KIVI_FORCE_ISA is {}; unset it or ask for cpu:{}", asked, *forced,
         *forced);
  }
  return cpu::parse_isa(*forced);
}

std::unique_ptr<Backend> make_cpu(std::string_view variant, std::optional<int> n_threads) {
  constexpr int kMaxThreads = 1024;
  const int n = n_threads.value_or(physical_cores());
  if (n < 1 || n > kMaxThreads) {
    fail(ErrorCode::kInvalidArgument, "threads {}: must be 1 to {}; this machine has {} cores", n, kMaxThreads,
         physical_cores());
  }
  return make_cpu_backend(choose_isa(variant), n);
}

std::string default_device() {
  const std::vector<std::string> cuda = cuda_devices();
  return cuda.empty() || environment::force_isa() ? "cpu" : cuda.front();
}

void require_f16(const std::string& device, std::optional<DType> dtype) {
  if (dtype.value_or(DType::kF16) == DType::kF16) return;
  fail(ErrorCode::kUnsupported,
       "dtype {}: device {} computes in f32 and keeps windows in f16; use --device cuda, or f16", name(*dtype), device);
}

DType dtype_of_gpu(std::optional<DType> dtype) {
  if (!dtype || *dtype == DType::kF16 || *dtype == DType::kBF16) return dtype.value_or(DType::kF16);
  fail(ErrorCode::kUnsupported, "dtype {}: a GPU computes in f16 or bf16", name(*dtype));
}

[[noreturn]] void fail_unknown(const std::string& device) {
  fail(ErrorCode::kUnsupported, "device {}: this machine and build have {}", device,
       fmt::join(available_devices(), ", "));
}

}  // namespace

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  const std::string device = options.device.empty() ? default_device() : options.device;
  const auto [kind, variant] = split(device);
  if (device.ends_with(':')) fail_unknown(device);
  if (kind == "cpu" || device == "reference") require_f16(device, options.dtype);
  if (kind == "cpu") return make_cpu(variant, options.n_threads);
  if (device == "reference") return make_reference_backend();
  if (kind == "cuda") {
    int index = 0;
    const auto [end, error] = std::from_chars(variant.data(), variant.data() + variant.size(), index);
    if (!variant.empty() && (error != std::errc() || end != variant.data() + variant.size() || index < 0)) {
      fail_unknown(device);
    }
    return make_cuda_backend(index, dtype_of_gpu(options.dtype), options.stream);
  }
  fail_unknown(device);
}

namespace {

// Of devices that have done what was asked when the call returns.
class ImmediateReadback : public Readback {
 public:
  ImmediateReadback(Backend& backend, size_t size_bytes) : backend_(&backend), bytes_(size_bytes) {}
  void start(const void* device, size_t size_bytes) override {
    backend_->copy_to_host(bytes_.data(), device, size_bytes);
  }
  const std::byte* wait() override { return bytes_.data(); }

 private:
  Backend* backend_;
  std::vector<std::byte> bytes_;
};

}  // namespace

std::unique_ptr<Readback> Backend::make_readback(size_t size_bytes) {
  return std::make_unique<ImmediateReadback>(*this, size_bytes);
}

std::unique_ptr<Weight> Backend::random_weight(int64_t /*rows*/, int64_t /*cols*/, float /*scale*/, uint64_t /*seed*/) {
  fail(ErrorCode::kUnsupported, "device {}: has no random weights; use cpu, reference or a GPU", info().device);
}

void Backend::sum_words(const SumWordsArgs& /*args*/) {
  fail(ErrorCode::kUnsupported, "device {}: cannot sum words; use cpu, reference or a GPU", info().device);
}

std::vector<std::string> available_devices() {
  std::vector<std::string> devices = cuda_devices();
  for (const cpu::Isa isa : cpu::available_isas()) devices.push_back(fmt::format("cpu:{}", name(isa)));
  devices.emplace_back("reference");
  return devices;
}

}  // namespace kivi
