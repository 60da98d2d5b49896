#include "core/environment.h"

#include <cstdlib>

namespace kivi::environment {
namespace {

std::optional<std::string> read(const char* name) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nothing here writes the environment
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

}  // namespace

std::optional<std::string> force_isa() {
  return read("KIVI_FORCE_ISA");
}

std::optional<std::string> api_key() {
  return read("KIVI_API_KEY");
}

}  // namespace kivi::environment
