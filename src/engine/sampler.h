// Chooses the next token from logits. The order is that of vLLM and Transformers: penalties, temperature, top-k, top-p,
// min-p; every filter works on what the one before it left, renormalised.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/tokenizer.h"

namespace kivi {

// The defaults are neutral: greedy, and every other field off.
struct SamplingParams {
  double temperature = 0.0;         // >= 0; 0: the most likely token, of equals the one with the lowest id
  int64_t top_k = 0;                // keep the k most likely; 0: all
  double top_p = 1.0;               // keep the fewest most likely tokens whose probabilities reach p; (0, 1]
  double min_p = 0.0;               // drop tokens less likely than min_p times the most likely one; [0, 1]
  double repetition_penalty = 1.0;  // > 0; divides (multiplies, if negative) logits of tokens in prompt or output
  double presence_penalty = 0.0;    // subtracted once for a token in the output
  double frequency_penalty = 0.0;   // subtracted for each time a token is in the output
  std::vector<std::pair<TokenId, float>> logit_bias{};  // added to logits, before anything else
  uint64_t seed = 0;

  // Whether the next token is the argmax of the logits, whatever was before.
  bool is_argmax() const { return temperature == 0 && !has_penalties() && logit_bias.empty(); }
  bool has_filters() const { return top_k > 0 || top_p < 1 || min_p > 0; }
  bool has_penalties() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }

  // Throws Error{kInvalidArgument} naming the field.
  void validate() const;
};

// The sampler of one request: its random numbers and what its penalties have to know. The same seed and logits give the
// same tokens on every machine, whatever else is in the batch.
class Sampler {
 public:
  Sampler(const SamplingParams& params, std::span<const TokenId> prompt);

  // The next token given logits [vocabulary], none of the banned ones; it counts as output from now on. NaN counts as
  // impossible.
  TokenId sample(std::span<const float> logits, std::span<const TokenId> banned = {});

 private:
  struct Candidate {
    float logit = 0.0F;
    TokenId id = 0;
  };
  static bool less_likely(const Candidate& a, const Candidate& b);

  void adjust(std::span<float> logits, std::span<const TokenId> banned) const;
  void penalise(std::span<float> logits) const;
  TokenId draw(std::span<const float> logits);
  TokenId draw_from_all(std::span<const float> logits);
  void collect_mass(std::span<const float> logits, double weight);
  void collect(std::span<const float> logits, float least);
  float logit_below(double depth) const;
  double sum_weights(std::span<const float> logits);
  double weight_of_candidates() const;
  void keep_top_k(std::span<const float> logits);
  void keep_top_p(double total);
  TokenId draw_from_candidates();
  double random_part(double total);

  SamplingParams params_;
  std::mt19937_64 random_;
  std::unordered_set<TokenId> prompt_;
  std::unordered_map<TokenId, int64_t> output_;  // how often
  std::vector<float> adjusted_;
  // Of the logits that a token is drawn from, by blocks of them: most blocks of a large vocabulary have no likely
  // token.
  float highest_ = 0.0F;
  std::vector<float> block_highest_;
  std::vector<float> block_weight_;
  std::vector<float> sorted_;
  std::vector<Candidate> candidates_;
};

// The id of the largest logit, the lowest of equals.
TokenId argmax(std::span<const float> logits);

}  // namespace kivi
