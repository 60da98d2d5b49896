#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

namespace kivi {

std::span<const std::unique_ptr<Sequence>> Scheduler::schedule() {
  admit();
  while (!running_.empty() && !reserve()) make_room();
  return running_;
}

void Scheduler::admit() {
  int64_t n_rows = 0;
  for (const auto& sequence : running_) n_rows += sequence->n_new();
  while (!waiting_.empty()) {
    Sequence& next = *waiting_.front();
    if (!running_.empty() && n_rows + next.n_new() > max_step_tokens_) return;
    if (!enter_cache(next)) return;
    n_rows += next.n_new();
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

bool Scheduler::enter_cache(Sequence& sequence) {
  if (continue_kept(sequence)) return true;
  const auto n_tokens = static_cast<int64_t>(sequence.tokens.size());
  const auto has_room = [&] {
    const size_t n_alive = running_.size() + kept_.size();
    return n_alive < static_cast<size_t>(cache_->capacity().max_sequences) && cache_->can_hold_now(n_tokens);
  };
  while (!has_room()) {
    if (!drop_oldest_kept()) return false;
  }
  sequence.cache_id = cache_->create();
  return true;
}

bool Scheduler::continue_kept(Sequence& sequence) {
  const auto begins_sequence = [&](const Kept& kept) {
    return kept.tokens.size() < sequence.tokens.size() &&
           std::equal(kept.tokens.begin(), kept.tokens.end(), sequence.tokens.begin());
  };
  const auto kept = std::find_if(kept_.begin(), kept_.end(), begins_sequence);
  if (kept == kept_.end()) return false;
  sequence.cache_id = kept->cache_id;
  sequence.n_cached = static_cast<int64_t>(kept->tokens.size());
  kept_.erase(kept);
  return true;
}

bool Scheduler::drop_oldest_kept() {
  if (kept_.empty()) return false;
  cache_->release(kept_.front().cache_id);
  kept_.pop_front();
  return true;
}

bool Scheduler::reserve() {
  std::vector<StepSequence> step;
  for (const auto& sequence : running_) {
    step.push_back({sequence->cache_id, static_cast<int32_t>(sequence->n_new())});
  }
  return cache_->reserve(step);
}

void Scheduler::make_room() {
  if (drop_oldest_kept()) return;
  if (running_.size() == 1) {
    fail(ErrorCode::kOutOfMemory, "no room in the KV cache of {} bytes for {} tokens; allow it more memory",
         cache_->capacity_bytes(), running_.front()->tokens.size());
  }
  std::unique_ptr<Sequence> youngest = std::move(running_.back());
  running_.pop_back();
  if (youngest->n_cached > 0) ++n_preemptions_;
  leave_cache(*youngest, false);
  waiting_.push_front(std::move(youngest));
}

std::unique_ptr<Sequence> Scheduler::remove(RequestId id) {
  const auto take_from = [id](auto& queue) -> std::unique_ptr<Sequence> {
    const auto found = std::find_if(queue.begin(), queue.end(), [id](const auto& s) { return s->id == id; });
    if (found == queue.end()) return nullptr;
    std::unique_ptr<Sequence> sequence = std::move(*found);
    queue.erase(found);
    return sequence;
  };
  std::unique_ptr<Sequence> sequence = take_from(running_);
  return sequence ? std::move(sequence) : take_from(waiting_);
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
