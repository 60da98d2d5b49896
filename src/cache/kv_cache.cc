#include "cache/kv_cache.h"

#include <algorithm>

#include "core/error.h"

namespace kivi {
namespace {

using format::kWindowPageTokens;
using format::WindowPolicy;

// Most pages a sequence holds at any moment until it has n_tokens, the middle of a step included.
KvPages most_pages(const KvConfig& config, int64_t n_tokens) {
  return {.packed = pages_of(config, n_tokens).packed,
          .window = config.key_policy().n_slots(n_tokens) + config.value_policy().n_slots(n_tokens)};
}

// Calls visit(slot) for every slot that holds a 16-bit token between steps, once a page.
template <typename Visit>
void for_each_slot(const WindowPolicy& policy, int64_t n_tokens, int32_t n_slots, Visit visit) {
  for (int64_t t = 0; t < std::min<int64_t>(policy.sinks, n_tokens); t += kWindowPageTokens)
    visit(policy.slot(t, n_slots));
  const int64_t begin = policy.window_begin(n_tokens) - policy.sinks;
  if (begin >= n_tokens - policy.sinks) return;
  for (int64_t t = begin / kWindowPageTokens * kWindowPageTokens; t < n_tokens - policy.sinks; t += kWindowPageTokens) {
    visit(policy.slot(policy.sinks + t, n_slots));
  }
}

// Gathers one row of a block table for the batch.
template <typename Row>
void fill_row(std::vector<int32_t>& table, size_t width, size_t b, const Row& row) {
  std::copy(row.begin(), row.end(), table.begin() + static_cast<std::ptrdiff_t>(b * width));
}

}  // namespace

KvCache::KvCache(Backend& backend, const KvShape& shape, const KvConfig& config, const KvCapacity& capacity)
    : backend_(&backend), shape_(shape), config_(config), capacity_(capacity) {
  config.validate(shape);
  if (capacity.max_tokens < 1 || capacity.max_sequences < 1) {
    fail(ErrorCode::kInvalidArgument, "KV cache for {} sequences of {} tokens: both must be at least 1",
         capacity.max_sequences, capacity.max_tokens);
  }
  key_policy_ = config.key_policy();
  value_policy_ = config.value_policy();
  layout_ = config.layout(shape);

  const KvPages most = most_pages(config, capacity.max_tokens);
  const int64_t packed_bytes = packed_page_bytes(shape, config);
  const int64_t window_bytes = window_page_bytes(shape);
  const int64_t all_bytes = capacity.max_sequences * (most.packed * packed_bytes + most.window * window_bytes);
  limit_bytes_ = capacity.memory_bytes > 0 ? std::min(capacity.memory_bytes, all_bytes) : all_bytes;
  const auto pool_pages = [&](int64_t each, int64_t page_bytes) {
    return page_bytes == 0 ? 0 : std::min(capacity.max_sequences * each, limit_bytes_ / page_bytes);
  };
  packed_pool_ = PagePool(backend, packed_bytes, pool_pages(most.packed, packed_bytes));
  window_pool_ = PagePool(backend, window_bytes, pool_pages(most.window, window_bytes));

  sequences_.resize(static_cast<size_t>(capacity.max_sequences));
  const int64_t n = capacity.max_sequences;
  packed_table_ = Tensor(backend, DType::kI32, {n, std::max<int64_t>(1, most.packed)});
  key_table_ = Tensor(backend, DType::kI32, {n, key_policy_.n_slots(capacity.max_tokens)});
  value_table_ = Tensor(backend, DType::kI32, {n, value_policy_.n_slots(capacity.max_tokens)});
  n_past_ = Tensor(backend, DType::kI32, {n});
  seq_begin_ = Tensor(backend, DType::kI32, {n + 1});
}

KvCache::Sequence& KvCache::at(SequenceId id) {
  if (id < 0 || id >= capacity_.max_sequences || !sequences_[id].alive)
    fail(ErrorCode::kInternal, "no sequence {}", id);
  return sequences_[id];
}
const KvCache::Sequence& KvCache::at(SequenceId id) const {
  return const_cast<KvCache*>(this)->at(id);
}

SequenceId KvCache::create() {
  for (SequenceId id = 0; id < capacity_.max_sequences; ++id) {
    Sequence& sequence = sequences_[id];
    if (sequence.alive) continue;
    sequence = {.alive = true,
                .n_tokens = 0,
                .packed = {},
                .key_window = std::vector<PageId>(key_table_.view().shape[1], kNoPage),
                .value_window = std::vector<PageId>(value_table_.view().shape[1], kNoPage)};
    return id;
  }
  fail(ErrorCode::kOutOfMemory, "KV cache: all {} sequences are in use; release one or raise the number of sequences",
       capacity_.max_sequences);
}

void KvCache::release(SequenceId id) {
  Sequence& sequence = at(id);
  for (const PageId page : sequence.packed) packed_pool_.give_back(page);
  for (const auto* window : {&sequence.key_window, &sequence.value_window}) {
    for (const PageId page : *window) {
      if (page != kNoPage) window_pool_.give_back(page);
    }
  }
  sequence = {};
  std::erase_if(step_, [id](const StepSequence& entry) { return entry.id == id; });
}

int64_t KvCache::n_tokens(SequenceId id) const {
  return at(id).n_tokens;
}

bool KvCache::can_ever_hold(int64_t n_tokens) const {
  if (n_tokens > capacity_.max_tokens) return false;
  const KvPages most = most_pages(config_, n_tokens);
  return most.packed <= packed_pool_.n_pages() && most.window <= window_pool_.n_pages() &&
         most.packed * packed_pool_.page_bytes() + most.window * window_pool_.page_bytes() <= limit_bytes_;
}

bool KvCache::can_hold_now(int64_t n_tokens) const {
  return can_ever_hold(n_tokens) && fits(most_pages(config_, n_tokens));
}

bool KvCache::fits(const KvPages& need) const {
  return need.packed <= packed_pool_.n_free() && need.window <= window_pool_.n_free() &&
         allocated_bytes() + need.packed * packed_pool_.page_bytes() + need.window * window_pool_.page_bytes() <=
             limit_bytes_;
}

KvPages KvCache::missing_pages(const Sequence& sequence, int64_t n_after) const {
  KvPages missing;
  missing.packed = pages_of(config_, n_after).packed - static_cast<int64_t>(sequence.packed.size());
  const auto count = [&](const WindowPolicy& policy, const std::vector<PageId>& window) {
    for_each_slot(policy, n_after, static_cast<int32_t>(window.size()),
                  [&](int32_t slot) { missing.window += window[slot] == kNoPage ? 1 : 0; });
  };
  count(key_policy_, sequence.key_window);
  count(value_policy_, sequence.value_window);
  return missing;
}

void KvCache::take_pages(Sequence& sequence, int64_t n_after) {
  const int64_t n_packed = pages_of(config_, n_after).packed;
  while (static_cast<int64_t>(sequence.packed.size()) < n_packed) sequence.packed.push_back(packed_pool_.take());
  const auto fill = [&](const WindowPolicy& policy, std::vector<PageId>& window) {
    for_each_slot(policy, n_after, static_cast<int32_t>(window.size()), [&](int32_t slot) {
      if (window[slot] == kNoPage) window[slot] = window_pool_.take();
    });
  };
  fill(key_policy_, sequence.key_window);
  fill(value_policy_, sequence.value_window);
}

void KvCache::free_left_pages(Sequence& sequence) {
  const auto free = [&](const WindowPolicy& policy, std::vector<PageId>& window) {
    std::vector<bool> live(window.size());
    for_each_slot(policy, sequence.n_tokens, static_cast<int32_t>(window.size()),
                  [&](int32_t slot) { live[slot] = true; });
    for (size_t slot = 0; slot < window.size(); ++slot) {
      if (live[slot] || window[slot] == kNoPage) continue;
      window_pool_.give_back(window[slot]);
      window[slot] = kNoPage;
    }
  };
  free(key_policy_, sequence.key_window);
  free(value_policy_, sequence.value_window);
}

bool KvCache::reserve(std::span<const StepSequence> step) {
  if (!step_.empty()) fail(ErrorCode::kInternal, "KV cache: a step is reserved already");
  KvPages missing;
  for (const StepSequence& entry : step) {
    const Sequence& sequence = at(entry.id);
    const int64_t n_after = sequence.n_tokens + entry.n_new;
    if (entry.n_new < 1) fail(ErrorCode::kInternal, "KV cache: a step of {} tokens", entry.n_new);
    if (n_after > capacity_.max_tokens) {
      fail(ErrorCode::kInvalidArgument,
           "sequence of {} tokens: the context is {}; shorten the prompt or raise --context", n_after,
           capacity_.max_tokens);
    }
    const KvPages need = missing_pages(sequence, n_after);
    missing.packed += need.packed;
    missing.window += need.window;
  }
  if (!fits(missing)) return false;
  for (const StepSequence& entry : step) take_pages(at(entry.id), at(entry.id).n_tokens + entry.n_new);
  step_.assign(step.begin(), step.end());
  upload_tables();
  return true;
}

void KvCache::upload_tables() {
  const size_t n = step_.size();
  const auto width = [](const Tensor& table) { return static_cast<size_t>(table.view().shape[1]); };
  std::vector<int32_t> packed(n * width(packed_table_), kNoPage);
  std::vector<int32_t> keys(n * width(key_table_));
  std::vector<int32_t> values(n * width(value_table_));
  std::vector<int32_t> n_past(n);
  std::vector<int32_t> begin(n + 1);
  for (size_t b = 0; b < n; ++b) {
    const Sequence& sequence = at(step_[b].id);
    fill_row(packed, width(packed_table_), b, sequence.packed);
    fill_row(keys, width(key_table_), b, sequence.key_window);
    fill_row(values, width(value_table_), b, sequence.value_window);
    n_past[b] = static_cast<int32_t>(sequence.n_tokens);
    begin[b + 1] = begin[b] + step_[b].n_new;
  }
  const auto upload = [&](const Tensor& to, const std::vector<int32_t>& from) {
    backend_->copy_to_device(to.view().data, from.data(), from.size() * sizeof(int32_t));
  };
  upload(packed_table_, packed);
  upload(key_table_, keys);
  upload(value_table_, values);
  upload(n_past_, n_past);
  upload(seq_begin_, begin);
}

format::KvBatchView KvCache::view(int layer) const {
  const auto n = static_cast<int64_t>(step_.size());
  const auto batch = [&](const Tensor& table) { return table.rows(n).as<const int32_t, 2>(); };
  const int64_t packed_stride = packed_pool_.page_bytes();
  const int64_t window_stride = window_pool_.page_bytes();
  format::KvBatchView view;
  view.layout = layout_;
  view.key_policy = key_policy_;
  view.value_policy = value_policy_;
  view.packed_pages = packed_stride == 0 ? nullptr : packed_pool_.data() + layer * (packed_stride / shape_.n_layers);
  view.packed_stride = packed_stride;
  view.window_pages = window_pool_.data() + layer * (window_stride / shape_.n_layers);
  view.window_stride = window_stride;
  view.window_dtype = DType::kF16;
  view.packed_table = batch(packed_table_);
  view.key_window_table = batch(key_table_);
  view.value_window_table = batch(value_table_);
  view.n_past = n_past_.rows(n).as<const int32_t, 1>();
  return view;
}

AnyView KvCache::seq_begin() const {
  return seq_begin_.rows(static_cast<int64_t>(step_.size()) + 1);
}

void KvCache::commit() {
  for (const StepSequence& entry : step_) {
    Sequence& sequence = at(entry.id);
    sequence.n_tokens += entry.n_new;
    free_left_pages(sequence);
  }
  step_.clear();
}

KvMemory KvCache::memory() const {
  KvMemory total;
  for (const Sequence& sequence : sequences_) {
    if (sequence.alive) total += memory_of(shape_, config_, sequence.n_tokens);
  }
  return total;
}

int64_t KvCache::allocated_bytes() const {
  return packed_pool_.n_used() * packed_pool_.page_bytes() + window_pool_.n_used() * window_pool_.page_bytes();
}

}  // namespace kivi
