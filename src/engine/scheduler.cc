#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

namespace kivi {

std::span<Sequence* const> Scheduler::schedule() {
  int64_t n_left = options_.max_step_tokens;
  continue_running(n_left);
  admit(n_left);
  while (!step_.empty() && !reserve()) make_room();
  return step_;
}

// What the step takes of n_new tokens of a sequence; false if it has to wait.
bool Scheduler::take_tokens(Sequence& sequence, int64_t n_new, int64_t& n_left) const {
  const int64_t n = std::min(n_new, options_.max_step_tokens);
  if (n > n_left) return false;
  sequence.n_step = n;
  n_left -= n;
  return true;
}

void Scheduler::continue_running(int64_t& n_left) {
  step_.clear();
  for (const auto& sequence : running_) {
    sequence->n_step = 1;
    const bool decodes = sequence->n_new() == 1;
    if (decodes || take_tokens(*sequence, sequence->n_new(), n_left)) step_.push_back(sequence.get());
  }
}

void Scheduler::admit(int64_t& n_left) {
  if (waiting_.empty()) return;
  forecast_.clear();
  for (const auto& sequence : running_) forecast_.add(sequence->n_tokens(), most_tokens(*sequence));
  while (!waiting_.empty()) {
    Sequence& next = *waiting_.front();
    const auto kept = find_kept(next);
    const int64_t n_known = options_.skip_prompts ? next.n_tokens() - 1 : 0;
    const int64_t n_new = next.n_tokens() - (kept == kept_.end() ? n_known : std::ssize(kept->tokens));
    if (std::min(n_new, options_.max_step_tokens) > n_left) return;
    if (kept != kept_.end()) {
      next.cache_id = kept->cache_id;
      next.n_cached = std::ssize(kept->tokens);
      kept_.erase(kept);
      forecast_.add(next.n_tokens(), most_tokens(next));
    } else if (!enter_cache(next)) {
      return;
    }
    take_tokens(next, next.n_new(), n_left);
    if (!next.started) next.started = Sequence::Clock::now();
    next.place = running_.size();
    step_.push_back(&next);
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

int64_t Scheduler::most_tokens(const Sequence& sequence) const {
  const int64_t context = cache_->capacity().max_tokens;
  const int64_t n_most = sequence.request.max_new_tokens;
  return (n_most == 0 ? context : std::min(context, sequence.n_prompt() + n_most)) - 1;
}

double Scheduler::kept_slabs() const {
  double slabs = 0.0;
  for (const Kept& kept : kept_) slabs += forecast_.slabs_of(std::ssize(kept.tokens));
  return slabs;
}

bool Scheduler::has_room(const Sequence& sequence, double idle_slabs) const {
  return forecast_.has_room(sequence.n_tokens(), most_tokens(sequence), idle_slabs);
}

bool Scheduler::enter_cache(Sequence& sequence) {
  const auto may_start = [&] {
    if (cache_->n_sequences() == cache_->capacity().max_sequences) return false;
    return running_.empty() ? cache_->can_hold_now(sequence.n_tokens()) : has_room(sequence, kept_slabs());
  };
  if (!running_.empty() && !has_room(sequence, 0.0)) return false;  // not even without those that are kept
  while (!may_start()) {
    if (!drop_oldest_kept()) return false;
  }
  forecast_.add(sequence.n_tokens(), most_tokens(sequence));
  sequence.cache_id = cache_->create();
  return !options_.skip_prompts || take_as_read(sequence);
}

bool Scheduler::take_as_read(Sequence& sequence) {
  const StepSequence prompt{sequence.cache_id, static_cast<int32_t>(sequence.n_tokens() - 1)};
  if (prompt.n_new == 0) return true;
  if (!cache_->reserve({&prompt, 1})) {
    leave_cache(sequence, false);
    return false;
  }
  cache_->commit();
  sequence.n_cached = prompt.n_new;
  return true;
}

Scheduler::KeptList::iterator Scheduler::find_kept(const Sequence& sequence) {
  return std::ranges::find_if(kept_, [&](const Kept& kept) {
    return !sequence.request.scores_prompt && kept.tokens.size() < sequence.tokens.size() &&
           std::equal(kept.tokens.begin(), kept.tokens.end(), sequence.tokens.begin());
  });
}

bool Scheduler::drop_oldest_kept() {
  if (kept_.empty()) return false;
  cache_->release(kept_.front().cache_id);
  kept_.pop_front();
  return true;
}

bool Scheduler::reserve() {
  cache_step_.clear();
  for (const Sequence* sequence : step_) {
    cache_step_.push_back({sequence->cache_id, static_cast<int32_t>(sequence->n_step)});
  }
  return cache_->reserve(cache_step_);
}

void Scheduler::make_room() {
  if (drop_oldest_kept()) return;
  const auto youngest = std::ranges::max_element(running_, {}, [](const auto& sequence) { return sequence->id; });
  if (running_.size() == 1) {
    fail(ErrorCode::kOutOfMemory,
         "no room in the KV cache of {} bytes for {} tokens; raise --memory-fraction or --kv-memory",
         cache_->capacity_bytes(), (*youngest)->n_tokens());
  }
  std::erase(step_, youngest->get());
  std::unique_ptr<Sequence> sequence = remove(**youngest);
  if (sequence->n_cached > 0) ++n_preemptions_;
  leave_cache(*sequence, false);
  waiting_.push_front(std::move(sequence));
}

Sequence* Scheduler::find(RequestId id) const {
  const auto find_in = [id](const auto& sequences) -> Sequence* {
    const auto found = std::ranges::find_if(sequences, [id](const auto& sequence) { return sequence->id == id; });
    return found == sequences.end() ? nullptr : found->get();
  };
  Sequence* running = find_in(running_);
  return running != nullptr ? running : find_in(waiting_);
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence& sequence) {
  if (sequence.cache_id < 0) {
    const auto waiting = std::ranges::find(waiting_, &sequence, &std::unique_ptr<Sequence>::get);
    std::unique_ptr<Sequence> taken = std::move(*waiting);
    waiting_.erase(waiting);
    return taken;
  }
  const size_t place = sequence.place;
  std::swap(running_[place], running_.back());
  running_[place]->place = place;
  std::unique_ptr<Sequence> taken = std::move(running_.back());
  running_.pop_back();
  return taken;
}

void Scheduler::leave_cache(Sequence& sequence, bool keep) {
  if (sequence.cache_id < 0) return;
  if (keep && sequence.n_cached > 0) {
    kept_.push_back({sequence.cache_id, {sequence.tokens.begin(), sequence.tokens.begin() + sequence.n_cached}});
  } else {
    cache_->release(sequence.cache_id);
  }
  sequence.cache_id = -1;
  sequence.n_cached = 0;
}

}  // namespace kivi
