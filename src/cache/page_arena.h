// All pages of a cache, in one stretch of backend memory. A slab (slab_layout.h) is given to one kind of pages when a
// page of that kind is needed and no slab of it has room, and is free for any kind again once all its pages have been
// given back. A page serves the n layers of its group: that of the i-th is at data() + id * granule_bytes + i *
// page_bytes / n.
//
// A page may have several holders, and is free when the last one has given it back. Those that sequences hold are in
// use; those that only stored prefixes hold are what can be had back at any time.
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

enum class Holder : uint8_t { kSequence, kPrefix };

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
  PageId take(PageKind kind, Holder holder = Holder::kSequence);  // there must be room
  void share(PageId id, Holder holder);                           // one holder more
  void give_back(PageId id, Holder holder = Holder::kSequence);
  bool is_shared(PageId id) const;

  std::byte* data() const { return memory_->data(); }
  std::byte* page(PageId id) const { return data() + id * layout_.granule_bytes; }
  const SlabLayout& layout() const { return layout_; }
  int64_t n_slabs() const { return static_cast<int64_t>(slabs_.size()); }
  const KvPages& pages_in_use() const { return in_use_; }
  const KvPages& extra_uses() const { return extra_uses_; }        // what sequences hold beyond the first of each page
  KvPages pages_taken() const;                                     // those in use, and those of prefixes alone
  int64_t bytes_in_use() const { return layout_.bytes(in_use_); }  // of pages
  int64_t bytes_held() const { return (n_slabs() - n_free_slabs()) * layout_.slab_bytes; }  // of their slabs
  int64_t peak_bytes_held() const { return peak_slabs_ * layout_.slab_bytes; }

 private:
  using SlabId = int32_t;
  struct Users {
    int32_t sequences = 0;
    int32_t prefixes = 0;
  };
  struct Slab {
    PageKind kind = 0;
    int32_t n_used = 0;
    uint64_t used = 0;  // bit i: page i has been taken
    int32_t place = 0;  // in the list of its kind and number of pages
  };
  struct Kind {
    int64_t per_slab = 0;
    int64_t granules = 0;  // of a page
    int64_t n_pages = 0;   // taken
    int64_t n_slabs = 0;
    std::vector<std::vector<SlabId>> by_used{};  // slabs of this kind, by pages in use
  };

  struct Place {
    SlabId slab;
    int64_t page;  // of the slab
  };
  Place place_of(PageId id) const;
  Users& users(const Place& place) { return users_[static_cast<size_t>(place.slab * most_per_slab_ + place.page)]; }
  void use(PageKind which, Users& users, Holder holder);
  void free_page(const Place& place);
  Kind& kind(PageKind which) { return kinds_[static_cast<size_t>(which)]; }
  int64_t n_free_slabs() const { return n_slabs() - n_slabs_in_use_; }
  SlabId open_slab(PageKind which);
  void list(SlabId id);
  void unlist(SlabId id);

  SlabLayout layout_;
  std::unique_ptr<Buffer> memory_;
  std::vector<Slab> slabs_;
  int64_t most_per_slab_ = 0;  // pages of any kind
  std::vector<Users> users_;   // by slab and page
  KvPages in_use_;
  KvPages extra_uses_;
  std::array<Kind, kPageKinds> kinds_;
  std::vector<SlabId> free_;  // given back; the last one is taken first, while it is warm
  SlabId n_touched_ = 0;      // slabs from here on have never been used
  int64_t n_slabs_in_use_ = 0;
  int64_t peak_slabs_ = 0;
};

}  // namespace kivi
