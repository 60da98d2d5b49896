// Matrix products with weights decoded in registers. Every element of the result has one arithmetic, whatever else is
// computed with it: vector lane l sums fma(w, x, sum) over columns k = l (mod lanes) in increasing k, then the lanes
// are added in a fixed tree. So a row of x gives the same bits alone and in any batch.
#pragma once

#include <cstdint>
#include <span>

#include "backend/cpu/isa.h"
#include "backend/f32_args.h"

namespace kivi::cpu {

struct LinearKernels {
  // Columns begin .. end - 1 of out, which are rows of the weight.
  void (*rows)(const F32Linear& args, int64_t begin, int64_t end);
  // Row `row` of the weight to out[0 .. cols), to the bit of decode_row.
  void (*decode_row)(const WeightView& weight, int64_t row, float* out);
};

const LinearKernels& linear_kernels(Isa isa);

// The products of one x with matrices of the same number of columns, on up to n_threads threads.
void linear(std::span<const F32Linear> parts, Isa isa, int n_threads);

void embed(const F32Embed& args, Isa isa, int n_threads);

}  // namespace kivi::cpu
