#include "backend/cpu/isa.h"

#include <fmt/ranges.h>

#include "backend/cpu/targets.h"
#include "core/error.h"

// After targets.h.
#include <hwy/highway.h>
#include <hwy/targets.h>

namespace kivi::cpu {

std::string_view name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kPortable:
      return "portable";
  }
  fail(ErrorCode::kInternal, "isa {} is not in the table", static_cast<int>(isa));
}

std::vector<Isa> available_isas() {
  const int64_t here = hwy::SupportedTargets() & HWY_TARGETS;
  std::vector<Isa> isas;
  if (here & HWY_AVX3) isas.push_back(Isa::kAvx512);
  if (here & HWY_AVX2) isas.push_back(Isa::kAvx2);
  // A build whose compiler may assume AVX2 has no plainer kernels.
  if ((HWY_STATIC_TARGET & (HWY_AVX3 | HWY_AVX2)) == 0) isas.push_back(Isa::kPortable);
  return isas;
}

Isa parse_isa(std::string_view isa) {
  const std::vector<Isa> isas = available_isas();
  if (isa.empty()) return isas.front();
  std::vector<std::string_view> names;
  for (const Isa candidate : isas) {
    if (name(candidate) == isa) return candidate;
    names.push_back(name(candidate));
  }
  fail(ErrorCode::kUnsupported, "instruction set {}: this machine and build have {}", isa, fmt::join(names, ", "));
}

}  // namespace kivi::cpu
