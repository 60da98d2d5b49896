#include "engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace kivi {

std::span<Sequence* const> Scheduler::schedule() {
  int64_t n_left = options_.max_step_tokens;
  continue_running(n_left);
  admit(n_left);
  while (!step_.empty() && !reserve()) make_room();
  return step_;
}

bool Scheduler::follow(std::span<Sequence* const> sequences) {
  // The forecast changes as sequences grow, so those that wait ask again now and then.
  constexpr int64_t kMostFollowed = 8;
  if (!waiting_.empty() && (may_admit_ || n_followed_ == kMostFollowed)) return false;
  step_.assign(sequences.begin(), sequences.end());
  for (Sequence* sequence : step_) sequence->n_step = 1;
  ++n_followed_;
  return reserve();
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  Sequence* const leader = find_leader(sequence->request);
  if (leader == nullptr) {
    may_admit_ = true;
    waiting_.push_back(std::move(sequence));
  } else {
    leader->twins.push_back(std::move(sequence));
  }
}

Sequence* Scheduler::find_leader(const Request& request) const {
  if (!request.twin || request.scores_prompt) return nullptr;
  const auto is_it = [&](const auto& other) {
    return other->id == *request.twin && other->n_output() == 0 && other->n_cached < other->n_prompt() &&
           other->request.prompt == request.prompt && other->request.cuts == request.cuts;
  };
  const auto running = std::ranges::find_if(running_, is_it);
  if (running != running_.end()) return running->get();
  const auto waiting = std::ranges::find_if(waiting_, is_it);
  return waiting == waiting_.end() ? nullptr : waiting->get();
}

int64_t Scheduler::n_waiting() const {
  int64_t n = std::ssize(waiting_);
  for (const auto& sequence : waiting_) n += std::ssize(sequence->twins);
  for (const auto& sequence : running_) n += std::ssize(sequence->twins);
  return n;
}

// Of the chunk that begins there, whether or not the sequence is that long. Cuts that would make chunks much shorter
// than a step are passed over: each chunk reads all weights.
int64_t Scheduler::chunk_end(const Sequence& sequence, int64_t begin) const {
  constexpr int64_t kLeastPart = 4;
  const std::vector<int64_t>& cuts = sequence.request.cuts;
  const int64_t end = begin + options_.max_step_tokens;
  const int64_t least = begin + std::max<int64_t>(1, options_.max_step_tokens / kLeastPart);
  const auto cut = std::ranges::lower_bound(cuts, least);
  return cut == cuts.end() ? end : std::min(*cut, end);
}

// Of all chunks from the first token on that end within n_tokens.
std::vector<int64_t> Scheduler::chunk_ends(const Sequence& sequence, int64_t n_tokens) const {
  std::vector<int64_t> ends;
  for (int64_t end = chunk_end(sequence, 0); end <= n_tokens; end = chunk_end(sequence, end)) ends.push_back(end);
  return ends;
}

// Tokens of the chunk that follows the cached ones.
int64_t Scheduler::chunk_after(const Sequence& sequence, int64_t n_cached) const {
  return std::min(sequence.n_tokens(), chunk_end(sequence, n_cached)) - n_cached;
}

// What the step takes of a sequence's tokens; false if it has to wait.
bool Scheduler::take_tokens(Sequence& sequence, int64_t& n_left) const {
  const int64_t n = chunk_after(sequence, sequence.n_cached);
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
    if (decodes || take_tokens(*sequence, n_left)) step_.push_back(sequence.get());
  }
}

void Scheduler::forecast_running() {
  double shared_slabs = 0.0;
  for (const auto& sequence : running_) shared_slabs += sequence->shared_slabs;
  // What sequences shared when they came in may be held by fewer now.
  const double now = cache_->arena().layout().share_of_slabs(cache_->arena().extra_uses());
  const double part = shared_slabs == 0.0 ? 0.0 : std::min(1.0, now / shared_slabs);
  forecast_.clear();
  for (const auto& sequence : running_) {
    forecast_.add(sequence->n_tokens(), most_tokens(*sequence), part * sequence->shared_slabs);
  }
}

