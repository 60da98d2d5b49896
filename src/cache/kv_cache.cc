#include "cache/kv_cache.h"

#include <algorithm>
#include <utility>

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
    : backend_(&backend),
      shape_(without_idle_windows(shape, capacity)),
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
  Sequence& sequence = sequences_[id];
  sequence.alive = true;
  sequence.serial = next_serial_++;
  sequence.pages.assign(static_cast<size_t>(columns_.back().end), kNoPage);
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

// Calls visit(page, kind, is_final) for all pages that are held.
template <typename AnyStored, typename Visit>
void KvCache::for_each_page(AnyStored& stored, Visit visit) const {
  for (const LayerGroup& group : groups_) {
    const Columns& columns = columns_[group.id];
    const int64_t n_final = n_final_packed(group, stored.n_tokens);
    const auto visit_columns = [&](int64_t begin, int64_t end, PageKind kind, auto is_final) {
      for (int64_t column = begin; column < end; ++column) {
        auto& page = stored.pages[static_cast<size_t>(column)];
        if (page != kNoPage) visit(page, kind, is_final(static_cast<int32_t>(column - begin)));
      }
    };
    visit_columns(columns.packed, columns.keys, group.packed_pages(), [&](int32_t page) { return page < n_final; });
    visit_columns(columns.keys, columns.values, group.window_pages(),
                  [&](int32_t slot) { return is_final_slot(group.keys, stored.n_tokens, slot); });
    visit_columns(columns.values, columns.end, group.window_pages(),
                  [&](int32_t slot) { return is_final_slot(group.values, stored.n_tokens, slot); });
  }
}

std::optional<KvCache::Stored> KvCache::copy_of(const Stored& from, Holder holder) {
  if (!step_.empty()) fail(ErrorCode::kInternal, "KV cache: a copy of a sequence within a step");
  Stored copy = from;
  KvPages missing;
  for_each_page(copy, [&](PageId /*page*/, PageKind kind, bool is_final) { missing[kind] += is_final ? 0 : 1; });
  if (!arena_.has_room(missing)) return std::nullopt;
  for_each_page(copy, [&](PageId& page, PageKind kind, bool is_final) {
    if (is_final) return arena_.share(page, holder);
    const PageId original = std::exchange(page, arena_.take(kind, holder));
    backend_->copy(arena_.page(page), arena_.page(original), static_cast<size_t>(arena_.layout().page_bytes[kind]));
  });
  return copy;
}

std::optional<SequenceId> KvCache::create_from(const Stored& from) {
  if (free_ids_.empty()) return std::nullopt;
  std::optional<Stored> copy = copy_of(from, Holder::kSequence);
  if (!copy) return std::nullopt;
  const SequenceId id = create();
  static_cast<Stored&>(at(id)) = std::move(*copy);
  return id;
}

std::optional<SequenceId> KvCache::fork(SequenceId id) {
  return create_from(at(id));
}

std::optional<SequenceId> KvCache::fork_prefix(PrefixId id) {
  return create_from(prefixes_.at(id));
}

std::optional<PrefixId> KvCache::store_prefix(SequenceId id) {
  std::optional<Stored> copy = copy_of(at(id), Holder::kPrefix);
  if (!copy) return std::nullopt;
  prefixes_.emplace(next_prefix_, std::move(*copy));
  return next_prefix_++;
}

void KvCache::drop_prefix(PrefixId id) {
  for (const PageId page : prefixes_.at(id).pages) {
    if (page != kNoPage) arena_.give_back(page, Holder::kPrefix);
  }
  prefixes_.erase(id);
}

KvPages KvCache::shared_pages(SequenceId id) const {
  KvPages shared;
  for_each_page(at(id),
                [&](PageId page, PageKind kind, bool /*is_final*/) { shared[kind] += arena_.is_shared(page) ? 1 : 0; });
  return shared;
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
    int64_t n_handed_on = 0;
    for (int64_t page = change.leaving.begin; page < change.leaving.end; ++page) {
      n_handed_on += arena_.is_shared(sequence.pages[columns_[group.id].packed + page]) ? 0 : 1;
    }
    missing[group.packed_pages()] = std::max<int64_t>(0, change.entering.size() - n_handed_on);
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
    int64_t leaving = change.leaving.begin;
    for (int64_t page = change.entering.begin; page < change.entering.end; ++page) {
      while (leaving < change.leaving.end && arena_.is_shared(packed[leaving])) ++leaving;
      packed[page] = leaving < change.leaving.end ? packed[leaving++] : arena_.take(group.packed_pages());
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
    PageId* const packed = &sequence.pages[columns.packed];
    int64_t entering = change.entering.begin;
    for (int64_t page = change.leaving.begin; page < change.leaving.end; ++page) {
      if (entering < change.entering.end && packed[entering] == packed[page]) {  // handed on, in this order
        packed[page] = kNoPage;
        ++entering;
      }
      free_page(packed[page]);
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
  total -= memory_of_full(shape_, config_, arena_.extra_uses());
  return total;
}

}  // namespace kivi
