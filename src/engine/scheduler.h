// Which sequences run in the next step, and how far. All that run decode together; those that wait come in first in,
// first out, when the cache will have room for them and for what the others grow by. When pages run out all the same,
// the youngest sequence gives up its pages and is computed again later.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/forecast.h"
#include "engine/prefix_index.h"
#include "engine/request.h"

namespace kivi {

// A request on its way.
struct Sequence {
  using Clock = std::chrono::steady_clock;

  RequestId id = 0;
  Request request;
  Sampler sampler;
  std::vector<TokenId> tokens;  // prompt and output so far
  SequenceId cache_id = -1;     // while it runs
  int64_t n_cached = 0;         // tokens in the cache, or on their way there: more than n_tokens() if one is not known
  int64_t n_step = 0;           // tokens of its step: those that were not cached, or a chunk of them
  size_t place = 0;             // among those that run
  int64_t n_reused = 0;         // of the prompt, when it first ran
  bool is_chunked = true;       // what is cached was computed in chunks of its own from the first token on
  double shared_slabs = 0.0;    // of what it holds, when it came in
  int64_t n_scored = 1;         // tokens of the prompt whose scores have been told; the first one has none
  Clock::time_point submitted = Clock::now();
  std::optional<Clock::time_point> started{};      // when it first ran
  std::vector<std::unique_ptr<Sequence>> twins{};  // that wait for its prompt

  Sequence(RequestId id_, Request request_)
      : id(id_), request(std::move(request_)), sampler(request.sampling, request.prompt), tokens(request.prompt) {}

  int64_t n_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t n_prompt() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t n_output() const { return n_tokens() - n_prompt(); }
  int64_t n_new() const { return n_tokens() - n_cached; }
};

struct SchedulerOptions {
  int64_t max_step_tokens = 0;  // of prompts in a step
  int64_t horizon = 0;          // of the forecast, tokens
  bool reuse_prefixes = false;  // of earlier prompts
  bool skip_prompts = false;    // take prompts as read, for measurements of decoding alone
};

// Tokens of prompts that began.
struct PrefixCounts {
  int64_t queries = 0;
  int64_t hits = 0;  // those that were in the cache
};

class Scheduler {
 public:
  Scheduler(KvCache& cache, const SchedulerOptions& options)
      : cache_(&cache), options_(options), forecast_(cache, options.horizon), prefixes_(cache) {}

  // Behind those that wait, or beside the sequence whose twin it is.
  void add(std::unique_ptr<Sequence> sequence);
  bool idle() const { return waiting_.empty() && running_.empty(); }
  std::span<const std::unique_ptr<Sequence>> running() const { return running_; }
  int64_t n_waiting() const;
  int64_t n_preemptions() const { return n_preemptions_; }
  const PrefixCounts& prefix_counts() const { return prefix_counts_; }

  // Chooses the sequences of the next step and reserves their pages in the cache. A prompt is cut into chunks of
  // max_step_tokens, or where its request allows it, whatever else there is, so that its tokens depend on nothing else;
  // a chunk is one whole step's or waits. Throws Error{kOutOfMemory} if the only one that runs has no room. Valid until
  // the next call.
  std::span<Sequence* const> schedule();
  // The step after it, of those of its sequences that go on, before their next tokens are known: reserves their pages.
  // False if something else should be scheduled: requests that may have room by now, or pages that are wanted.
  bool follow(std::span<Sequence* const> sequences);
  // After a step: the end of a chunk is stored for later prompts.
  void store_prefix(const Sequence& sequence);
  // After the step that ended the sequence's prompt: its twins that have room come in, with all of it cached. The
  // others wait as any sequence does.
  std::vector<Sequence*> start_twins(Sequence& sequence);
  // A sequence, running or waiting; null if there is none of that id.
  Sequence* find(RequestId id) const;
  // Takes it out; it still has its place in the cache. Its twins wait without it.
  std::unique_ptr<Sequence> remove(Sequence& sequence);
  // Ends the sequence's use of the cache. Kept, its tokens stay for a later sequence that begins with them.
  void leave_cache(Sequence& sequence, bool keep);

 private:
  struct Kept {
    SequenceId cache_id = -1;
    std::vector<TokenId> tokens;
  };
  using KeptList = std::deque<Kept>;
  using Prefix = PrefixIndex::Hit;

  int64_t chunk_end(const Sequence& sequence, int64_t begin) const;
  std::vector<int64_t> chunk_ends(const Sequence& sequence, int64_t n_tokens) const;
  int64_t chunk_after(const Sequence& sequence, int64_t n_cached) const;
  bool take_tokens(Sequence& sequence, int64_t& n_left) const;
  void continue_running(int64_t& n_left);
  void forecast_running();
  void admit(int64_t& n_left);
  void start(std::unique_ptr<Sequence> sequence);
  bool enter_cache(Sequence& sequence, int64_t n_left);
  bool make_place(const Sequence& sequence, std::optional<Prefix>& prefix);
  template <typename Fork>
  bool take_copy(Sequence& sequence, int64_t n_tokens, const std::optional<Prefix>& spared, Fork fork);
  Sequence* find_leader(const Request& request) const;
  std::unique_ptr<Sequence> take_waiting(const Sequence& sequence);
  std::unique_ptr<Sequence> take_running(const Sequence& sequence);
  bool has_room(const Sequence& sequence, double idle_slabs) const;
  double kept_slabs() const;
  KeptList::iterator find_kept(const Sequence& sequence);
  bool drop_oldest_kept();
  std::optional<Prefix> find_prefix(const Sequence& sequence);
  bool drop_idle(const std::optional<Prefix>& spared);
  bool take_as_read(Sequence& sequence);
  bool reserve();
  void make_room();
  int64_t most_tokens(const Sequence& sequence) const;  // that it stores: its last one is not

  KvCache* cache_;
  SchedulerOptions options_;
  Forecast forecast_;
  int64_t n_preemptions_ = 0;
  PrefixCounts prefix_counts_;
  PrefixIndex prefixes_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in no order: the last one takes the place of one that ends
  KeptList kept_;
  bool may_admit_ = false;  // what waits might find room that it did not find last time
  int64_t n_followed_ = 0;  // steps since then
  std::vector<Sequence*> step_;
  std::vector<StepSequence> cache_step_;
};

}  // namespace kivi
