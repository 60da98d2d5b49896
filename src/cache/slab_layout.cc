#include "cache/slab_layout.h"

#include <algorithm>
#include <initializer_list>
#include <numeric>

namespace kivi {
namespace {

int64_t divide_up(int64_t a, int64_t b) {
  return b == 0 ? 0 : (a + b - 1) / b;
}

int64_t pages_per_slab(int64_t slab_bytes, int64_t page_bytes) {
  return page_bytes == 0 ? 0 : std::min(slab_bytes / page_bytes, SlabLayout::kMostPerSlab);
}

}  // namespace

KvPages& KvPages::operator+=(const KvPages& other) {
  for (PageKind kind = 0; kind < kPageKinds; ++kind) (*this)[kind] += other[kind];
  return *this;
}

SlabLayout SlabLayout::make(const KvPages& page_bytes) {
  const int64_t largest = *std::ranges::max_element(page_bytes.n);
  const auto unused = [&](int64_t n_largest) {  // part of a slab, at worst
    const int64_t slab = n_largest * largest;
    int64_t most = 0;
    for (const int64_t bytes : page_bytes.n) {
      if (bytes > 0) most = std::max(most, slab - pages_per_slab(slab, bytes) * bytes);
    }
    return static_cast<double>(most) / static_cast<double>(slab);
  };
  constexpr double kGoodEnough = 0.05;
  int64_t best = 1;
  for (const int64_t n : {2, 4}) {
    if (unused(best) > kGoodEnough && unused(n) < unused(best)) best = n;
  }
  SlabLayout layout{.page_bytes = page_bytes, .slab_bytes = best * largest};
  for (PageKind kind = 0; kind < kPageKinds; ++kind) {
    layout.per_slab[kind] = pages_per_slab(layout.slab_bytes, page_bytes[kind]);
    layout.granule_bytes = std::gcd(layout.granule_bytes, page_bytes[kind]);
  }
  return layout;
}

int64_t SlabLayout::n_slabs(const KvPages& pages) const {
  int64_t n = 0;
  for (PageKind kind = 0; kind < kPageKinds; ++kind) n += divide_up(pages[kind], per_slab[kind]);
  return n;
}

double SlabLayout::share_of_slabs(const KvPages& pages) const {
  double share = 0.0;
  for (PageKind kind = 0; kind < kPageKinds; ++kind) {
    if (pages[kind] > 0) share += static_cast<double>(pages[kind]) / static_cast<double>(per_slab[kind]);
  }
  return share;
}

int64_t SlabLayout::bytes(const KvPages& pages) const {
  return std::inner_product(pages.n.begin(), pages.n.end(), page_bytes.n.begin(), int64_t{0});
}

}  // namespace kivi
