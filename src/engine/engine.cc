#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <ranges>
#include <utility>

namespace kivi {
namespace {

// On a device that says what is free, activations are allocated now, and pages get what is left of the fraction.
KvCapacity bounded(Backend& backend, Decoder& decoder, const EngineOptions& options) {
  options.validate();
  KvCapacity capacity = options.capacity;
  const size_t n_free = backend.free_bytes();
  if (n_free == 0) return capacity;
  const int64_t n_sequences = capacity.max_sequences;
  decoder.reserve(std::min(options.max_step_tokens, n_sequences * capacity.max_tokens) + n_sequences, n_sequences);
  if (capacity.memory_bytes != 0) return capacity;
  const auto n_taken = static_cast<double>(n_free - std::min(n_free, backend.free_bytes()));
  const double n_left = options.memory_fraction * static_cast<double>(n_free) - n_taken;
  if (n_left <= 0) {
    fail(ErrorCode::kOutOfMemory,
         "{} of {} free bytes: {} are needed for activations alone; raise --memory-fraction or lower --step-tokens",
         options.memory_fraction, n_free, n_taken);
  }
  capacity.memory_bytes = static_cast<int64_t>(n_left);
  return capacity;
}

double seconds_between(Sequence::Clock::time_point begin, Sequence::Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

// The stop tokens, as long as the output is too short to end.
std::span<const TokenId> banned(const Sequence& sequence) {
  const Request& request = sequence.request;
  return sequence.n_output() < request.min_new_tokens ? std::span(request.stop_ids) : std::span<const TokenId>();
}

bool needs_logits(const Sequence& sequence) {
  return !sequence.request.sampling.is_argmax() || sequence.request.n_logprobs || !banned(sequence).empty() ||
         !sequence.twins.empty();
}

// Whether a sequence's step ends with a new token.
bool has_choice(const Sequence& sequence) {
  return sequence.n_new() <= 0;
}

// Rows of the sequence's step, from 0, that predict tokens of its prompt which are to be scored.
auto rows_to_score(const Sequence& sequence) {
  const int64_t first = sequence.n_cached - sequence.n_step;
  const int64_t begin = sequence.request.scores_prompt ? sequence.n_scored - 1 - first : 0;
  const int64_t end = std::min(sequence.n_step, sequence.n_prompt() - 1 - first);
  return std::views::iota(begin, sequence.request.scores_prompt ? std::max(begin, end) : begin);
}

std::span<const float> row_of(const DecoderOutput& output, int64_t row) {
  const TensorView<const float, 1> logits = output.logits[row];
  return {logits.data, static_cast<size_t>(logits.size())};
}

}  // namespace

void EngineOptions::validate() const {
  if (max_step_tokens < 1 || horizon < 0) {
    fail(ErrorCode::kInvalidArgument, "{} prompt tokens a step, horizon {}: must be at least 1 and 0", max_step_tokens,
         horizon);
  }
  if (!(memory_fraction > 0 && memory_fraction <= 1)) {
    fail(ErrorCode::kInvalidArgument, "memory fraction {}: must be above 0 and at most 1", memory_fraction);
  }
}

Engine::Engine(Backend& backend, Decoder& decoder, const EngineOptions& options)
    : decoder_(&decoder),
      cache_(backend, decoder.kv_shape(), options.kv, bounded(backend, decoder, options)),
      scheduler_(cache_, {.max_step_tokens = options.max_step_tokens,
                          .horizon = options.horizon,
                          .reuse_prefixes = options.reuse_prefixes,
                          .skip_prompts = options.skip_prompts}) {}

RequestId Engine::submit(Request request) {
  const RequestId id = next_id_++;
  try {
    check(request);
    scheduler_.add(std::make_unique<Sequence>(id, std::move(request)));
  } catch (const Error& error) {
    Finish refusal{.reason = FinishReason::kFailed, .error = error};
    refusal.n_prompt = static_cast<int64_t>(request.prompt.size());
    add_event(id).finish = std::move(refusal);
  }
  return id;
}

void Engine::check(const Request& request) const {
  request.sampling.validate();
  if (request.scores_prompt && !request.n_logprobs) {
    fail(ErrorCode::kInvalidArgument, "scores of the prompt without n_logprobs: set it, to 0 for the tokens alone");
  }
  const auto n_prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t context = cache_.capacity().max_tokens;
  if (n_prompt == 0) fail(ErrorCode::kInvalidArgument, "empty prompt: give at least one token");
  if (request.max_new_tokens < 0) {
    fail(ErrorCode::kInvalidArgument, "{} new tokens: must be 0 (up to the end of the context) or more",
         request.max_new_tokens);
  }
  if (n_prompt >= context) {
    fail(ErrorCode::kInvalidArgument,
         "prompt of {} tokens: the context of {} must hold it and one token more; shorten it or raise the context",
         n_prompt, context);
  }
  const int64_t n_most = request.max_new_tokens == 0 ? context : std::min(context, n_prompt + request.max_new_tokens);
  if (!cache_.can_ever_hold(n_most)) {
    fail(ErrorCode::kOutOfMemory,
         "{} tokens of prompt and output: more than the KV cache of {} bytes can hold; ask for fewer, or raise "
         "--memory-fraction or --kv-memory",
         n_most, cache_.capacity_bytes());
  }
  check_tokens(request);
}

void Engine::check_tokens(const Request& request) const {
  const int64_t vocabulary = decoder_->config().vocab_size;
  const auto check = [vocabulary](TokenId id, const char* where) {
    if (id < 0 || id >= vocabulary) {
      fail(ErrorCode::kInvalidArgument, "token {} {}: must be 0 to {}", id, where, vocabulary - 1);
    }
  };
  for (const TokenId id : request.prompt) check(id, "in the prompt");
  for (const TokenId id : request.stop_ids) check(id, "that stops");
  for (const auto& [id, bias] : request.sampling.logit_bias) check(id, "with a logit bias");
}

void Engine::cancel(RequestId id) {
  Sequence* sequence = scheduler_.find(id);
  if (sequence != nullptr) finish(*sequence, FinishReason::kCancelled);
}

std::vector<Event> Engine::step() {
  try {
    if (started_.sequences.empty()) start(scheduler_.schedule(), {});
    const Flight flight = std::exchange(started_, {});
    if (!flight.sequences.empty()) {
      follow(flight);
      settle(flight);
    }
  } catch (const Error& error) {
    fail_running(error);
  } catch (const std::bad_alloc&) {
    fail_running(Error(ErrorCode::kOutOfMemory, "the host has no memory for the step; run fewer or shorter requests"));
  }
  return std::exchange(events_, {});
}

// What a device reports says which operation failed, not on which sequence: so each is named with what it was.
void Engine::fail_running(const Error& error) {
  started_ = {};
  decoder_->drop_started();
  const size_t n_running = scheduler_.running().size();
  while (!scheduler_.running().empty()) {
    Sequence& sequence = *scheduler_.running().back();
    const std::string what = fmt::format("{} (request {}, of {} tokens, {} of them new; {} sequences in the step)",
                                         error.what(), sequence.id, sequence.n_tokens(), sequence.n_step, n_running);
    finish(sequence, FinishReason::kFailed, Error(error.code(), what));
  }
}

void Engine::start(std::span<Sequence* const> step, std::span<const int32_t> follows) {
  if (step.empty()) return;
  started_ = {.sequences = {step.begin(), step.end()}, .start = Sequence::Clock::now()};
  for (Sequence* sequence : step) {
    const bool decodes = sequence->n_new() <= 1 && sequence->n_cached > 0;
    (decodes ? started_.n_decode : started_.n_prefill) += sequence->n_step;
    sequence->n_cached += sequence->n_step;
  }
  collect(step, !follows.empty());
  decoder_->start(cache_,
                  {.tokens = tokens_, .logit_rows = logit_rows_, .argmax_rows = argmax_rows_, .follows = follows});
  for (const Sequence* sequence : step) scheduler_.store_prefix(*sequence);
}

bool Engine::is_last_token_next(const Sequence& sequence) const {
  return sequence.n_output() + 1 == sequence.request.max_new_tokens ||
         sequence.n_tokens() + 1 >= cache_.capacity().max_tokens;
}

// Starts the step after this one if all tokens that it needs will be on the device.
void Engine::follow(const Flight& flight) {
  if (!decoder_->can_follow(cache_, std::ssize(flight.sequences))) return;
  going_on_.clear();
  follows_.clear();
  for (size_t i = 0; i < flight.sequences.size(); ++i) {
    Sequence* sequence = flight.sequences[i];
    if (sequence == nullptr) continue;
    // What stays in the cache for a later turn must end with a token that is known.
    if (!has_choice(*sequence) || needs_logits(*sequence) || sequence->request.keep_cached) return;
    if (is_last_token_next(*sequence)) continue;
    going_on_.push_back(sequence);
    follows_.push_back(static_cast<int32_t>(i));
  }
  if (going_on_.empty() || !scheduler_.follow(going_on_)) return;
  start(going_on_, follows_);
  ++stats_.steps_ahead;
}

void Engine::settle(const Flight& flight) {
  choose(flight, decoder_->finish());
  count(flight);
  size_t n_taken = 0;
  for (Sequence* sequence : flight.sequences) {
    if (sequence == nullptr) {
      ++n_taken;
      continue;
    }
    if (!has_choice(*sequence)) continue;
    Choice& choice = chosen_[n_taken++];
    for (Sequence* twin : scheduler_.start_twins(*sequence)) take(*twin, choose_from(*twin, choice.logits));
    take(*sequence, std::move(choice));
  }
}

// A sequence whose prompt goes on in a later step needs no token yet.
void Engine::collect(std::span<Sequence* const> step, bool is_following) {
  tokens_.clear();
  logit_rows_.clear();
  argmax_rows_.clear();
  int32_t n_rows = 0;
  for (const Sequence* sequence : step) {
    const int32_t first_row = n_rows;
    n_rows += static_cast<int32_t>(sequence->n_step);
    if (!is_following) {
      const auto end = sequence->tokens.begin() + sequence->n_cached;
      tokens_.insert(tokens_.end(), end - sequence->n_step, end);
    }
    for (const int64_t row : rows_to_score(*sequence)) logit_rows_.push_back(first_row + static_cast<int32_t>(row));
    if (!has_choice(*sequence)) continue;
    auto& rows = needs_logits(*sequence) ? logit_rows_ : argmax_rows_;
    rows.push_back(n_rows - 1);
  }
}

void Engine::choose(const Flight& flight, const DecoderOutput& output) {
  chosen_.clear();
  int64_t n_logits = 0;
  size_t n_argmax = 0;
  for (Sequence* sequence : flight.sequences) {
    if (sequence == nullptr) {  // of a step that followed another: all its tokens were chosen on the device
      chosen_.push_back({output.argmax[n_argmax++]});
      continue;
    }
    tell_scores(*sequence, output, n_logits);
    if (!has_choice(*sequence)) continue;
    if (!needs_logits(*sequence)) {
      chosen_.push_back({output.argmax[n_argmax++]});
      continue;
    }
    chosen_.push_back(choose_from(*sequence, row_of(output, n_logits++)));
  }
}

Engine::Choice Engine::choose_from(Sequence& sequence, std::span<const float> logits) {
  const Request& request = sequence.request;
  Choice choice{.token = sequence.sampler.sample(logits, banned(sequence)), .logits = logits};
  if (request.n_logprobs) choice.score = score_token(logits, choice.token, *request.n_logprobs);
  return choice;
}

// Those of the prompt's tokens that follow the rows of this step. A sequence that is computed again tells nothing
// twice.
void Engine::tell_scores(Sequence& sequence, const DecoderOutput& output, int64_t& row) {
  const auto rows = rows_to_score(sequence);
  if (rows.empty()) return;
  Event& event = add_event(sequence.id);
  for (size_t i = 0; i < rows.size(); ++i) {
    const TokenId token = sequence.request.prompt[static_cast<size_t>(sequence.n_scored++)];
    event.prompt_scores.push_back(score_token(row_of(output, row++), token, *sequence.request.n_logprobs));
  }
}

// A step's time begins when the one before it has ended.
void Engine::count(const Flight& flight) {
  const auto start = std::max(flight.start, settled_);
  settled_ = Sequence::Clock::now();
  const double per_row = seconds_between(start, settled_) / static_cast<double>(flight.n_prefill + flight.n_decode);
  stats_.prefill_tokens += flight.n_prefill;
  stats_.decode_tokens += flight.n_decode;
  stats_.prefill_seconds += per_row * static_cast<double>(flight.n_prefill);
  stats_.decode_seconds += per_row * static_cast<double>(flight.n_decode);
  ++stats_.steps;
  stats_.max_running = std::max(stats_.max_running, std::ssize(flight.sequences));
}

void Engine::take(Sequence& sequence, Choice choice) {
  const Request& request = sequence.request;
  if (std::ranges::find(request.stop_ids, choice.token) != request.stop_ids.end()) {
    finish(sequence, FinishReason::kStop);
    events_.back().finish->stop_id = choice.token;
    events_.back().score = std::move(choice.score);
    return;
  }
  sequence.tokens.push_back(choice.token);
  Event& event = add_event(sequence.id);
  event.token = choice.token;
  event.n_reused = sequence.n_reused;
  event.score = std::move(choice.score);
  const bool at_limit = sequence.n_output() == request.max_new_tokens;
  const bool at_end = sequence.n_tokens() >= cache_.capacity().max_tokens;
  if (at_limit || at_end) finish(sequence, FinishReason::kLength);
}

void Engine::finish(Sequence& sequence, FinishReason reason, std::optional<Error> error) {
  const std::unique_ptr<Sequence> ended = scheduler_.remove(sequence);
  std::ranges::replace(started_.sequences, ended.get(), static_cast<Sequence*>(nullptr));
  Finish end{.reason = reason, .error = std::move(error)};
  end.n_prompt = ended->n_prompt();
  end.n_output = ended->n_output();
  end.queue_seconds = seconds_between(ended->submitted, ended->started.value_or(Sequence::Clock::now()));
  if (ended->cache_id >= 0) end.kv = cache_.memory(ended->cache_id);
  add_event(ended->id).finish = std::move(end);
  scheduler_.leave_cache(*ended, ended->request.keep_cached && reason != FinishReason::kFailed);
}

Event& Engine::add_event(RequestId id) {
  Event& event = events_.emplace_back();
  event.id = id;
  return event;
}

EngineStats Engine::stats() const {
  EngineStats stats = stats_;
  stats.preemptions = scheduler_.n_preemptions();
  stats.prefix_queries = scheduler_.prefix_counts().queries;
  stats.prefix_hits = scheduler_.prefix_counts().hits;
  return stats;
}

}  // namespace kivi
