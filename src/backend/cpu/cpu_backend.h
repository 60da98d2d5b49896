// The CPU backend: instruction set chosen at run time, threads over rows and heads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace kivi {

// Instruction sets of this build that this machine has, best first: "avx512", "avx2", "portable".
std::vector<std::string> cpu_isas();

// isa empty: the best. Throws Error{kUnsupported} naming those that are there if `isa` is not.
std::unique_ptr<Backend> make_cpu_backend(const std::string& isa, int n_threads);

}  // namespace kivi
