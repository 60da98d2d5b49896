#include "cache/kv_cache.h"

#include <algorithm>

#include "core/error.h"

namespace kivi {
namespace {

const KvCapacity& checked(const KvCapacity& capacity, const KvConfig& config, const KvShape& shape) {
  config.validate(shape);
  if (capacity.max_tokens < 1 || capacity.max_sequences < 1) {
    fail(ErrorCode::kInvalidArgument, "KV cache for {} sequences of {} tokens: both must be at least 1",
         capacity.max_sequences, capacity.max_tokens);
  }
  return capacity;
}

// A sliding window that no sequence outgrows is none: one group of layers then, and nothing to mask.
KvShape without_idle_windows(KvShape shape, const KvCapacity& capacity) {
  if (shape.sliding_window >= capacity.max_tokens) shape.slides.clear();
  return shape;
}

// Slabs of a kind are opened only when all others of it are full, so that whatever order pages come and go in, they
// need no more than their greatest number does.
int64_t n_slabs(const KvShape& shape, const KvConfig& config, const KvCapacity& capacity) {
  const SlabLayout layout = slab_layout(shape, config);
  const int64_t most = layout.n_slabs(capacity.max_sequences * most_pages_of(shape, config, capacity.max_tokens));
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
    : shape_(without_idle_windows(shape, capacity)),
      config_(config),
      capacity_(checked(capacity, config, shape)),
      layout_(config.layout(shape)),
      window_dtype_(window_dtype(backend.activation_dtype())),
      groups_(layer_groups(shape_, config)),
      columns_(columns_of(groups_, capacity.max_tokens)),
      places_(static_cast<size_t>(shape.n_layers)),
      arena_(backend, slab_layout(shape_, config), n_slabs(shape_, config, capacity)),
      tables_(backend, capacity.max_sequences, columns_.back().end),
      sequences_(static_cast<size_t>(capacity.max_sequences)),
      row_owners_(static_cast<size_t>(capacity.max_sequences)) {
  layout_.order = backend.code_order();
  for (const LayerGroup& group : groups_) {
    for (int64_t i = 0; i < group.n_layers(); ++i) places_[group.layers[i]] = {group.id, i};
  }
  for (SequenceId id = capacity.max_sequences; id-- > 0;) free_ids_.push_back(id);
}

std::vector<KvCache::Columns> KvCache::columns_of(std::span<const LayerGroup> groups, int64_t max_tokens) {
  std::vector<Columns> all;
  for (const LayerGroup& group : groups) {
    Columns columns{.packed = all.empty() ? 0 : all.back().end};
    columns.keys = columns.packed + std::max<int64_t>(1, group_spans(group, max_tokens).packed.end);
    columns.values = columns.keys + group.keys.n_slots(max_tokens);
    columns.end = columns.values + group.values.n_slots(max_tokens);
    all.push_back(columns);
  }
  return all;
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
                    .pages = std::vector<PageId>(static_cast<size_t>(columns_.back().end), kNoPage)};
  return id;
}

void KvCache::release(SequenceId id) {
  Sequence& sequence = at(id);
  std::erase_if(step_, [&](const StepSequence& entry) {
    if (entry.id == id) leave_pages(sequence, sequence.n_tokens + entry.n_new);
    return entry.id == id;
  });
  for (PageId& page : sequence.pages) free_page(page);
  sequence = {};
  free_ids_.push_back(id);
}

void KvCache::free_page(PageId& page) {
  if (page == kNoPage) return;
  arena_.give_back(page);
  page = kNoPage;
}

KvPages KvCache::most_pages(int64_t n_tokens) const {
  KvPages pages;
  for (const LayerGroup& group : groups_) pages += most_pages_of(group, n_tokens);
  return pages;
}

bool KvCache::can_ever_hold(int64_t n_tokens) const {
  return n_tokens <= capacity_.max_tokens && arena_.layout().n_slabs(most_pages(n_tokens)) <= arena_.n_slabs();
}

bool KvCache::can_hold_now(int64_t n_tokens) const {
  return can_ever_hold(n_tokens) && arena_.has_room(most_pages(n_tokens));
}

// Calls visit(column) for the 16-bit pages of a group that a step adds.
template <typename Visit>
void KvCache::for_each_entering_window(const LayerGroup& group, const GroupSpans& before, const GroupSpans& after,
                                       Visit visit) const {
  const Columns& columns = columns_[group.id];
  for_each_entering_slot(group.keys, columns.n_key_slots(), before.keys, after.keys,
                         [&](int32_t slot) { visit(columns.keys + slot); });
  for_each_entering_slot(group.values, columns.n_value_slots(), before.values, after.values,
                         [&](int32_t slot) { visit(columns.values + slot); });
}

KvPages KvCache::missing_pages(const Sequence& sequence, int64_t n_after) const {
  KvPages missing;
  for (const LayerGroup& group : groups_) {
    const GroupSpans& before = sequence.spans[group.id];
    const GroupSpans after = group_spans(group, n_after);
    const PackedChange change(before.packed, after.packed);
    missing[group.packed_pages()] = change.entering.size() - change.n_handed_on();
    for_each_entering_window(group, before, after, [&](int64_t column) {
      missing[group.window_pages()] += sequence.pages[column] == kNoPage;
    });
  }
  return missing;
}

// Their columns are added to changed_.
void KvCache::take_pages(Sequence& sequence, int64_t n_after) {
  for (const LayerGroup& group : groups_) {
    const GroupSpans& before = sequence.spans[group.id];
    const GroupSpans after = group_spans(group, n_after);
    const PackedChange change(before.packed, after.packed);
    PageId* const packed = &sequence.pages[columns_[group.id].packed];
    for (int64_t i = 0; i < change.entering.size(); ++i) {
      const int64_t page = change.entering.begin + i;
      packed[page] = i < change.n_handed_on() ? packed[change.leaving.begin + i] : arena_.take(group.packed_pages());
      changed_.push_back(static_cast<int32_t>(columns_[group.id].packed + page));
    }
    for_each_entering_window(group, before, after, [&](int64_t column) {
      if (sequence.pages[column] != kNoPage) return;
      sequence.pages[column] = arena_.take(group.window_pages());
      changed_.push_back(static_cast<int32_t>(column));
    });
  }
}

// After a step, pages that nothing later reads.
void KvCache::leave_pages(Sequence& sequence, int64_t n_after) {
  for (const LayerGroup& group : groups_) {
    GroupSpans& spans = sequence.spans[group.id];
    const GroupSpans after = group_spans(group, n_after);
    const Columns& columns = columns_[group.id];
    const PackedChange change(spans.packed, after.packed);
    for (int64_t i = 0; i < change.leaving.size(); ++i) {
      PageId& page = sequence.pages[columns.packed + change.leaving.begin + i];
      if (i < change.n_handed_on()) page = kNoPage;
      free_page(page);
    }
    for_each_leaving_slot(group.keys, columns.n_key_slots(), spans.keys, after.keys,
                          [&](int32_t slot) { free_page(sequence.pages[columns.keys + slot]); });
    for_each_leaving_slot(group.values, columns.n_value_slots(), spans.values, after.values,
                          [&](int32_t slot) { free_page(sequence.pages[columns.values + slot]); });
    spans = after;
  }
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
    missing += missing_pages(sequence, n_after);
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
  const LayerPlace& place = places_[layer];
  const LayerGroup& group = groups_[place.group];
  const Columns& columns = columns_[place.group];
  const SlabLayout& slabs = arena_.layout();
  const auto pages_of_layer = [&](PageKind kind) {
    return arena_.data() + place.index * (slabs.page_bytes[kind] / group.n_layers());
  };
  format::KvBatchView view;
  view.layout = layout_;
  view.key_policy = group.keys;
  view.value_policy = group.values;
  view.group = group.id;
  view.packed_pages = pages_of_layer(group.packed_pages());
  view.packed_stride = slabs.granule_bytes;
  view.window_pages = pages_of_layer(group.window_pages());
  view.window_stride = slabs.granule_bytes;
  view.window_dtype = window_dtype_;
  view.packed_table = tables_.table(n_sequences, columns.packed, columns.keys - columns.packed);
  view.key_window_table = tables_.table(n_sequences, columns.keys, columns.n_key_slots());
  view.value_window_table = tables_.table(n_sequences, columns.values, columns.n_value_slots());
  view.n_past = tables_.n_past(n_sequences);
  return view;
}

void KvCache::commit() {
  for (const StepSequence& entry : step_) {
    Sequence& sequence = at(entry.id);
    sequence.n_tokens += entry.n_new;
    leave_pages(sequence, sequence.n_tokens);
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
