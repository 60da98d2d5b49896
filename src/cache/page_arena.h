// All pages of a cache, in one stretch of backend memory. A slab (slab_layout.h) is given to one kind of pages when a
// page of that kind is needed and no slab of it has room, and is free for any kind again once all its pages have been
// given back. A page serves the n layers of its group: that of the i-th is at data() + id * granule_bytes + i *
// page_bytes / n.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "cache/slab_layout.h"

namespace kivi {

using PageId = int32_t;
inline constexpr PageId kNoPage = -1;

class PageArena {
 public:
  // Throws Error{kOutOfMemory} if the backend has no room, Error{kInvalidArgument} if there would be too many pages.
  PageArena(Backend& backend, const SlabLayout& layout, int64_t n_slabs);

  // Slabs that nothing has used yet will be taken in a random order, as they are when many sequences have come and
  // gone.
  void scatter(uint32_t seed);

  // Whether so many pages can be taken now. There is room as long as the pages of each kind that are in use never fill
  // more slabs than there are, whatever was given back in between.
  bool has_room(const KvPages& pages) const;
  PageId take(PageKind kind);  // there must be room
  void give_back(PageId id);

  std::byte* data() const { return memory_->data(); }
  const SlabLayout& layout() const { return layout_; }
  int64_t n_slabs() const { return static_cast<int64_t>(slabs_.size()); }
  KvPages pages_in_use() const;
  int64_t bytes_in_use() const { return layout_.bytes(pages_in_use()); }                    // of pages
  int64_t bytes_held() const { return (n_slabs() - n_free_slabs()) * layout_.slab_bytes; }  // of their slabs
  int64_t peak_bytes_held() const { return peak_slabs_ * layout_.slab_bytes; }

 private:
  using SlabId = int32_t;
  struct Slab {
    PageKind kind = 0;
    int32_t n_used = 0;
    uint64_t used = 0;  // bit i: page i
    int32_t place = 0;  // in the list of its kind and number of pages
  };
  struct Kind {
    int64_t per_slab = 0;
    int64_t granules = 0;  // of a page
    int64_t n_pages = 0;   // in use
    int64_t n_slabs = 0;
    std::vector<std::vector<SlabId>> by_used{};  // slabs of this kind, by pages in use
  };

  Kind& kind(PageKind which) { return kinds_[static_cast<size_t>(which)]; }
  int64_t n_free_slabs() const { return n_slabs() - n_slabs_in_use_; }
  SlabId open_slab(PageKind which);
  void list(SlabId id);
  void unlist(SlabId id);

  SlabLayout layout_;
  std::unique_ptr<Buffer> memory_;
  std::vector<Slab> slabs_;
  std::array<Kind, kPageKinds> kinds_;
  std::vector<SlabId> free_;  // given back; the last one is taken first, while it is warm
  SlabId n_touched_ = 0;      // slabs from here on have never been used
  int64_t n_slabs_in_use_ = 0;
  int64_t peak_slabs_ = 0;
};

}  // namespace kivi
