// The operations of a model, slow and obviously right: sums and functions in double, results rounded once to f32.
#pragma once

#include "backend/f32_args.h"

namespace kivi::reference {

void embed(const F32Embed& args);
void norm(const F32Norm& args);
void linear(const F32Linear& args);
void rope(const F32Rope& args);
void hadamard(const F32Hadamard& args);
void gate(const F32Gate& args);
void soft_cap(const F32SoftCap& args);
void gather(const F32Gather& args);
void argmax(const F32Argmax& args);
void convert(const F32Convert& args);

// To 16 bits, round to nearest even; finite values beyond the range become the largest.
Half to_half_saturating(float value);
BFloat16 to_bfloat16_saturating(float value);

}  // namespace kivi::reference
