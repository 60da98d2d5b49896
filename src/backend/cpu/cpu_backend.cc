#include "backend/cpu/cpu_backend.h"

#include <fstream>
#include <string>

#include "backend/cpu/attend.h"
#include "backend/cpu/elementwise.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/store.h"
#include "backend/host_backend.h"
#include "core/error.h"

namespace kivi {
namespace {

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

class CpuBackend : public HostBackend {
 public:
  CpuBackend(cpu::Isa isa, int n_threads) : isa_(isa), n_threads_(n_threads), attention_(isa, n_threads) {}

  BackendInfo info() const override {
    const std::string detail = fmt::format("{}, {}, {} threads", processor_name(), name(isa_), n_threads_);
    return {fmt::format("cpu:{}", name(isa_)), detail, n_threads_};
  }

  void embed(const EmbedArgs& args) override { cpu::embed(typed(args), isa_, n_threads_); }
  void norm(const NormArgs& args) override { cpu::norm(typed(args), isa_, n_threads_); }
  void linear(const LinearArgs& args) override { cpu::linear(typed(args), isa_, n_threads_); }
  void rope(const RopeArgs& args) override { cpu::rope(typed(args), isa_, n_threads_); }
  void hadamard(const HadamardArgs& args) override { cpu::hadamard(typed(args), n_threads_); }
  void gate(const GateArgs& args) override { cpu::gate(typed(args), isa_, n_threads_); }
  void soft_cap(const SoftCapArgs& args) override { cpu::soft_cap(typed(args), isa_, n_threads_); }
  void gather(const GatherArgs& args) override { cpu::gather(typed(args)); }
  void argmax(const ArgmaxArgs& args) override { cpu::argmax(typed(args), n_threads_); }
  void convert(const ConvertArgs& args) override { cpu::convert(typed(args), isa_, n_threads_); }
  void sum_words(const SumWordsArgs& args) override { sum_words_on_host(args, n_threads_); }
  void attend(const AttendArgs& args) override { attention_.run(args); }
  void store_kv(const StoreKvArgs& args) override { cpu::store_kv(args, n_threads_); }

 private:
  cpu::Isa isa_;
  int n_threads_;
  cpu::Attention attention_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(cpu::Isa isa, int n_threads) {
  return std::make_unique<CpuBackend>(isa, n_threads);
}

}  // namespace kivi