void Scheduler::admit(int64_t& n_left) {
  may_admit_ = n_left < options_.max_step_tokens;
  n_followed_ = 0;
  if (waiting_.empty()) return;
  forecast_running();
  while (!waiting_.empty() && enter_cache(*waiting_.front(), n_left)) {
    Sequence& next = *waiting_.front();
    // Not if the prefix that it was to reuse had to give way: then it begins with the next step.
    if (take_tokens(next, n_left)) step_.push_back(&next);
    start(std::move(waiting_.front()));
    waiting_.pop_front();
    may_admit_ = true;
  }
}

void Scheduler::start(std::unique_ptr<Sequence> sequence) {
  if (!sequence->started) {
    sequence->started = Sequence::Clock::now();
    if (options_.reuse_prefixes) {
      sequence->n_reused = sequence->is_chunked ? sequence->n_cached : 0;
      prefix_counts_.queries += sequence->n_prompt();
      prefix_counts_.hits += sequence->n_reused;
    }
  }
  forecast_.add(sequence->n_tokens(), most_tokens(*sequence));
  sequence->place = running_.size();
  running_.push_back(std::move(sequence));
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

// Gives it a place in the cache, with what is there of its tokens; false if it has to wait.
bool Scheduler::enter_cache(Sequence& sequence, int64_t n_left) {
  const auto kept = find_kept(sequence);
  if (kept != kept_.end()) {
    const int64_t n_cached = std::ssize(kept->tokens);
    if (chunk_after(sequence, n_cached) > n_left) return false;
    sequence.cache_id = kept->cache_id;
    sequence.n_cached = n_cached;
    sequence.is_chunked = false;
    kept_.erase(kept);
    return true;
  }
  std::optional<Prefix> prefix = find_prefix(sequence);
  const int64_t n_known = options_.skip_prompts ? sequence.n_tokens() - 1 : prefix ? prefix->n_tokens : 0;
  if (chunk_after(sequence, n_known) > n_left || !make_place(sequence, prefix)) return false;
  if (prefix && take_copy(sequence, prefix->n_tokens, *prefix, [&] { return cache_->fork_prefix(prefix->id); })) {
    return true;
  }
  sequence.cache_id = cache_->create();
  return !options_.skip_prompts || take_as_read(sequence);
}

// A prefix that is to be reused is the last one to give way.
bool Scheduler::make_place(const Sequence& sequence, std::optional<Prefix>& prefix) {
  const auto is_crowded = [&](double idle_slabs) { return !running_.empty() && !has_room(sequence, idle_slabs); };
  if (is_crowded(0.0)) return false;  // not even without those that are kept
  while (cache_->n_sequences() == cache_->capacity().max_sequences || is_crowded(kept_slabs())) {
    if (!drop_oldest_kept()) return false;
  }
  // Beside others, stored prefixes give way when their pages are needed.
  while (running_.empty() && !cache_->can_hold_now(sequence.n_tokens())) {
    if (drop_idle(prefix)) continue;
    if (!prefix) return false;
    prefixes_.drop(*std::exchange(prefix, std::nullopt));
  }
  return true;
}

// The sequence's place becomes what `fork` makes, once there is room for it.
template <typename Fork>
bool Scheduler::take_copy(Sequence& sequence, int64_t n_tokens, const std::optional<Prefix>& spared, Fork fork) {
  std::optional<SequenceId> copy = fork();
  while (!copy && drop_idle(spared)) copy = fork();
  if (!copy) return false;
  sequence.cache_id = *copy;
  sequence.n_cached = n_tokens;
  sequence.shared_slabs = cache_->arena().layout().share_of_slabs(cache_->shared_pages(*copy));
  return true;
}

std::optional<Scheduler::Prefix> Scheduler::find_prefix(const Sequence& sequence) {
  if (!options_.reuse_prefixes || sequence.request.scores_prompt) return std::nullopt;
  return prefixes_.find(sequence.tokens, chunk_ends(sequence, sequence.n_tokens() - 1));
}

void Scheduler::store_prefix(const Sequence& sequence) {
  const bool ends_chunk = chunk_end(sequence, sequence.n_cached - sequence.n_step) == sequence.n_cached;
  const bool is_prompt = sequence.is_chunked && sequence.n_cached <= sequence.n_prompt();
  if (!options_.reuse_prefixes || !ends_chunk || !is_prompt) return;
  prefixes_.add(sequence.cache_id, sequence.tokens, chunk_ends(sequence, sequence.n_cached));
}

std::vector<Sequence*> Scheduler::start_twins(Sequence& sequence) {
  std::vector<Sequence*> started;
  if (sequence.twins.empty()) return started;
  forecast_running();
  std::vector<std::unique_ptr<Sequence>> twins = std::exchange(sequence.twins, {});
  const auto enters = [&](Sequence& twin) {
    if (cache_->n_sequences() == cache_->capacity().max_sequences || !has_room(twin, 0.0)) return false;
    return take_copy(twin, sequence.n_cached, {}, [&] { return cache_->fork(sequence.cache_id); });
  };
  auto twin = twins.begin();
  for (; twin != twins.end() && enters(**twin); ++twin) {
    started.push_back(twin->get());
    start(std::move(*twin));
  }
  waiting_.insert(waiting_.begin(), std::move_iterator(twin), std::move_iterator(twins.end()));
  return started;
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
  sequence.is_chunked = false;
  return true;
}

Scheduler::KeptList::iterator Scheduler::find_kept(const Sequence& sequence) {
  return std::ranges::find_if(kept_, [&](const Kept& kept) {
    return !sequence.request.scores_prompt && kept.tokens.size() < sequence.tokens.size() &&
           std::equal(kept.tokens.begin(), kept.tokens.end(), sequence.tokens.begin());
  });
}

bool Scheduler::drop_idle(const std::optional<Prefix>& spared) {
  return drop_oldest_kept() || prefixes_.drop_oldest(spared);
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
  if (drop_idle({})) return;
  const auto youngest = std::ranges::max_element(running_, {}, [](const auto& sequence) { return sequence->id; });
  if (running_.size() == 1) {
    fail(ErrorCode::kOutOfMemory,
         "no room in the KV cache of {} bytes for {} tokens; raise --memory-fraction or --kv-memory",
         cache_->capacity_bytes(), (*youngest)->n_tokens());
  }
  std::erase(step_, youngest->get());
  auto twins = std::exchange((*youngest)->twins, {});
  std::unique_ptr<Sequence> sequence = remove(**youngest);
  sequence->twins = std::move(twins);
  if (sequence->n_cached > 0) ++n_preemptions_;
  leave_cache(*sequence, false);
  waiting_.push_front(std::move(sequence));
}

Sequence* Scheduler::find(RequestId id) const {
  const auto find_in = [id](const auto& sequences) -> Sequence* {
    for (const auto& sequence : sequences) {
      if (sequence->id == id) return sequence.get();
      const auto twin = std::ranges::find(sequence->twins, id, [](const auto& one) { return one->id; });
      if (twin != sequence->twins.end()) return twin->get();
    }
    return nullptr;
  };
  Sequence* running = find_in(running_);
  return running != nullptr ? running : find_in(waiting_);
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence& sequence) {
  may_admit_ = true;
  std::unique_ptr<Sequence> taken = sequence.cache_id < 0 ? take_waiting(sequence) : take_running(sequence);
  waiting_.insert(waiting_.begin(), std::move_iterator(taken->twins.begin()), std::move_iterator(taken->twins.end()));
  taken->twins.clear();
  return taken;
}

std::unique_ptr<Sequence> Scheduler::take_waiting(const Sequence& sequence) {
  const auto take_from = [&](auto& list) {
    const auto found = std::ranges::find(list, &sequence, &std::unique_ptr<Sequence>::get);
    if (found == list.end()) return std::unique_ptr<Sequence>();
    std::unique_ptr<Sequence> taken = std::move(*found);
    list.erase(found);
    return taken;
  };
  if (auto taken = take_from(waiting_)) return taken;
  for (const auto& other : running_) {
    if (auto taken = take_from(other->twins)) return taken;
  }
  for (const auto& other : waiting_) {
    if (auto taken = take_from(other->twins)) return taken;
  }
  fail(ErrorCode::kInternal, "request {}: is not in the queue", sequence.id);
}

std::unique_ptr<Sequence> Scheduler::take_running(const Sequence& sequence) {
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
  sequence.is_chunked = true;
  sequence.shared_slabs = 0.0;
}

}  // namespace kivi
