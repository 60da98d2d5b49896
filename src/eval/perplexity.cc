#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "cache/kv_cache.h"
#include "core/parallel.h"
#include "engine/token_score.h"

namespace kivi {
namespace {

struct Mean {
  double sum = 0.0;
  double sum_of_squares = 0.0;
  int64_t n = 0;

  void add(double x) {
    sum += x;
    sum_of_squares += x * x;
    ++n;
  }
  double value() const { return n == 0 ? 0.0 : sum / static_cast<double>(n); }
  double standard_error() const {
    if (n < 2) return 0.0;
    const double variance = std::max(0.0, sum_of_squares / static_cast<double>(n) - value() * value());
    return std::sqrt(variance / static_cast<double>(n - 1));
  }
};

struct RowScore {
  double nll = 0.0;
  double kl = 0.0;
  bool agrees = true;
};

struct QualityMean {
  Mean nll{}, kl{}, agreement{};

  void add(const RowScore& score) {
    nll.add(score.nll);
    kl.add(score.kl);
    agreement.add(score.agrees ? 1.0 : 0.0);
  }
};

// One KV configuration, run over the chunks of a batch in lockstep with the others.
struct Lane {
  std::string name;
  KvConfig config;
  Decoder* decoder = nullptr;
  KvCache cache;
  std::vector<StepSequence> step{};
  QualityMean all{};
  std::vector<QualityMean> chunks{};
};

class Evaluation {
 public:
  Evaluation(Backend& backend, Decoder& decoder, std::span<const TokenId> tokens, const PerplexityOptions& options);

  void run();
  std::vector<PerplexityResult> results() const;

 private:
  void run_batch(int64_t first_chunk, int64_t n_chunks);
  void run_position(int64_t first_chunk, int64_t n_chunks, int64_t position);
  void run_step(Lane& lane, const DecoderStep& step, std::span<const TokenId> targets);
  void score(Lane& lane, const TensorView<const float, 2>& logits, std::span<const TokenId> targets);
  PerplexityResult result(const Lane& lane) const;
  TokenId token(int64_t chunk, int64_t position) const {
    const TokenId token = tokens_[chunk * options_->context + position];
    return position == 0 ? options_->first_token.value_or(token) : token;
  }

  Decoder* decoder_;
  std::span<const TokenId> tokens_;
  const PerplexityOptions* options_;
  int n_threads_;
  int64_t end_chunk_ = 0;
  std::vector<std::unique_ptr<Lane>> lanes_;  // as asked for; then the base, if it was not
  Lane* base_lane_ = nullptr;
  std::vector<float> base_logits_;
  std::vector<Prediction> base_;  // by row
};

Evaluation::Evaluation(Backend& backend, Decoder& decoder, std::span<const TokenId> tokens,
                       const PerplexityOptions& options)
    : decoder_(&decoder), tokens_(tokens), options_(&options), n_threads_(backend.info().n_threads) {
  const int64_t context = options.context;
  const int64_t longest = decoder.config().context_length;
  if (context < 4 || context > longest) {
    fail(ErrorCode::kInvalidArgument, "context {}: must be 4 to {}, the model's context", context, longest);
  }
  if (options.batch < 1) fail(ErrorCode::kInvalidArgument, "batch {}: must be at least 1", options.batch);
  if (options.first_chunk < 0 || options.n_chunks < 0) {
    fail(ErrorCode::kInvalidArgument, "chunks {} from chunk {}: must not be negative", options.n_chunks,
         options.first_chunk);
  }
  const auto n_tokens = static_cast<int64_t>(tokens.size());
  const int64_t n_all = n_tokens / context;
  end_chunk_ = options.n_chunks == 0 ? n_all : options.first_chunk + options.n_chunks;
  if (end_chunk_ > n_all || options.first_chunk >= end_chunk_) {
    fail(ErrorCode::kInvalidArgument,
         "text of {} tokens: makes {} chunks of {}, wanted chunks {} to {}; use a longer text or a smaller context",
         n_tokens, n_all, context, options.first_chunk, std::max(end_chunk_ - 1, options.first_chunk));
  }

  const int64_t batch = std::min<int64_t>(options.batch, end_chunk_ - options.first_chunk);
  const auto add_lane = [&](const std::string& name, const KvConfig& config, Decoder& of) {
    const KvCapacity capacity{.max_tokens = context, .max_sequences = static_cast<int>(batch)};
    lanes_.push_back(std::make_unique<Lane>(Lane{
        .name = name, .config = config, .decoder = &of, .cache = KvCache(backend, of.kv_shape(), config, capacity)}));
  };
  for (const KvConfig& config : options.kv) {
    add_lane(config.name, config, decoder);
    if (!config.is_packed() && base_lane_ == nullptr) base_lane_ = lanes_.back().get();
  }
  const KvConfig f16 = parse_kv_config("f16");
  for (const PerplexityVariant& variant : options.variants) add_lane(variant.name, f16, *variant.decoder);
  if (base_lane_ != nullptr) return;
  add_lane(f16.name, f16, decoder);
  base_lane_ = lanes_.back().get();
}

void Evaluation::run() {
  const int64_t step = options_->batch;
  for (int64_t chunk = options_->first_chunk; chunk < end_chunk_; chunk += step) {
    run_batch(chunk, std::min(step, end_chunk_ - chunk));
  }
}

void Evaluation::run_batch(int64_t first_chunk, int64_t n_chunks) {
  for (const auto& lane : lanes_) {
    lane->chunks.resize(lane->chunks.size() + static_cast<size_t>(n_chunks));
    lane->step.clear();
    for (int64_t i = 0; i < n_chunks; ++i) lane->step.push_back({.id = lane->cache.create(), .n_new = 1});
  }
  const int64_t n_positions = options_->context - 1;  // what follows the last token is not known
  const auto all_chunks = static_cast<double>(end_chunk_ - options_->first_chunk);
  for (int64_t position = 0; position < n_positions; ++position) {
    run_position(first_chunk, n_chunks, position);
    if (!options_->progress) continue;
    const double of_batch = static_cast<double>(position + 1) / static_cast<double>(n_positions);
    const double chunks = static_cast<double>(first_chunk - options_->first_chunk) + of_batch * double(n_chunks);
    options_->progress(chunks / all_chunks);
  }
  for (const auto& lane : lanes_) {
    for (const StepSequence& sequence : lane->step) lane->cache.release(sequence.id);
  }
}

void Evaluation::run_position(int64_t first_chunk, int64_t n_chunks, int64_t position) {
  const bool is_scored = position >= options_->context / 2;
  std::vector<TokenId> inputs;
  std::vector<TokenId> targets;
  std::vector<int32_t> logit_rows;
  for (int64_t i = 0; i < n_chunks; ++i) {
    inputs.push_back(token(first_chunk + i, position));
    targets.push_back(token(first_chunk + i, position + 1));
    if (is_scored) logit_rows.push_back(static_cast<int32_t>(i));
  }
  const DecoderStep step{.tokens = inputs, .logit_rows = logit_rows};
  run_step(*base_lane_, step, targets);
  for (const auto& lane : lanes_) {
    if (lane.get() != base_lane_) run_step(*lane, step, targets);
  }
}

void Evaluation::run_step(Lane& lane, const DecoderStep& step, std::span<const TokenId> targets) {
  if (!lane.cache.reserve(lane.step)) fail(ErrorCode::kInternal, "KV cache {} is full", lane.name);
  const auto logits = lane.decoder->step(lane.cache, step).logits;
  if (!step.logit_rows.empty()) score(lane, logits, targets);
}

void Evaluation::score(Lane& lane, const TensorView<const float, 2>& logits, std::span<const TokenId> targets) {
  const bool is_base = &lane == base_lane_;
  const int64_t n_rows = logits.shape[0];
  const int64_t vocabulary = logits.shape[1];
  if (is_base) {  // the decoder overwrites its logits in the next lane
    base_logits_.resize(static_cast<size_t>(n_rows * vocabulary));
    base_.resize(static_cast<size_t>(n_rows));
  }
  std::vector<RowScore> scores(static_cast<size_t>(n_rows));
  parallel_for(n_threads_, n_rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::span<const float> x{logits[row].data, static_cast<size_t>(vocabulary)};
      if (is_base) x = {std::copy(x.begin(), x.end(), &base_logits_[row * vocabulary]) - vocabulary, x.size()};
      const Prediction prediction = make_prediction(x);
      if (is_base) base_[row] = prediction;
      scores[row].nll = negative_log_likelihood(prediction, targets[row]);
      if (is_base) continue;
      scores[row].kl = kl_divergence(base_[row], prediction);
      scores[row].agrees = prediction.best == base_[row].best;
    }
  });
  for (int64_t row = 0; row < n_rows; ++row) {
    lane.all.add(scores[row]);
    lane.chunks[lane.chunks.size() - static_cast<size_t>(n_rows - row)].add(scores[row]);
  }
}

