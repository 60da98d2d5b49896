#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace kivi {
namespace {

void check(bool good, const char* field, double value, const char* limit) {
  if (!good) fail(ErrorCode::kInvalidArgument, "{} {}: must be {}", field, value, limit);
}

}  // namespace

void SamplingParams::validate() const {
  check(std::isfinite(temperature) && temperature >= 0, "temperature", temperature, "0 (greedy) or more");
  check(top_k >= 0, "top-k", static_cast<double>(top_k), "0 (all tokens) or more");
  check(top_p > 0 && top_p <= 1, "top-p", top_p, "above 0 and at most 1 (off)");
  check(min_p >= 0 && min_p <= 1, "min-p", min_p, "from 0 (off) to 1");
  check(std::isfinite(repetition_penalty) && repetition_penalty > 0, "repetition penalty", repetition_penalty,
        "above 0; 1 is off");
  check(std::isfinite(presence_penalty), "presence penalty", presence_penalty, "a finite number; 0 is off");
  check(std::isfinite(frequency_penalty), "frequency penalty", frequency_penalty, "a finite number; 0 is off");
  for (const auto& [id, bias] : logit_bias) check(std::isfinite(bias), "logit bias", double{bias}, "a finite number");
}

TokenId argmax(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
  }
  return static_cast<TokenId>(best);
}

Sampler::Sampler(const SamplingParams& params, std::span<const TokenId> prompt)
    : params_(params), random_(params.seed), prompt_(prompt.begin(), prompt.end()) {}

TokenId Sampler::sample(std::span<const float> logits, std::span<const TokenId> banned) {
  if (params_.has_penalties() || !params_.logit_bias.empty() || !banned.empty()) {
    adjusted_.assign(logits.begin(), logits.end());
    adjust(adjusted_, banned);
    logits = adjusted_;
  }
  const TokenId id = params_.temperature == 0 ? argmax(logits) : draw(logits);
  ++output_[id];
  return id;
}

void Sampler::adjust(std::span<float> logits, std::span<const TokenId> banned) const {
  for (const auto& [id, bias] : params_.logit_bias) logits[static_cast<size_t>(id)] += bias;
  if (params_.has_penalties()) penalise(logits);
  for (const TokenId id : banned) logits[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
}

void Sampler::penalise(std::span<float> logits) const {
  const auto repeat = static_cast<float>(params_.repetition_penalty);
  const auto penalise_repetition = [&](TokenId id) {
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / repeat : logit * repeat;
  };
  for (const TokenId id : prompt_) penalise_repetition(id);
  for (const auto& [id, count] : output_) {
    if (!prompt_.contains(id)) penalise_repetition(id);
    logits[static_cast<size_t>(id)] -=
        static_cast<float>(params_.presence_penalty + params_.frequency_penalty * static_cast<double>(count));
  }
}

bool Sampler::less_likely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit < b.logit : a.id > b.id;
}

TokenId Sampler::draw(std::span<const float> logits) {
  const TokenId best = argmax(logits);
  const float highest = logits[static_cast<size_t>(best)];
  if (!std::isfinite(highest)) return best;

  // From here on logits are relative to the highest one, so that exp() of it is 1 and of others at most 1.
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto logit = static_cast<float>((double{logits[i]} - highest) / params_.temperature);
    if (logit > -std::numeric_limits<float>::infinity()) candidates_.push_back({logit, static_cast<TokenId>(i)});
  }
  keep_top_k();
  keep_top_p();
  std::erase_if(candidates_, [this](const Candidate& c) { return std::exp(double{c.logit}) < params_.min_p; });

  double total = 0;
  for (const Candidate& c : candidates_) total += std::exp(double{c.logit});
  // 53 random bits: the same number on every machine, which the standard's distributions do not promise.
  double rest = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  for (const Candidate& c : candidates_) {
    rest -= std::exp(double{c.logit});
    if (rest < 0) return c.id;
  }
  return candidates_.back().id;
}

void Sampler::keep_top_k() {
  const auto k = static_cast<size_t>(params_.top_k);
  if (k == 0 || k >= candidates_.size()) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(k), candidates_.end(),
                   [](const Candidate& a, const Candidate& b) { return less_likely(b, a); });
  candidates_.resize(k);
}

// Takes the likeliest candidate off a heap until they have the mass: mostly few of a large vocabulary.
void Sampler::keep_top_p() {
  if (params_.top_p >= 1) return;
  double missing = 0;
  for (const Candidate& c : candidates_) missing += std::exp(double{c.logit});
  missing *= params_.top_p;

  std::make_heap(candidates_.begin(), candidates_.end(), less_likely);
  auto kept = candidates_.end();  // [kept, end) are the likeliest
  while (kept != candidates_.begin() && missing > 0) {
    std::pop_heap(candidates_.begin(), kept, less_likely);
    --kept;
    missing -= std::exp(double{kept->logit});
  }
  candidates_.erase(candidates_.begin(), kept);
}

}  // namespace kivi
