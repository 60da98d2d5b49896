#include "engine/forecast.h"

#include <algorithm>

namespace kivi {
namespace {

constexpr int64_t kStride = 32;           // tokens between moments
constexpr double kRoundingErrors = 1e-6;  // of sums of parts of slabs

// Slabs that free pages among others hold, in a cache that does not have room for everything.
int64_t n_spare_slabs(const KvCache& cache) {
  const KvCapacity& capacity = cache.capacity();
  const KvPages all = capacity.max_sequences * cache.most_pages(capacity.max_tokens);
  const int64_t n_slabs = cache.arena().n_slabs();
  return n_slabs == cache.arena().layout().n_slabs(all) ? 0 : n_slabs / 64;
}

}  // namespace

Forecast::Forecast(const KvCache& cache, int64_t horizon)
    : n_slabs_(static_cast<double>(cache.arena().n_slabs() - n_spare_slabs(cache)) + kRoundingErrors),
      loads_(static_cast<size_t>(horizon / kStride + 1)) {
  for (int64_t n = 0; n <= cache.capacity().max_tokens; ++n) {
    sizes_.push_back(cache.arena().layout().share_of_slabs(cache.most_pages(n)));
  }
}

// Calls visit(moment, slabs) for the moments until the sequence is gone.
template <typename Visit>
void Forecast::for_each_moment(int64_t n_tokens, int64_t n_most, Visit visit) const {
  int64_t n = n_tokens;
  for (size_t moment = 0; moment < loads_.size(); ++moment) {
    visit(moment, slabs_of(std::min(n, n_most)));
    if (n >= n_most) return;
    n += kStride;
  }
}

void Forecast::add(int64_t n_tokens, int64_t n_most, double shared_slabs) {
  for_each_moment(n_tokens, n_most, [&](size_t moment, double slabs) { loads_[moment] += slabs - shared_slabs; });
}

bool Forecast::has_room(int64_t n_tokens, int64_t n_most, double idle_slabs) const {
  bool fits = true;
  for_each_moment(n_tokens, n_most,
                  [&](size_t moment, double slabs) { fits = fits && loads_[moment] + slabs + idle_slabs <= n_slabs_; });
  return fits;
}

}  // namespace kivi