PerplexityResult Evaluation::result(const Lane& lane) const {
  const KvShape shape = decoder_->kv_shape();
  PerplexityResult result{
      .kv = lane.name,
      .perplexity = std::exp(lane.all.nll.value()),
      .nll_per_token = lane.all.nll.value(),
      .nll_stderr = lane.all.nll.standard_error(),
      .n_tokens = lane.all.nll.n,
      .bits_per_element = lane.config.layout(shape).bits_per_element(),
      .effective_bits_per_element = memory_of(shape, lane.config, options_->context).effective_bits_per_element(),
      .kl_to_f16 = lane.all.kl.value(),
      .kl_stderr = lane.all.kl.standard_error(),
      .top1_agreement = lane.all.agreement.value()};
  for (const QualityMean& chunk : lane.chunks) {
    result.chunks.push_back({chunk.nll.value(), chunk.kl.value(), chunk.agreement.value()});
  }
  return result;
}

std::vector<PerplexityResult> Evaluation::results() const {
  std::vector<PerplexityResult> results;
  const size_t n_asked = options_->kv.size() + options_->variants.size();
  for (size_t i = 0; i < n_asked; ++i) results.push_back(result(*lanes_[i]));
  return results;
}

}  // namespace

std::vector<PerplexityResult> measure_perplexity(Backend& backend, Decoder& decoder, std::span<const TokenId> tokens,
                                                 const PerplexityOptions& options) {
  Evaluation evaluation(backend, decoder, tokens, options);
  evaluation.run();
  return evaluation.results();
}

nlohmann::ordered_json to_json(std::span<const PerplexityResult> results) {
  auto list = nlohmann::ordered_json::array();
  for (const PerplexityResult& r : results) {
    list.push_back({{"kv", r.kv},
                    {"perplexity", r.perplexity},
                    {"nll_per_token", r.nll_per_token},
                    {"n_tokens", r.n_tokens},
                    {"bits_per_element", r.bits_per_element},
                    {"kl_to_f16", r.kl_to_f16},
                    {"top1_agreement", r.top1_agreement},
                    {"effective_bits_per_element", r.effective_bits_per_element},
                    {"nll_stderr", r.nll_stderr},
                    {"kl_stderr", r.kl_stderr}});
  }
  return {{"results", std::move(list)}};
}

}  // namespace kivi
