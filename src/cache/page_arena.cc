#include "cache/page_arena.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <random>

#include "core/error.h"

namespace kivi {

PageArena::PageArena(Backend& backend, const SlabLayout& layout, int64_t n_slabs)
    : layout_(layout), slabs_(static_cast<size_t>(n_slabs)) {
  const int64_t n_granules = n_slabs * (layout.slab_bytes / layout.granule_bytes);
  if (n_granules > std::numeric_limits<PageId>::max()) {
    fail(ErrorCode::kInvalidArgument, "KV cache of {} bytes: more pages than can be numbered; allow it less memory",
         n_slabs * layout.slab_bytes);
  }
  memory_ = backend.allocate(static_cast<size_t>(n_slabs * layout.slab_bytes));
  for (PageKind which = 0; which < kPageKinds; ++which) {
    kind(which).per_slab = layout.per_slab[which];
    kind(which).granules = layout.page_bytes[which] / layout.granule_bytes;
    kind(which).by_used.resize(static_cast<size_t>(layout.per_slab[which]) + 1);
    most_per_slab_ = std::max(most_per_slab_, layout.per_slab[which]);
  }
  users_.resize(static_cast<size_t>(n_slabs * most_per_slab_));
}

void PageArena::scatter(uint32_t seed) {
  while (n_touched_ < n_slabs()) free_.push_back(n_touched_++);
  std::shuffle(free_.begin(), free_.end(), std::mt19937(seed));
}

bool PageArena::has_room(const KvPages& pages) const {
  int64_t n_new = 0;
  for (PageKind which = 0; which < kPageKinds; ++which) {
    const Kind& kind = kinds_[static_cast<size_t>(which)];
    const int64_t beyond = pages[which] - (kind.n_slabs * kind.per_slab - kind.n_pages);
    if (beyond > 0) n_new += (beyond + kind.per_slab - 1) / kind.per_slab;
  }
  return n_new <= n_free_slabs();
}

// The fullest slab that has room, so that others come free.
PageArena::SlabId PageArena::open_slab(PageKind which) {
  Kind& k = kind(which);
  for (int64_t n = k.per_slab - 1; n > 0; --n) {
    const std::vector<SlabId>& slabs = k.by_used[static_cast<size_t>(n)];
    if (!slabs.empty()) return slabs.back();
  }
  SlabId id = n_touched_;
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else if (++n_touched_ > n_slabs()) {
    fail(ErrorCode::kInternal, "page arena: all {} slabs are in use", n_slabs());
  }
  slabs_[static_cast<size_t>(id)] = {.kind = which};
  ++k.n_slabs;
  peak_slabs_ = std::max(peak_slabs_, ++n_slabs_in_use_);
  list(id);
  return id;
}

PageId PageArena::take(PageKind which, Holder holder) {
  const SlabId id = open_slab(which);
  Slab& slab = slabs_[static_cast<size_t>(id)];
  const int page = std::countr_one(slab.used);
  unlist(id);
  slab.used |= uint64_t{1} << page;
  ++slab.n_used;
  list(id);
  ++kind(which).n_pages;
  use(which, users({id, page}), holder);
  return static_cast<PageId>(id * (layout_.slab_bytes / layout_.granule_bytes) + page * kind(which).granules);
}

PageArena::Place PageArena::place_of(PageId page) const {
  const int64_t granules_per_slab = layout_.slab_bytes / layout_.granule_bytes;
  const auto id = static_cast<SlabId>(page / granules_per_slab);
  const Kind& kind = kinds_[static_cast<size_t>(slabs_[static_cast<size_t>(id)].kind)];
  return {id, page % granules_per_slab / kind.granules};
}

void PageArena::use(PageKind which, Users& users, Holder holder) {
  if (holder == Holder::kPrefix) {
    ++users.prefixes;
  } else {
    ++(users.sequences++ == 0 ? in_use_ : extra_uses_)[which];
  }
}

void PageArena::share(PageId id, Holder holder) {
  const Place place = place_of(id);
  use(slabs_[static_cast<size_t>(place.slab)].kind, users(place), holder);
}

bool PageArena::is_shared(PageId id) const {
  const Users& users = const_cast<PageArena*>(this)->users(place_of(id));
  return users.sequences + users.prefixes > 1;
}

void PageArena::give_back(PageId id, Holder holder) {
  const Place place = place_of(id);
  Users& held = users(place);
  if (holder == Holder::kPrefix) {
    --held.prefixes;
  } else {
    --(--held.sequences == 0 ? in_use_ : extra_uses_)[slabs_[static_cast<size_t>(place.slab)].kind];
  }
  if (held.sequences + held.prefixes == 0) free_page(place);
}

void PageArena::free_page(const Place& place) {
  Slab& slab = slabs_[static_cast<size_t>(place.slab)];
  Kind& k = kind(slab.kind);
  unlist(place.slab);
  slab.used &= ~(uint64_t{1} << place.page);
  --slab.n_used;
  --k.n_pages;
  if (slab.n_used > 0) return list(place.slab);
  --k.n_slabs;
  --n_slabs_in_use_;
  free_.push_back(place.slab);
}

void PageArena::list(SlabId id) {
  Slab& slab = slabs_[static_cast<size_t>(id)];
  std::vector<SlabId>& slabs = kind(slab.kind).by_used[static_cast<size_t>(slab.n_used)];
  slab.place = static_cast<int32_t>(slabs.size());
  slabs.push_back(id);
}

void PageArena::unlist(SlabId id) {
  const Slab& slab = slabs_[static_cast<size_t>(id)];
  std::vector<SlabId>& slabs = kind(slab.kind).by_used[static_cast<size_t>(slab.n_used)];
  slabs_[static_cast<size_t>(slabs.back())].place = slab.place;
  slabs[static_cast<size_t>(slab.place)] = slabs.back();
  slabs.pop_back();
}

KvPages PageArena::pages_taken() const {
  KvPages pages;
  for (PageKind which = 0; which < kPageKinds; ++which) pages[which] = kinds_[static_cast<size_t>(which)].n_pages;
  return pages;
}

}  // namespace kivi
