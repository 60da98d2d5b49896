// How pages of two sizes share memory. It is cut into slabs; a slab holds packed pages or 16-bit pages, whole, one
// after the other. Its size is that of one packed page, or of two or four where that leaves less of it unused by 16-bit
// pages.
//
//   kivi2, G 32:  a packed page is 3.0 16-bit pages      | packed        |    or    | 16  | 16  | 16  |
//   kivi2, G 64:  2.5                                    | packed | packed |  or    | 16 | 16 | 16 | 16 | 16 |
#pragma once

#include <cstdint>

namespace kivi {

// Pages, each for all layers.
struct KvPages {
  int64_t packed = 0;
  int64_t window = 0;  // 16-bit pages, keys and values together

  friend bool operator==(const KvPages&, const KvPages&) = default;
};

struct SlabLayout {
  int64_t packed_page_bytes = 0;  // 0: there are none
  int64_t window_page_bytes = 0;
  int64_t packed_per_slab = 0;
  int64_t window_per_slab = 0;
  int64_t slab_bytes = 0;
  int64_t granule_bytes = 0;  // divides slabs and both kinds of pages: a page's id is its offset in granules

  static SlabLayout make(int64_t packed_page_bytes, int64_t window_page_bytes);

  // Slabs that hold these pages where nothing else is.
  int64_t n_slabs(const KvPages& pages) const;
  // The same as if slabs could be shared by both kinds: what a sequence adds to many others.
  double share_of_slabs(const KvPages& pages) const;
};

}  // namespace kivi
