// The operations that take every element by itself. Each checks its shapes as backend.h says and asks its kernel of the
// stream; rows of all views may be strided.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"

namespace kivi::cuda {

// The table must be a cuda::Matrix. A row whose token is not in it becomes NaN.
void embed(const EmbedArgs& args, cudaStream_t stream);
void rope(const RopeArgs& args, cudaStream_t stream);
void hadamard(const HadamardArgs& args, cudaStream_t stream);
void gate(const GateArgs& args, cudaStream_t stream);
void soft_cap(const SoftCapArgs& args, cudaStream_t stream);
void gather(const GatherArgs& args, cudaStream_t stream);  // a row that is not there becomes NaN
void convert(const ConvertArgs& args, cudaStream_t stream);
// out[n, :] += bias, rounded to the dtype of out [N, C]; bias [C] f32, which linear() has checked.
void add_bias(const AnyView& out, const AnyView& bias, cudaStream_t stream);

}  // namespace kivi::cuda
