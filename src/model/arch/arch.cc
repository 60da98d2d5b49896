#include "model/arch/arch.h"

#include <array>
#include <string>

#include "core/error.h"
#include "core/quoted.h"

namespace kivi {

const Architecture& find_architecture(std::string_view name) {
  constexpr std::array kArchitectures = {&kFalconArchitecture, &kGemma2Architecture, &kGemma3Architecture,
                                         &kLlamaArchitecture,  &kPhi3Architecture,   &kQwen2Architecture,
                                         &kQwen3Architecture};
  std::string known;
  for (const Architecture* architecture : kArchitectures) {
    if (architecture->name == name) return *architecture;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", architecture->name);
  }
  fail(ErrorCode::kUnsupported, "unknown architecture {}: kivi runs {}", quoted(name), known);
}

}  // namespace kivi
