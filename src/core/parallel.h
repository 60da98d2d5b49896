// A team of threads for data-parallel loops. Only parallel.cc knows OpenMP.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace kivi {

// Number of physical cores that this process may run on (hyper-threads counted once); at least 1.
int physical_cores();

namespace detail {
using RangeFunction = void (*)(void* body, int64_t begin, int64_t end);
void parallel_for(int n_threads, int64_t n, int64_t grain, RangeFunction function, void* body);
}  // namespace detail

// Calls body(begin, end) on ranges that cover [0, n), spread over n_threads threads in chunks of `grain` that are taken
// as threads become free; on one thread it is one range. Which thread runs which range is not fixed: the result of body
// must not depend on it. The first exception is rethrown. Costs about a microsecond; nothing if one chunk holds all.
template <typename Body>
void parallel_for(int n_threads, int64_t n, int64_t grain, Body&& body) {
  if (n <= 0) return;
  if (n_threads <= 1 || n <= grain) {
    body(int64_t{0}, n);
    return;
  }
  using Function = std::remove_reference_t<Body>;
  detail::parallel_for(
      n_threads, n, grain,
      [](void* function, int64_t begin, int64_t end) { (*static_cast<Function*>(function))(begin, end); },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

}  // namespace kivi
