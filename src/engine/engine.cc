#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace kivi {

Engine::Engine(Backend& backend, Decoder& decoder, const EngineOptions& options)
    : decoder_(&decoder),
      cache_(backend, decoder.kv_shape(), options.kv, options.capacity),
      scheduler_(cache_, options.max_step_tokens) {}

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
         "{} tokens of prompt and output: more than the KV cache of {} bytes can hold; ask for fewer or give it more",
         n_most, cache_.capacity_bytes());
  }
  const int64_t vocabulary = decoder_->config().vocab_size;
  for (const TokenId id : request.prompt) {
    if (id < 0 || id >= vocabulary) {
      fail(ErrorCode::kInvalidArgument, "token {} in the prompt: must be 0 to {}", id, vocabulary - 1);
    }
  }
}

void Engine::cancel(RequestId id) {
  finish(id, FinishReason::kCancelled);
}

std::vector<Event> Engine::step() {
  try {
    const auto sequences = scheduler_.schedule();
    if (!sequences.empty()) run(sequences);
  } catch (const Error& error) {
    while (!scheduler_.running().empty()) finish(scheduler_.running().front()->id, FinishReason::kFailed, error);
  }
  return std::exchange(events_, {});
}

void Engine::run(std::span<const std::unique_ptr<Sequence>> sequences) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<TokenId> tokens;
  std::vector<int32_t> last_rows;
  for (const auto& sequence : sequences) {
    tokens.insert(tokens.end(), sequence->tokens.end() - sequence->n_new(), sequence->tokens.end());
    last_rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
  }
  const TensorView<const float, 2> logits = decoder_->step(cache_, {.tokens = tokens, .logit_rows = last_rows}).logits;

  std::vector<TokenId> chosen;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const TensorView<const float, 1> row = logits[static_cast<int64_t>(i)];
    chosen.push_back(sequences[i]->sampler.sample({row.data, static_cast<size_t>(row.size())}));
  }
  count(sequences, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());

  std::vector<Sequence*> by_row;  // take() removes sequences that end
  for (const auto& sequence : sequences) by_row.push_back(sequence.get());
  for (size_t i = 0; i < by_row.size(); ++i) take(*by_row[i], chosen[i]);
}

void Engine::count(std::span<const std::unique_ptr<Sequence>> sequences, double seconds) {
  int64_t n_prefill = 0;
  int64_t n_decode = 0;
  for (const auto& sequence : sequences) {
    (sequence->n_new() == 1 && sequence->n_cached > 0 ? n_decode : n_prefill) += sequence->n_new();
  }
  const double per_row = seconds / static_cast<double>(n_prefill + n_decode);
  stats_.prefill_tokens += n_prefill;
  stats_.decode_tokens += n_decode;
  stats_.prefill_seconds += per_row * static_cast<double>(n_prefill);
  stats_.decode_seconds += per_row * static_cast<double>(n_decode);
}

void Engine::take(Sequence& sequence, TokenId token) {
  const Request& request = sequence.request;
  sequence.n_cached = static_cast<int64_t>(sequence.tokens.size());
  if (std::find(request.stop_ids.begin(), request.stop_ids.end(), token) != request.stop_ids.end()) {
    finish(sequence.id, FinishReason::kStop);
    return;
  }
  sequence.tokens.push_back(token);
  add_event(sequence.id).token = token;
  const bool at_limit = sequence.n_output() == request.max_new_tokens;
  const bool at_end = static_cast<int64_t>(sequence.tokens.size()) >= cache_.capacity().max_tokens;
  if (at_limit || at_end) finish(sequence.id, FinishReason::kLength);
}

void Engine::finish(RequestId id, FinishReason reason, std::optional<Error> error) {
  const std::unique_ptr<Sequence> sequence = scheduler_.remove(id);
  if (!sequence) return;
  Finish end{.reason = reason, .error = std::move(error)};
  end.n_prompt = sequence->n_prompt();
  end.n_output = sequence->n_output();
  if (sequence->cache_id >= 0) end.kv = cache_.memory(sequence->cache_id);
  add_event(id).finish = std::move(end);
  scheduler_.leave_cache(*sequence, sequence->request.keep_cached && reason != FinishReason::kFailed);
}

Event& Engine::add_event(RequestId id) {
  Event& event = events_.emplace_back();
  event.id = id;
  return event;
}

EngineStats Engine::stats() const {
  EngineStats stats = stats_;
  stats.preemptions = scheduler_.n_preemptions();
  return stats;
}

}  // namespace kivi
