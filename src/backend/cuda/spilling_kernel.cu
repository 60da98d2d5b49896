// Needs some 200 registers where 64 are allowed: must not compile with the options of the decode kernels. For a test of
// those options.
__global__ void __launch_bounds__(1024) spill(const float* x, float* y, int n) {
  constexpr int kValues = 200;
  float values[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) values[i] = x[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kValues; ++i) y[i * n + threadIdx.x] = values[i] * values[i * 7 % kValues];
}
