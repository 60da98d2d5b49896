#include "cache/kv_cache.h"

#include <algorithm>

#include "core/error.h"

namespace kivi {
namespace {

using format::WindowPolicy;

const KvCapacity& checked(const KvCapacity& capacity, const KvConfig& config, const KvShape& shape) {
  config.validate(shape);
  if (capacity.max_tokens < 1 || capacity.max_sequences < 1) {
    fail(ErrorCode::kInvalidArgument, "KV cache for {} sequences of {} tokens: both must be at least 1",
         capacity.max_sequences, capacity.max_tokens);
  }
  return capacity;
}

TableWidths table_widths(const KvConfig& config, int64_t max_tokens) {
  return {.packed = std::max<int64_t>(1, most_pages_of(config, max_tokens).packed),
          .keys = config.key_policy().n_slots(max_tokens),
          .values = config.value_policy().n_slots(max_tokens)};
}

// Slabs of a kind are opened only when all others of it are full, so that whatever order pages come and go in, they
// need no more than their greatest number does.
int64_t n_slabs(const SlabLayout& layout, const KvConfig& config, const KvCapacity& capacity) {
  const KvPages each = most_pages_of(config, capacity.max_tokens);
  const int64_t most = layout.n_slabs({capacity.max_sequences * each.packed, capacity.max_sequences * each.window});
  if (capacity.memory_bytes == 0) return most;
  if (capacity.memory_bytes < layout.slab_bytes) {
    fail(ErrorCode::kOutOfMemory,
         "KV cache of {} bytes: its smallest part takes {}; raise --memory-fraction or --kv-memory",
         capacity.memory_bytes, layout.slab_bytes);
  }
  return std::min(most, capacity.memory_bytes / layout.slab_bytes);
}

}  // namespace

KvCache::KvCache(Backend& backend, const KvShape& shape, const KvConfig& config, const KvCapacity& capacity)
    : shape_(shape),
      config_(config),
      capacity_(checked(capacity, config, shape)),
      layout_(config.layout(shape)),
      key_policy_(config.key_policy()),
      value_policy_(config.value_policy()),
      window_dtype_(window_dtype(backend.activation_dtype())),
      widths_(table_widths(config, capacity.max_tokens)),
      arena_(backend, slab_layout(shape, config), n_slabs(slab_layout(shape, config), config, capacity)),
      tables_(backend, capacity.max_sequences, widths_),
      sequences_(static_cast<size_t>(capacity.max_sequences)),
      row_owners_(static_cast<size_t>(capacity.max_sequences)) {
  layout_.order = backend.code_order();
  for (SequenceId id = capacity.max_sequences; id-- > 0;) free_ids_.push_back(id);
}

KvCache::Sequence& KvCache::at(SequenceId id) {
  if (id < 0 || id >= capacity_.max_sequences || !sequences_[id].alive)
    fail(ErrorCode::kInternal, "no sequence {}", id);
  return sequences_[id];
}

SequenceId KvCache::create() {
  if (free_ids_.empty()) {
    fail(ErrorCode::kOutOfMemory, "KV cache: all {} sequences are in use; release one or raise the number of sequences",
         capacity_.max_sequences);
  }
  const SequenceId id = free_ids_.back();
  free_ids_.pop_back();
  sequences_[id] = {.alive = true,
                    .serial = next_serial_++,
                    .pages = std::vector<PageId>(static_cast<size_t>(widths_.row()), kNoPage)};
  return id;
}

void KvCache::release(SequenceId id) {
  Sequence& sequence = at(id);
  for (PageId& page : sequence.pages) free_page(page);
  sequence = {};
  free_ids_.push_back(id);
  std::erase_if(step_, [id](const StepSequence& entry) { return entry.id == id; });
}

void KvCache::free_page(PageId& page) {
  if (page == kNoPage) return;
  arena_.give_back(page);
  page = kNoPage;
}

bool KvCache::can_ever_hold(int64_t n_tokens) const {
  return n_tokens <= capacity_.max_tokens &&
         arena_.layout().n_slabs(most_pages_of(config_, n_tokens)) <= arena_.n_slabs();
}

bool KvCache::can_hold_now(int64_t n_tokens) const {
  return can_ever_hold(n_tokens) && arena_.has_room(most_pages_of(config_, n_tokens));
}

KvPages KvCache::missing_pages(const Sequence& sequence, int64_t n_after) const {
  KvPages missing{.packed = pages_of(config_, n_after).packed - sequence.n_packed_pages};
  const auto count = [&](const WindowPolicy& policy, const WindowSpan& before, int64_t first_slot, int64_t n_slots) {
    for_each_entering_slot(policy, static_cast<int32_t>(n_slots), before, window_span(policy, n_after),
                           [&](int32_t slot) { missing.window += sequence.pages[first_slot + slot] == kNoPage; });
  };
  count(key_policy_, sequence.keys, widths_.packed, widths_.keys);
  count(value_policy_, sequence.values, widths_.packed + widths_.keys, widths_.values);
  return missing;
}

// Their columns are added to changed_.
void KvCache::take_pages(Sequence& sequence, int64_t n_after) {
  const auto take = [&](PageKind kind, int64_t column) {
    sequence.pages[column] = arena_.take(kind);
    changed_.push_back(static_cast<int32_t>(column));
  };
  const int64_t n_packed_pages = pages_of(config_, n_after).packed;
  while (sequence.n_packed_pages < n_packed_pages) take(PageKind::kPacked, sequence.n_packed_pages++);
  const auto fill = [&](const WindowPolicy& policy, const WindowSpan& before, int64_t first_slot, int64_t n_slots) {
    for_each_entering_slot(policy, static_cast<int32_t>(n_slots), before, window_span(policy, n_after),
                           [&](int32_t slot) {
                             if (sequence.pages[first_slot + slot] == kNoPage)
                               take(PageKind::kWindow, first_slot + slot);
                           });
  };
  fill(key_policy_, sequence.keys, widths_.packed, widths_.keys);
  fill(value_policy_, sequence.values, widths_.packed + widths_.keys, widths_.values);
}

void KvCache::free_left_pages(Sequence& sequence, int64_t n_after) {
  const auto free = [&](const WindowPolicy& policy, WindowSpan& span, int64_t first_slot, int64_t n_slots) {
    const WindowSpan after = window_span(policy, n_after);
    for_each_leaving_slot(policy, static_cast<int32_t>(n_slots), span, after,
                          [&](int32_t slot) { free_page(sequence.pages[first_slot + slot]); });
    span = after;
  };
  free(key_policy_, sequence.keys, widths_.packed, widths_.keys);
  free(value_policy_, sequence.values, widths_.packed + widths_.keys, widths_.values);
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
  if (!arena_.has_room(missing)) return false;
  step_.assign(step.begin(), step.end());
  fill_tables();
  return true;
}

void KvCache::fill_tables() {
  tables_.begin();
  for (int64_t b = 0; b < std::ssize(step_); ++b) {
    Sequence& sequence = at(step_[b].id);
    changed_.clear();
    take_pages(sequence, sequence.n_tokens + step_[b].n_new);
    tables_.add(static_cast<int32_t>(sequence.n_tokens), step_[b].n_new);
    if (sequence.table_row == b && row_owners_[b] == sequence.serial) {
      tables_.set_columns(sequence.pages, changed_);
    } else {
      tables_.set_row(sequence.pages);
      sequence.table_row = b;
      row_owners_[b] = sequence.serial;
    }
  }
  tables_.end();
}

format::KvBatchView KvCache::view(int layer, int64_t n_sequences) const {
  const SlabLayout& slabs = arena_.layout();
  format::KvBatchView view;
  view.layout = layout_;
  view.key_policy = key_policy_;
  view.value_policy = value_policy_;
  view.packed_pages = arena_.data() + layer * (slabs.packed_page_bytes / shape_.n_layers);
  view.packed_stride = slabs.granule_bytes;
  view.window_pages = arena_.data() + layer * (slabs.window_page_bytes / shape_.n_layers);
  view.window_stride = slabs.granule_bytes;
  view.window_dtype = window_dtype_;
  view.packed_table = tables_.packed(n_sequences);
  view.key_window_table = tables_.keys(n_sequences);
  view.value_window_table = tables_.values(n_sequences);
  view.n_past = tables_.n_past(n_sequences);
  return view;
}

void KvCache::commit() {
  for (const StepSequence& entry : step_) {
    Sequence& sequence = at(entry.id);
    sequence.n_tokens += entry.n_new;
    free_left_pages(sequence, sequence.n_tokens);
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

}  // namespace kivi
