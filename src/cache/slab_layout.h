// How pages of several sizes share memory. It is cut into slabs; a slab holds pages of one kind, whole, one after the
// other. Its size is that of one of the largest pages, or of two or four where that leaves less of it unused by the
// other kinds.
//
//   kivi2, G 32:  a packed page is 3.0 16-bit pages      | packed        |    or    | 16  | 16  | 16  |
//   kivi2, G 64:  2.5                                    | packed | packed |  or    | 16 | 16 | 16 | 16 | 16 |
//
// Where some layers slide and some do not, both groups of layers have both kinds of pages, sized for their layers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "format/kv_view.h"

namespace kivi {

// A kind of pages: packed ones or 16-bit ones, for all layers of a group.
using PageKind = int;
inline constexpr int kPageKinds = 2 * format::kMostLayerGroups;
constexpr PageKind packed_pages(int group = 0) {
  return 2 * group;
}
constexpr PageKind window_pages(int group = 0) {  // keys and values together
  return 2 * group + 1;
}

// Something for each kind of pages: KvPages{5, 7} are five packed pages and seven 16-bit ones of the first group.
struct KvPages {
  std::array<int64_t, kPageKinds> n{};

  int64_t& operator[](PageKind kind) { return n[static_cast<size_t>(kind)]; }
  int64_t operator[](PageKind kind) const { return n[static_cast<size_t>(kind)]; }
  KvPages& operator+=(const KvPages& other);
  friend KvPages operator*(int64_t times, KvPages pages) {
    for (int64_t& of_kind : pages.n) of_kind *= times;
    return pages;
  }
  friend bool operator==(const KvPages&, const KvPages&) = default;
};

struct SlabLayout {
  KvPages page_bytes{};  // 0: there are none of the kind
  KvPages per_slab{};
  int64_t slab_bytes = 0;
  int64_t granule_bytes = 0;  // divides slabs and pages of all kinds: a page's id is its offset in granules

  static constexpr int64_t kMostPerSlab = 64;
  static SlabLayout make(const KvPages& page_bytes);

  // Slabs that hold these pages where nothing else is.
  int64_t n_slabs(const KvPages& pages) const;
  // The same as if slabs could be shared by all kinds: what a sequence adds to many others.
  double share_of_slabs(const KvPages& pages) const;
  int64_t bytes(const KvPages& pages) const;  // of the pages themselves
};

}  // namespace kivi
