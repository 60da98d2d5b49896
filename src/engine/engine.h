// Runs requests on one model: each step() is one pass of the decoder over the next token of every sequence that runs
// and the prompts of those that start.
//
// Where the device runs by itself, it need not wait while the host looks at a step's tokens: the next step is started
// before they are known, each sequence going on with a token that only the device has. A sequence whose token turns out
// to be its last was then computed once too often, which nobody sees.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "model/decoder.h"

namespace kivi {

struct EngineOptions {
  KvConfig kv;
  KvCapacity capacity;  // max_tokens is the context: prompt and output of one request
  // Where the backend says what is free: part of it that pages and activations may take, if capacity has no bound.
  double memory_fraction = 0.9;
  // Tokens of prompts in a step, together. A longer prompt runs in chunks of this, each of which attends to the cache
  // as those before have left it.
  int64_t max_step_tokens = 8192;
  // Tokens that running sequences are expected to go on for, at most, when it is asked whether another one may start.
  // More: fewer of them are preempted; less: more of them run.
  int64_t horizon = 512;
  // What prompts leave in the cache at the ends of their chunks stays there for later ones that begin alike, as long as
  // nobody else needs the pages. It saves time and memory; outputs are the same.
  bool reuse_prefixes = false;
  bool skip_prompts = false;  // for measurements of decoding alone: the pages of prompts are taken as they are

  // Throws Error{kInvalidArgument} for what makes no sense on any device.
  void validate() const;
};

// A step's time is shared between prefill and decode by their rows.
struct EngineStats {
  int64_t prefill_tokens = 0;
  int64_t decode_tokens = 0;
  double prefill_seconds = 0.0;
  double decode_seconds = 0.0;
  int64_t prefix_queries = 0;  // tokens of prompts that were looked up among stored prefixes
  int64_t prefix_hits = 0;     // and found
  int64_t preemptions = 0;     // sequences that gave up their pages and are computed again
  int64_t steps = 0;
  int64_t steps_ahead = 0;  // those that were started before the one before them was done
  int64_t max_running = 0;  // sequences of a step

  // 0 if there were none.
  double prefill_tokens_per_s() const { return per_second(prefill_tokens, prefill_seconds); }
  double decode_tokens_per_s() const { return per_second(decode_tokens, decode_seconds); }

 private:
  static double per_second(int64_t n, double seconds) { return seconds > 0 ? static_cast<double>(n) / seconds : 0.0; }
};

// A prompt of up to max_step_tokens without cuts attends to its own keys and values in 16 bits, all at once. A sequence
// that was preempted is computed again that way, output included, so that its later tokens may differ from those of a
// run with more memory.
class Engine {
 public:
  // Backend and decoder must outlive the engine. Throws as KvCache does, and Error{kInvalidArgument} for options that
  // make no sense.
  Engine(Backend& backend, Decoder& decoder, const EngineOptions& options);
  ~Engine() { decoder_->drop_started(); }
  Engine(const Engine&) = delete;  // its scheduler points into it
  Engine& operator=(const Engine&) = delete;

  // Prepares the device for steps of every size, so that the first requests do not wait for it.
  void warm_up() { decoder_->record_ahead(cache_); }

  // Queues a request. One that can never be served ends with a kFailed event in the next step.
  RequestId submit(Request request);
  // Ends a request; its last event comes from the next step. No effect if it has ended.
  void cancel(RequestId id);
  // Whether step() has nothing to do.
  bool idle() const { return scheduler_.idle() && events_.empty() && started_.sequences.empty(); }
  // Runs one step. What goes wrong in it ends its requests with kFailed.
  std::vector<Event> step();

  EngineStats stats() const;
  const KvCache& cache() const { return cache_; }
  int64_t n_running() const { return std::ssize(scheduler_.running()); }
  int64_t n_waiting() const { return scheduler_.n_waiting(); }

 private:
  struct Choice {
    TokenId token = 0;
    std::optional<ScoredToken> score{};
    std::span<const float> logits{};  // that it was chosen from; empty: on the device
  };
  // A step that the device has been given.
  struct Flight {
    std::vector<Sequence*> sequences{};  // null: has ended since
    int64_t n_prefill = 0;               // tokens
    int64_t n_decode = 0;
    Sequence::Clock::time_point start{};
  };

  void check(const Request& request) const;
  void check_tokens(const Request& request) const;
  void start(std::span<Sequence* const> step, std::span<const int32_t> follows);
  void collect(std::span<Sequence* const> step, bool is_following);
  void follow(const Flight& flight);
  bool is_last_token_next(const Sequence& sequence) const;
  void settle(const Flight& flight);
  void choose(const Flight& flight, const DecoderOutput& output);
  void count(const Flight& flight);
  static Choice choose_from(Sequence& sequence, std::span<const float> logits);
  void tell_scores(Sequence& sequence, const DecoderOutput& output, int64_t& row);
  void take(Sequence& sequence, Choice choice);
  void fail_running(const Error& error);
  void finish(Sequence& sequence, FinishReason reason, std::optional<Error> error = {});
  Event& add_event(RequestId id);

  Decoder* decoder_;
  KvCache cache_;
  Scheduler scheduler_;
  EngineStats stats_;
  RequestId next_id_ = 0;
  std::vector<Event> events_;  // of the step that runs
  Flight started_;             // and not settled
  Sequence::Clock::time_point settled_{};

  // Of the step that runs, kept for their memory.
  std::vector<TokenId> tokens_;
  std::vector<int32_t> logit_rows_;
  std::vector<int32_t> argmax_rows_;
  std::vector<Choice> chosen_;  // of the sequences that have one
  std::vector<Sequence*> going_on_;
  std::vector<int32_t> follows_;
};

}  // namespace kivi
