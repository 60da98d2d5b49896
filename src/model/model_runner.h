// A model on a device with a cache, stepped by hand; and how far its logits may be from those of another device. For
// tests.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/decoder.h"

namespace kivi {

// How far logits, which are about 1 in size, may be from the reference's.
struct LogitTolerance {
  double plain;   // the largest difference, of f16 caches
  double packed;  // the mean square's root: a difference can move a code by one, which is a step of a group
};
// With f32 activations a key or value whose f32 and double sums fall on two sides of a rounding to binary16 differs by
// 2^-11 relatively, in each of two layers. With 16 bits there are ten roundings of activations about 1 in size on the
// way through each layer, which add up at random. The parity tests, which feed the same keys and values to all devices,
// are the strict ones.
inline LogitTolerance logit_tolerance(DType activation) {
  switch (activation) {
    case DType::kF16:
      return {0x1p-6, 0.15};
    case DType::kBF16:
      return {0x1p-3, 0.3};
    default:
      return {2 * 0x1p-11, 5e-3};
  }
}

using Logits = std::vector<std::vector<float>>;  // [row][token]

inline double largest_difference(const Logits& a, const Logits& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < a[i].size(); ++j) {
      const double difference = std::abs(double{a[i][j]} - b[i][j]);
      largest = difference <= largest ? largest : difference;  // a NaN stays
    }
  }
  return largest;
}

inline double root_mean_square_difference(const Logits& a, const Logits& b) {
  double squares = 0;
  double n = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < a[i].size(); ++j, ++n) squares += std::pow(double{a[i][j]} - b[i][j], 2);
  }
  return std::sqrt(squares / n);
}

class ModelRunner {
 public:
  // `bytes` is what the file points into if that is not a mapping of its own.
  ModelRunner(ModelFile file, std::unique_ptr<Backend> backend, std::string_view kv, std::vector<std::byte> bytes = {})
      : bytes_(std::move(bytes)),
        file_(std::move(file)),
        backend_(std::move(backend)),
        weights_(load_weights(*backend_, file_, read_config(file_))),
        decoder_(*backend_, weights_),
        cache_(*backend_, decoder_.kv_shape(), parse_kv_config(kv), {.max_tokens = 600, .max_sequences = 2}) {}

  SequenceId create() { return cache_.create(); }

  // Logits of all rows.
  Logits step(std::vector<StepSequence> sequences, const std::vector<TokenId>& tokens) {
    EXPECT_TRUE(cache_.reserve(sequences));
    std::vector<int32_t> rows(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    const auto logits = decoder_.step(cache_, {.tokens = tokens, .logit_rows = rows}).logits;
    Logits out;
    for (int64_t i = 0; i < logits.shape[0]; ++i) out.emplace_back(&logits(i, 0), &logits(i, 0) + logits.shape[1]);
    return out;
  }
  // Of a new sequence: the first n_prompt tokens at once, then one at a time.
  Logits run(const std::vector<TokenId>& tokens, int32_t n_prompt) {
    const SequenceId id = create();
    Logits out = step({{id, n_prompt}}, {tokens.begin(), tokens.begin() + n_prompt});
    for (size_t i = static_cast<size_t>(n_prompt); i < tokens.size(); ++i) {
      out.push_back(step({{id, 1}}, {tokens[i]})[0]);
    }
    return out;
  }

  const KvCache& cache() const { return cache_; }
  LogitTolerance tolerance() const { return logit_tolerance(backend_->activation_dtype()); }

 private:
  std::vector<std::byte> bytes_;
  ModelFile file_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  Decoder decoder_;
  KvCache cache_;
};

}  // namespace kivi
