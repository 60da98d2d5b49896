// Answers to many prompts at once, greedily, from one KV cache.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/progress.h"
#include "engine/engine.h"
#include "text/tokenizer.h"

namespace kivi {

struct GenerationOptions {
  // Memory and steps. A prompt runs whole, whatever max_step_tokens, so that it attends to itself in 16 bits.
  EngineOptions engine{};
  int64_t max_new_tokens = 0;        // of an answer
  std::vector<std::string> stops{};  // text that ends an answer and is not part of it
  int64_t batch = 0;                 // sequences that run side by side at most; 0: 8, or 256 on a GPU
  ProgressCallback progress{};
};

// What a batch of 0 stands for: as many as memory holds at most, on a device that says how much there is.
int64_t chosen_batch(Backend& backend, int64_t batch);

// The text of every answer, in the order of the prompts; where a backend's sums do not depend on the batch (the CPU's
// do not), nor does it. Throws the Error of a request that fails.
std::vector<std::string> generate_answers(Backend& backend, Decoder& decoder, const Tokenizer& tokenizer,
                                          std::span<const std::vector<TokenId>> prompts,
                                          const GenerationOptions& options);

}  // namespace kivi
