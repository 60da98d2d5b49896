// What the steps of a decoder compute with. One set serves every step, at addresses that stay until it has to grow, so
// that steps can be recorded.
#pragma once

#include <cstdint>

#include "backend/tensor.h"
#include "model/config.h"

namespace kivi {

struct Activations {
  // Rows that the MLP takes at a time: its activations are the widest, and a long prompt must not need ffn_size of them
  // each. Likewise the output matrix. As many as a decode step of the largest batches has: a few rows that are left
  // over cost as much as 200, for they read the weights once more.
  static constexpr int64_t kMlpRows = 1024;
  static constexpr int64_t kMlpRowsOfGpu =
      4096;  // whose products are faster the larger they are, and numbers half as wide
  static constexpr int64_t kHeadRows = 1024;

  int64_t n_rows = 0;       // N: that there is room for
  int64_t n_mlp_rows = 0;   // that the MLP takes at a time
  int64_t n_head_rows = 0;  // M: rows of logits at a time; at most kHeadRows

  Tensor inputs;    // [4 * N] i32: tokens, positions, rows of logits (or those that are followed) and of argmax
  Tensor x;         // [N, hidden] f32: the residual stream
  Tensor normed;    // [N, hidden] act: what goes into a matrix
  Tensor qkv;       // [N, (H + 2 K) * D] act
  Tensor kv16;      // [N, 2 K * D]: keys and values as the cache takes them; empty where act is that type
  Tensor attended;  // [N, H * D] act
  Tensor up;        // [n_mlp_rows, 2 * ffn] act: gate, then up; [.., ffn] without a gate
  Tensor branch;    // [N, hidden] f32: what attention or MLP gives, where it is normalised; else empty
  Tensor best;      // [N] i32: argmax

  Tensor last;    // [M, hidden] f32: rows of x
  Tensor logits;  // [M, vocabulary] f32

  // Makes room. True if anything has moved.
  bool reserve(Backend& backend, const ModelConfig& config, int64_t rows, int64_t head_rows);
  int64_t size_bytes() const;
};

}  // namespace kivi
