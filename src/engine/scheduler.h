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
  int64_t n_cached = 0;         // tokens in the cache
  int64_t n_step = 0;           // tokens of the next step: those that are not cached, or a chunk of them
  size_t place = 0;             // among those that run
  int64_t n_scored = 1;         // tokens of the prompt whose scores have been told; the first one has none
  Clock::time_point submitted = Clock::now();
  std::optional<Clock::time_point> started{};  // when it first ran

  Sequence(RequestId id_, Request request_)
      : id(id_), request(std::move(request_)), sampler(request.sampling, request.prompt), tokens(request.prompt) {}

  int64_t n_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t n_prompt() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t n_output() const { return n_tokens() - n_prompt(); }
  int64_t n_new() const { return n_tokens() - n_cached; }
  bool completes() const { return n_step == n_new(); }  // the next step ends with a new token
};

struct SchedulerOptions {
  int64_t max_step_tokens = 0;  // of prompts in a step
  int64_t horizon = 0;          // of the forecast, tokens
  bool skip_prompts = false;    // take prompts as read, for measurements of decoding alone
};

class Scheduler {
 public:
  Scheduler(KvCache& cache, const SchedulerOptions& options)
      : cache_(&cache), options_(options), forecast_(cache, options.horizon) {}

  void add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }
  bool idle() const { return waiting_.empty() && running_.empty(); }
  std::span<const std::unique_ptr<Sequence>> running() const { return running_; }
  int64_t n_waiting() const { return std::ssize(waiting_); }
  int64_t n_preemptions() const { return n_preemptions_; }

  // Chooses the sequences of the next step and reserves their pages in the cache. A prompt of up to max_step_tokens is
  // one whole step's or waits; a longer one runs in chunks of that, whatever else there is, so that its tokens depend
  // on nothing else. Throws Error{kOutOfMemory} if the only one that runs has no room. Valid until the next call.
  std::span<Sequence* const> schedule();
  // A sequence, running or waiting; null if there is none of that id.
  Sequence* find(RequestId id) const;
  // Takes it out; it still has its place in the cache.
  std::unique_ptr<Sequence> remove(Sequence& sequence);
  // Ends the sequence's use of the cache. Kept, its tokens stay for a later sequence that begins with them.
  void leave_cache(Sequence& sequence, bool keep);

 private:
  struct Kept {
    SequenceId cache_id = -1;
    std::vector<TokenId> tokens;
  };
  using KeptList = std::deque<Kept>;

  bool take_tokens(Sequence& sequence, int64_t n_new, int64_t& n_left) const;
  void continue_running(int64_t& n_left);
  void admit(int64_t& n_left);
  bool enter_cache(Sequence& sequence);
  bool has_room(const Sequence& sequence, double idle_slabs) const;
  double kept_slabs() const;
  KeptList::iterator find_kept(const Sequence& sequence);
  bool drop_oldest_kept();
  bool take_as_read(Sequence& sequence);
  bool reserve();
  void make_room();
  int64_t most_tokens(const Sequence& sequence) const;  // that it stores: its last one is not

  KvCache* cache_;
  SchedulerOptions options_;
  Forecast forecast_;
  int64_t n_preemptions_ = 0;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in no order: the last one takes the place of one that ends
  KeptList kept_;
  std::vector<Sequence*> step_;
  std::vector<StepSequence> cache_step_;
};

}  // namespace kivi
