#include "model/arch/arch.h"

#include <array>

#include "core/error.h"
#include "core/quoted.h"

namespace kivi {

std::string LayerTensorName::operator()(int64_t layer) const {
  return fmt::format("blk.{}.{}", layer, suffix);
}

const Architecture& find_architecture(std::string_view name) {
  constexpr std::array kArchitectures = {&kLlama, &kQwen2};
  std::string known;
  for (const Architecture* architecture : kArchitectures) {
    if (architecture->name == name) return *architecture;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", architecture->name);
  }
  fail(ErrorCode::kUnsupported, "unknown architecture {}: kivi runs {}", quoted(name), known);
}

}  // namespace kivi
