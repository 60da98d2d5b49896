// The table of CPU kernels of one instruction set. Each kernel works on one thread's share of an operation;
// cpu_backend.cc splits the operations. One source (kernels_*.cc) is compiled once for every instruction set.
#pragma once

#include <cstdint>

#include "format/page_layout.h"
#include "weights/format.h"

namespace kivi::cpu {

enum class Isa : uint8_t { kAvx512, kAvx2, kPortable };

// Matrix products and the small operations (linear.cc, elementwise.cc).
struct LinearKernels;
// Attention over packed pages and 16-bit rows (attend.cc).
struct AttendKernels;

// nullptr if this build does not have the instruction set. Whether the machine has it: cpu_isas().
const LinearKernels* linear_kernels(Isa isa);
const AttendKernels* attend_kernels(Isa isa);

}  // namespace kivi::cpu
