// The one decoder: runs any model that a ModelConfig describes, on any backend, one step at a time.
//
// A step in which every sequence has one new token is padded with sequences of no rows to one of few batch sizes, and
// is recorded where the backend records: later steps of that size replay it. What differs between them (tokens,
// positions, lengths, block tables) is uploaded to where the recording reads it.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_cache.h"
#include "core/tensor_view.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/weights.h"
#include "text/tokenizer.h"

namespace kivi {

// The tokens of one step: those of all its sequences, one sequence after the other, in the order of the cache's step.
struct DecoderStep {
  std::span<const TokenId> tokens;         // [N]
  std::span<const int32_t> logit_rows{};   // rows whose next-token logits are wanted; ascending
  std::span<const int32_t> argmax_rows{};  // rows whose most likely next token is wanted; ascending
  // [N] instead of tokens: row n goes on with argmax[follows[n]] of the step that was started last, which may be
  // unfinished. For steps that can_follow() and want the argmax of every row.
  std::span<const int32_t> follows{};

  int64_t n_rows() const { return std::ssize(follows.empty() ? tokens : follows); }
};

// In host memory, valid until the next start().
struct DecoderOutput {
  TensorView<const float, 2> logits;  // [logit rows, vocabulary]
  std::span<const TokenId> argmax;    // [argmax rows]; of equally likely tokens the one with the lowest id
};

// The number of sequences that a recorded step of n is padded to: few numbers, so that there are few recordings.
constexpr int64_t padded_batch(int64_t n) {
  if (n <= 4) return n <= 2 ? n : 4;
  const int64_t multiple = n <= 256 ? 8 : 32;
  return (n + multiple - 1) / multiple * multiple;
}

KvShape kv_shape(const ModelConfig& config);

class Decoder {
 public:
  // `weights` and the backend must outlive the decoder.
  Decoder(Backend& backend, const ModelWeights& weights);

  const ModelConfig& config() const { return weights_->config; }
  const ModelWeights& weights() const { return *weights_; }
  KvShape kv_shape() const { return kivi::kv_shape(config()); }

  // Allocates what steps of so many rows and wanted rows need. A larger step allocates by itself, which costs its
  // recordings.
  void reserve(int64_t n_rows, int64_t n_wanted_rows);
  // Frees them, and the recordings. Later steps allocate again.
  void release();
  int64_t activation_bytes() const { return activations_.size_bytes(); }

  // Records greedy steps of every batch size of a cache ahead of time, where the backend records.
  void record_ahead(const KvCache& cache);

  // Starts a step that `cache` has reserved, and commits it. Comes back before the device is done unless logits are
  // wanted.
  void start(KvCache& cache, const DecoderStep& step);
  // What the oldest step that is started and not finished has come to. Waits for it if anything is wanted.
  DecoderOutput finish();
  DecoderOutput step(KvCache& cache, const DecoderStep& step);  // both
  // Whether a decode step of n sequences can be started before the one before it is finished. On devices that do not
  // run by themselves there is nothing to gain.
  bool can_follow(const KvCache& cache, int64_t n) const;
  // Forgets steps that are not finished.
  void drop_started() { started_.clear(); }

 private:
  struct Extent {  // padding included
    int64_t n_rows;
    int64_t n_sequences;
  };
  struct Recorded {
    std::weak_ptr<const Buffer> cache;
    int64_t n_rows = 0;
    bool chooses = false;  // ends with the argmax of every row
    std::unique_ptr<Recording> recording;
  };

  // Of a step that is not finished. The one that follows it is started before the answer is fetched.
  struct Started {
    int64_t n_logits = 0;
    int64_t n_best = 0;
    Readback* best = nullptr;
  };
  static constexpr size_t kMostStarted = 2;

  const Recorded* record(const KvCache& cache, int64_t n_rows, bool chooses);
  void upload(const KvCache& cache, const DecoderStep& step, int64_t n_rows);
  void take_tokens(const AnyView& follows);
  AnyView inputs(int64_t begin, int64_t n) const;

  void run_layers(const KvCache& cache, const Extent& extent);
  void run_layer(int layer, const KvCache& cache, const Extent& extent);
  void attend(int layer, const KvCache& cache, const Extent& extent);  // from `normed` to `attended`
  void rotate(int layer, const AnyView& q_and_k, int64_t n_rows);
  void add_mlp(int layer, int64_t n_rows);  // of `normed`
  // Adds x W^T + bias to rows of the residual stream, normalised first where the model has a norm for it.
  void add(const AnyView& x, const LinearOf<std::unique_ptr<Weight>, Tensor>& linear, const NormOf<Tensor>& norm,
           int64_t first_row);
  NormArgs norm_args(const NormOf<Tensor>& norm, const AnyView& x, const AnyView& out) const;

  void choose(std::span<const int32_t> rows, const AnyView& device_rows);
  void fetch_logits(std::span<const int32_t> rows, const AnyView& device_rows);
  template <typename Use>
  void for_logits(std::span<const int32_t> rows, const AnyView& device_rows, Use use);

  Backend* backend_;
  const ModelWeights* weights_;
  Activations activations_;
  std::vector<Recorded> recordings_;  // hold addresses of activations_
  std::vector<int32_t> host_inputs_;
  std::vector<float> host_logits_;
  std::array<std::unique_ptr<Readback>, kMostStarted> readbacks_;  // of `best`, in turn
  size_t next_readback_ = 0;
  std::deque<Started> started_;
};

}  // namespace kivi
