#include "cache/slab_layout.h"

#include <initializer_list>
#include <numeric>

namespace kivi {
namespace {

int64_t divide_up(int64_t a, int64_t b) {
  return b == 0 ? 0 : (a + b - 1) / b;
}

}  // namespace

SlabLayout SlabLayout::make(int64_t packed_page_bytes, int64_t window_page_bytes) {
  SlabLayout layout{.packed_page_bytes = packed_page_bytes, .window_page_bytes = window_page_bytes};
  if (packed_page_bytes == 0) {
    layout.window_per_slab = 1;
    layout.slab_bytes = layout.granule_bytes = window_page_bytes;
    return layout;
  }
  const auto unused = [&](int64_t n_packed) {  // part of a slab of 16-bit pages
    const int64_t slab = n_packed * packed_page_bytes;
    return static_cast<double>(slab % window_page_bytes) / static_cast<double>(slab);
  };
  constexpr double kGoodEnough = 0.05;
  int64_t best = 1;
  for (const int64_t n : {2, 4}) {
    if (unused(best) > kGoodEnough && unused(n) < unused(best)) best = n;
  }
  layout.packed_per_slab = best;
  layout.slab_bytes = best * packed_page_bytes;
  layout.window_per_slab = layout.slab_bytes / window_page_bytes;
  layout.granule_bytes = std::gcd(packed_page_bytes, window_page_bytes);
  return layout;
}

int64_t SlabLayout::n_slabs(const KvPages& pages) const {
  return divide_up(pages.packed, packed_per_slab) + divide_up(pages.window, window_per_slab);
}

double SlabLayout::share_of_slabs(const KvPages& pages) const {
  const double packed =
      packed_per_slab == 0 ? 0.0 : static_cast<double>(pages.packed) / static_cast<double>(packed_per_slab);
  return packed + static_cast<double>(pages.window) / static_cast<double>(window_per_slab);
}

}  // namespace kivi
