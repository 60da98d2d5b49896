#include "eval/agreement.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cache/kv_cache.h"
#include "core/error.h"

namespace kivi {
namespace {

// One sequence on one side.
class Writer {
 public:
  Writer(const AgreementSide& side, const KvConfig& config, int64_t max_tokens)
      : decoder_(side.decoder),
        cache_(*side.backend, side.decoder->kv_shape(), config, {.max_tokens = max_tokens}),
        sequence_(cache_.create()) {}

  // Reads tokens and chooses the next.
  TokenId choose(std::span<const TokenId> tokens) {
    const StepSequence entry{.id = sequence_, .n_new = static_cast<int32_t>(tokens.size())};
    const int32_t last_row = entry.n_new - 1;
    if (!cache_.reserve({&entry, 1})) fail(ErrorCode::kInternal, "KV cache {} is full", cache_.config().name);
    const DecoderOutput out =
        decoder_->step(cache_, {.tokens = tokens, .logit_rows = {&last_row, 1}, .argmax_rows = {&last_row, 1}});
    logits_.assign(out.logits.data, out.logits.data + out.logits.shape[1]);
    return out.argmax.front();
  }
  const std::vector<float>& logits() const { return logits_; }
  double gap(TokenId chosen, TokenId other) const {
    return double{logits_[static_cast<size_t>(chosen)]} - double{logits_[static_cast<size_t>(other)]};
  }

 private:
  Decoder* decoder_;
  KvCache cache_;
  SequenceId sequence_;
  std::vector<float> logits_;
};

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  return largest;
}

AgreementResult compare(const AgreementSide& first, const AgreementSide& second, const KvConfig& config,
                        std::span<const TokenId> prompt, int64_t n_tokens) {
  const int64_t max_tokens = std::ssize(prompt) + n_tokens;
  Writer a(first, config, max_tokens);
  Writer b(second, config, max_tokens);
  AgreementResult result{.kv = config.name};
  TokenId chosen = 0;
  for (std::span<const TokenId> input = prompt; result.n_tokens < n_tokens; input = {&chosen, 1}) {
    const TokenId of_a = a.choose(input);
    const TokenId of_b = b.choose(input);
    ++result.n_tokens;
    result.largest_logit_difference =
        std::max(result.largest_logit_difference, largest_difference(a.logits(), b.logits()));
    if (of_a != of_b) {
      result.difference = {{of_a, of_b}, {a.gap(of_a, of_b), b.gap(of_b, of_a)}};
      break;
    }
    chosen = of_a;
    ++result.n_same;
  }
  return result;
}

}  // namespace

std::vector<AgreementResult> measure_agreement(const AgreementSide& first, const AgreementSide& second,
                                               const AgreementOptions& options) {
  const int64_t context = first.decoder->config().context_length;
  for (size_t i = 0; i < options.prompts.size(); ++i) {
    const auto n_prompt = std::ssize(options.prompts[i]);
    if (n_prompt == 0 || options.n_tokens < 1 || n_prompt + options.n_tokens > context) {
      fail(ErrorCode::kInvalidArgument,
           "prompt {} of {} tokens and {} more: both must be at least 1, and together at most the model's context of "
           "{}",
           i, n_prompt, options.n_tokens, context);
    }
  }
  std::vector<AgreementResult> results;
  for (const KvConfig& config : options.kv) {
    for (size_t i = 0; i < options.prompts.size(); ++i) {
      results.push_back(compare(first, second, config, options.prompts[i], options.n_tokens));
      results.back().prompt = static_cast<int64_t>(i);
      if (options.progress) {
        options.progress(static_cast<double>(results.size()) /
                         static_cast<double>(options.kv.size() * options.prompts.size()));
      }
    }
  }
  return results;
}

nlohmann::ordered_json to_json(std::span<const AgreementResult> results) {
  auto list = nlohmann::ordered_json::array();
  for (const AgreementResult& r : results) {
    list.push_back({{"kv", r.kv}, {"prompt", r.prompt}, {"same", r.n_same}, {"tokens", r.n_tokens}});
    nlohmann::ordered_json& difference = list.back()["difference"];
    if (r.difference) difference = {{"tokens", r.difference->tokens}, {"logit_gaps", r.difference->gaps}};
    list.back()["largest_logit_difference"] = r.largest_logit_difference;
  }
  return list;
}

}  // namespace kivi
