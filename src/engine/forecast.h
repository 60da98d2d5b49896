// What the cache will have to hold. Whether a sequence should start beside others is not a matter of the pages that are
// free now: all of them grow, and one that starts too early makes another give up its pages and be computed again. So
// their sizes are forecast: each goes on to its limit, token by token, and then is gone.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/kv_cache.h"

namespace kivi {

class Forecast {
 public:
  // Looks `horizon` tokens ahead; 0: only at the next step.
  Forecast(const KvCache& cache, int64_t horizon);

  void clear() { loads_.assign(loads_.size(), 0.0); }
  // A sequence that has n_tokens after the next step, and n_most at its end; shared_slabs of it are others' too.
  void add(int64_t n_tokens, int64_t n_most, double shared_slabs = 0.0);
  // Whether the cache will hold it too, beside idle_slabs, at any time.
  bool has_room(int64_t n_tokens, int64_t n_most, double idle_slabs) const;

  // Slabs of the cache that a sequence takes until it has n_tokens, in parts of a slab.
  double slabs_of(int64_t n_tokens) const { return sizes_[static_cast<size_t>(n_tokens)]; }

 private:
  template <typename Visit>
  void for_each_moment(int64_t n_tokens, int64_t n_most, Visit visit) const;

  double n_slabs_;             // of the cache, less a few that are held by free pages
  std::vector<double> sizes_;  // slabs of a sequence, by its tokens
  std::vector<double> loads_;  // slabs of all sequences, by moment
};

}  // namespace kivi
