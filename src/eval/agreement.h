// Whether two devices write the same text: greedy decoding of the same prompts side by side, up to the first token that
// they choose differently, and how near a tie that was.
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

// A model on a device.
struct AgreementSide {
  Backend* backend = nullptr;
  Decoder* decoder = nullptr;
};

struct AgreementOptions {
  std::vector<KvConfig> kv{};
  std::vector<std::vector<TokenId>> prompts{};
  int64_t n_tokens = 64;
  ProgressCallback progress{};
};

struct Disagreement {
  TokenId tokens[2] = {};  // what each side chose
  // By how much each side's logit of its own choice is above that of the other's, on that side.
  double gaps[2] = {};
};

struct AgreementResult {
  std::string kv;
  int64_t prompt = 0;    // its number, from 0
  int64_t n_same = 0;    // tokens chosen alike before the first that was not
  int64_t n_tokens = 0;  // n_same, if there is no other
  std::optional<Disagreement> difference{};
  // Largest difference of two logits of the same token while the texts were the same.
  double largest_logit_difference = 0.0;
};

// By configuration, then prompt. The models on both sides are of the same file.
std::vector<AgreementResult> measure_agreement(const AgreementSide& first, const AgreementSide& second,
                                               const AgreementOptions& options);

// [{"kv","prompt","same","tokens","difference":null or {"tokens":[a,b],"logit_gaps":[x,y]},...}]
nlohmann::ordered_json to_json(std::span<const AgreementResult> results);

}  // namespace kivi
