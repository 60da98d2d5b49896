// The operations of a model that work on each row by itself: norms, rotary positions, gates, copies, conversions.
#pragma once

#include "backend/cpu/isa.h"
#include "backend/f32_args.h"

namespace kivi::cpu {

void norm(const F32Norm& args, Isa isa, int n_threads);
void rope(const F32Rope& args, Isa isa, int n_threads);
void hadamard(const F32Hadamard& args, int n_threads);
void gate(const F32Gate& args, Isa isa, int n_threads);
void soft_cap(const F32SoftCap& args, Isa isa, int n_threads);
void convert(const F32Convert& args, Isa isa, int n_threads);
void gather(const F32Gather& args);
void argmax(const F32Argmax& args, int n_threads);

}  // namespace kivi::cpu
