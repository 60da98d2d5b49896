// The CPU backend: instruction set chosen at run time, threads over rows and heads.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cpu/isa.h"

namespace kivi {

// `isa` must be one of cpu::available_isas().
std::unique_ptr<Backend> make_cpu_backend(cpu::Isa isa, int n_threads);

}  // namespace kivi
