// Instruction sets of the CPU backend. Each kernel file is one source (Highway) compiled once for each of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kivi::cpu {

// Best first. avx512: F, BW, CD, DQ, VL; avx2: with FMA and F16C; portable: what every machine of this architecture
// has.
enum class Isa : uint8_t { kAvx512, kAvx2, kPortable };

std::string_view name(Isa isa);  // "avx512", "avx2", "portable"

// In this build and on this machine, best first; never empty.
std::vector<Isa> available_isas();

// Empty: the best. Throws Error{kUnsupported} naming those that are there if `isa` is not one of them.
Isa parse_isa(std::string_view isa);

}  // namespace kivi::cpu
