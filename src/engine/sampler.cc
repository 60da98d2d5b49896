#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/error.h"
#include "engine/logit_loops.h"

namespace kivi {
namespace {

constexpr size_t kBlock = 256;   // logits
constexpr double kSlack = 1e-3;  // of rounding, where candidates are looked for
constexpr float kImpossible = -std::numeric_limits<float>::infinity();

std::span<const float> block_at(std::span<const float> logits, size_t begin) {
  return logits.subspan(begin, std::min(kBlock, logits.size() - begin));
}

// What a logit makes a token likely, the highest one 1; 0 where that is less than a float can say, and for NaN.
class Weigher {
 public:
  // However low the temperature, the highest logit is its own.
  Weigher(float highest, double temperature)
      : highest_(highest), factor_(static_cast<float>(std::min(1 / temperature, 1e30))) {}

  float operator()(float logit) const { return weight_of((logit - highest_) * factor_); }
  float sum(std::span<const float> block) const {
    const float* x = block.data();
    const float highest = highest_;
    const float factor = factor_;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < block.size(); ++i) sum += weight_of((x[i] - highest) * factor);
    return sum;
  }

 private:
  // Without a branch, as a loop of vectors needs it: what is left of the least that fast_exp gives is taken off.
  static float weight_of(float x) {
    constexpr float kLeast = -87.0F;
    return fast_exp(x > kLeast ? x : kLeast) - fast_exp(kLeast);
  }

  float highest_;
  float factor_;
};

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
  float highest = -std::numeric_limits<float>::infinity();
  std::span<const float> where = logits.first(std::min(kBlock, logits.size()));
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const std::span<const float> block = block_at(logits, begin);
    const float here = highest_of(block);
    if (here <= highest) continue;
    highest = here;
    where = block;
  }
  const auto best = std::ranges::find(where, highest);
  return static_cast<TokenId>(where.data() - logits.data() + (best == where.end() ? 0 : best - where.begin()));
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
  block_highest_.clear();
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    block_highest_.push_back(highest_of(block_at(logits, begin)));
  }
  highest_ = *std::ranges::max_element(block_highest_);
  if (!std::isfinite(highest_)) return argmax(logits);
  if (!params_.has_filters()) return draw_from_all(logits);

  if (params_.top_k > 0) {
    keep_top_k(logits);
    if (params_.top_p < 1) keep_top_p(weight_of_candidates());
  } else if (params_.top_p < 1) {
    const double total = sum_weights(logits);
    collect_mass(logits, params_.top_p * total);
    keep_top_p(total);
  } else {
    collect(logits, logit_below(kSlack - std::log(params_.min_p)));
  }
  std::erase_if(candidates_, [this](const Candidate& c) { return std::exp(double{c.logit}) < params_.min_p; });
  return draw_from_candidates();
}

TokenId Sampler::draw_from_all(std::span<const float> logits) {
  const Weigher weight(highest_, params_.temperature);
  double rest = random_part(sum_weights(logits));
  for (size_t b = 0; b < block_weight_.size(); ++b) {
    if (rest >= block_weight_[b]) {
      rest -= block_weight_[b];
      continue;
    }
    const std::span<const float> block = block_at(logits, b * kBlock);
    size_t last = 0;  // that is possible: should rounding leave something of the rest
    for (size_t i = 0; i < block.size() && rest >= 0; ++i) {
      const float part = weight(block[i]);
      if (part > 0) last = i;
      rest -= part;
    }
    return static_cast<TokenId>(b * kBlock + last);
  }
  return argmax(logits);
}

// So much lower than the highest, in units of the temperature.
float Sampler::logit_below(double depth) const {
  return static_cast<float>(highest_ - depth * params_.temperature);
}

// At least the fewest likeliest that have so much weight together.
void Sampler::collect_mass(std::span<const float> logits, double weight) {
  for (const double depth : {6.0, 12.0, 24.0}) {
    collect(logits, logit_below(depth));
    if (weight_of_candidates() >= weight * (1 + kSlack)) return;
  }
  collect(logits, kImpossible);
}

void Sampler::collect(std::span<const float> logits, float least) {
  candidates_.clear();
  for (size_t b = 0; b < block_highest_.size(); ++b) {
    if (!(block_highest_[b] >= least)) continue;
    const std::span<const float> block = block_at(logits, b * kBlock);
    for (size_t i = 0; i < block.size(); ++i) {
      if (!(block[i] >= least) || block[i] == kImpossible) continue;
      const auto logit = static_cast<float>((double{block[i]} - highest_) / params_.temperature);
      candidates_.push_back({logit, static_cast<TokenId>(b * kBlock + i)});
    }
  }
}

double Sampler::sum_weights(std::span<const float> logits) {
  const Weigher weight(highest_, params_.temperature);
  block_weight_.clear();
  double total = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    block_weight_.push_back(weight.sum(block_at(logits, begin)));
    total += block_weight_.back();
  }
  return total;
}

double Sampler::weight_of_candidates() const {
  double total = 0;
  for (const Candidate& c : candidates_) total += std::exp(double{c.logit});
  return total;
}

TokenId Sampler::draw_from_candidates() {
  double rest = random_part(weight_of_candidates());
  for (const Candidate& c : candidates_) {
    rest -= std::exp(double{c.logit});
    if (rest < 0) return c.id;
  }
  return candidates_.back().id;
}

// 53 random bits: the same number on every machine, which the standard's distributions do not promise.
double Sampler::random_part(double total) {
  return static_cast<double>(random_() >> 11) * 0x1p-53 * total;
}

void Sampler::keep_top_k(std::span<const float> logits) {
  const auto k = static_cast<size_t>(params_.top_k);
  if (k > block_highest_.size()) {
    collect(logits, kImpossible);
  } else {
    sorted_ = block_highest_;  // k blocks have a logit each that is as high as the k-th of these
    std::ranges::nth_element(sorted_, sorted_.begin() + static_cast<std::ptrdiff_t>(k - 1), std::greater());
    collect(logits, sorted_[k - 1]);
  }
  if (k >= candidates_.size()) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(k), candidates_.end(),
                   [](const Candidate& a, const Candidate& b) { return less_likely(b, a); });
  candidates_.resize(k);
}

// Takes the likeliest candidate off a heap until they have their part of the total: mostly few of a large vocabulary.
void Sampler::keep_top_p(double total) {
  double missing = params_.top_p * total;
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
