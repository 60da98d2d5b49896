// Attention of sequences with one new token each, over packed pages, window and the token itself, on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "backend/cuda/device/stream.h"

namespace kivi::cuda {

struct DecodeKernel;
struct DecodeLaunch;
struct DecodeWorkspace;

class DecodeAttention {
 public:
  static constexpr int64_t kMaxSequences = 4096;
  static constexpr int64_t kMaxUnits = 1 << 20;  // sequences x KV heads, of 8 query heads at most each

  // Allocates the workspace. Throws Error{kOutOfMemory}.
  explicit DecodeAttention(const Stream& stream);
  ~DecodeAttention();

  // Shares out the work of the run calls of a step for a group of layers; sequences without exactly one new row get
  // none. Throws Error{kUnsupported} if no kernel is compiled for the layout, naming what is.
  void plan(const PlanAttendArgs& args, cudaStream_t stream);
  // Reads, for each sequence and KV head, head_dim * bits / 8 + 4 * head_dim / group_size bytes for a packed key or
  // value and 2 * head_dim for one in 16 bits. No more than one call at a time: they share the workspace.
  void run(const AttendArgs& args, cudaStream_t stream);

 private:
  struct Memory;
  const DecodeLaunch& launch_of(const DecodeKernel& kernel) const;
  DecodeWorkspace& workspace_of(const format::KvBatchView& cache) const;

  int n_multiprocessors_ = 0;
  int capability_ = 0;  // the major number
  std::unique_ptr<Memory> memory_;
};

}  // namespace kivi::cuda
