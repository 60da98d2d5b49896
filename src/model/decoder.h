// The one decoder: runs any model that a ModelConfig describes, on any backend, one step at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "backend/backend.h"
#include "cache/kv_cache.h"
#include "core/tensor_view.h"
#include "model/config.h"
#include "model/weights.h"
#include "text/tokenizer.h"

namespace kivi {

// The tokens of one step: those of all its sequences, one sequence after the other, in the order of the cache's step.
struct DecoderStep {
  std::span<const TokenId> tokens;      // [N]
  std::span<const int32_t> logit_rows;  // rows whose next-token logits are wanted; ascending
};

class Decoder {
 public:
  // `weights` and the backend must outlive the decoder.
  Decoder(Backend& backend, const ModelWeights& weights);
  ~Decoder();

  const ModelConfig& config() const;
  KvShape kv_shape() const;

  // Runs a step that `cache` has reserved, and commits it. Returns logits [rows wanted, vocabulary], in host memory,
  // valid until the next call.
  TensorView<const float, 2> step(KvCache& cache, const DecoderStep& step);

 private:
  struct Scratch;
  void normalise(const AnyView& x, const Tensor& weight, const AnyView& out);
  // Both add to the residual stream of the step's n_rows rows.
  void attention(int layer, KvCache& cache, int64_t n_rows);
  void mlp(int layer, int64_t n_rows);

  Backend* backend_;
  const ModelWeights* weights_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace kivi
