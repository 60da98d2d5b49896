#include "model/arch/arch.h"

#include <array>
#include <string>

#include "core/error.h"
#include "io/quoted.h"

namespace kivi {

const Architecture& find_architecture(std::string_view name) {
  constexpr std::array kArchitectures = {&kFalcon, &kGemma2, &kGemma3, &kLlama, &kPhi3, &kQwen2, &kQwen3};
  std::string known;
  for (const Architecture* architecture : kArchitectures) {
    if (architecture->name == name) return *architecture;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", architecture->name);
  }
  fail(ErrorCode::kUnsupported, "unknown architecture {}: kivi runs {}", quoted(name), known);
}

}  // namespace kivi
