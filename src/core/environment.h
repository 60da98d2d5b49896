// Every environment variable that kivi reads; docs/environment.md explains each.
#pragma once

#include <optional>
#include <string>

namespace kivi::environment {

// KIVI_FORCE_ISA: the instruction set of the CPU backend ("avx512", "avx2", "portable").
std::optional<std::string> force_isa();
// KIVI_API_KEY: the key that `kivi serve` asks for.
std::optional<std::string> api_key();

}  // namespace kivi::environment
