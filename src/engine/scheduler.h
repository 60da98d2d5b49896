// Which sequences run in the next step. All that run decode together; those that wait come in first in, first out, as
// pages become free. When pages run out, the youngest sequence gives up its pages and is computed again later.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/request.h"

namespace kivi {

// A request on its way.
struct Sequence {
  RequestId id = 0;
  Request request;
  Sampler sampler;
  std::vector<TokenId> tokens;  // prompt and output so far
  SequenceId cache_id = -1;     // while it runs
  int64_t n_cached = 0;         // tokens in the cache; the others are the new ones of the next step

  Sequence(RequestId id_, Request request_)
      : id(id_), request(std::move(request_)), sampler(request.sampling, request.prompt), tokens(request.prompt) {}

  int64_t n_prompt() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t n_output() const { return static_cast<int64_t>(tokens.size()) - n_prompt(); }
  int64_t n_new() const { return static_cast<int64_t>(tokens.size()) - n_cached; }
};

class Scheduler {
 public:
  // Sequences whose prompts together pass max_step_tokens do not start in the same step; a single longer one does.
  Scheduler(KvCache& cache, int64_t max_step_tokens) : cache_(&cache), max_step_tokens_(max_step_tokens) {}

  void add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }
  bool idle() const { return waiting_.empty() && running_.empty(); }
  std::span<const std::unique_ptr<Sequence>> running() const { return running_; }
  int64_t n_preemptions() const { return n_preemptions_; }

  // Chooses the sequences of the next step, oldest first, and reserves their pages in the cache. Throws
  // Error{kOutOfMemory} if the only one that runs has no room.
  std::span<const std::unique_ptr<Sequence>> schedule();
  // Takes a sequence out, running or waiting; it still has its place in the cache. Null if there is none.
  std::unique_ptr<Sequence> remove(RequestId id);
  // Ends the sequence's use of the cache. Kept, its tokens stay for a later sequence that begins with them.
  void leave_cache(Sequence& sequence, bool keep);

 private:
  struct Kept {
    SequenceId cache_id = -1;
    std::vector<TokenId> tokens;
  };

  void admit();
  bool enter_cache(Sequence& sequence);
  bool continue_kept(Sequence& sequence);
  bool drop_oldest_kept();
  bool reserve();
  void make_room();

  KvCache* cache_;
  int64_t max_step_tokens_;
  int64_t n_preemptions_ = 0;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first: requests come in in the order of their ids
  std::deque<Kept> kept_;
};

}  // namespace kivi
