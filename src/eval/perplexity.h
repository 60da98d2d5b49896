// Perplexity through decode: every token goes through the decode path, so that each query sees just the cache that
// token-by-token decoding shows it.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_config.h"
#include "core/progress.h"
#include "model/decoder.h"

namespace kivi {

// A cache that a backend in front of the measured one makes of a 16-bit cache: a decoder on that backend.
struct PerplexityVariant {
  std::string name;
  Decoder* decoder = nullptr;
};

struct PerplexityOptions {
  std::vector<KvConfig> kv{};                 // at least one, or a variant
  std::vector<PerplexityVariant> variants{};  // measured beside kv
  int64_t context = 2048;                     // tokens of a chunk, each a sequence of its own
  int64_t first_chunk = 0;
  int64_t n_chunks = 0;                  // 0: all that follow
  std::optional<TokenId> first_token{};  // stands in for that of every chunk: the BOS of a model that wants one
  int batch = 8;                         // chunks that run side by side; changes the speed, not the result
  ProgressCallback progress{};
};

// Means over the scored predictions of one chunk.
struct ChunkQuality {
  double nll = 0.0;
  double kl = 0.0;
  double top1_agreement = 0.0;
};

// Means over all scored predictions: those of tokens context/2 + 1 .. context - 1 of every chunk. The standard errors
// take predictions as independent.
struct PerplexityResult {
  std::string kv;
  double perplexity = 0.0;  // exp(nll_per_token)
  double nll_per_token = 0.0;
  double nll_stderr = 0.0;
  int64_t n_tokens = 0;                     // scored
  double bits_per_element = 0.0;            // of the packed format: codes, scales and zeros
  double effective_bits_per_element = 0.0;  // with 16-bit windows and sinks, at the end of a chunk
  double kl_to_f16 = 0.0;                   // KL(f16 || this) of the next token, in nats
  double kl_stderr = 0.0;
  double top1_agreement = 0.0;  // part of predictions whose most likely token is that of f16
  std::vector<ChunkQuality> chunks{};
};

// Results in the order of options.kv, then of options.variants. f16 runs in lockstep as the base whether it is asked
// for or not. Throws Error{kInvalidArgument} if the tokens make no chunk or the options contradict the model.
std::vector<PerplexityResult> measure_perplexity(Backend& backend, Decoder& decoder, std::span<const TokenId> tokens,
                                                 const PerplexityOptions& options);

// {"results":[{"kv","perplexity","nll_per_token","n_tokens","bits_per_element","kl_to_f16","top1_agreement",...}]}
nlohmann::ordered_json to_json(std::span<const PerplexityResult> results);

}  // namespace kivi
