// A team of threads for data-parallel loops. The only place that knows OpenMP.
#pragma once

#include <cstdint>
#include <functional>

namespace kivi {

// Number of physical cores that this process may run on (hyper-threads counted once); at least 1.
int physical_cores();

// Calls body(i) for every i in [0, n), spread over n_threads threads in chunks of `grain` that are taken as threads
// become free. Which thread runs which i is not fixed: body must not depend on it. The first exception is rethrown.
void parallel_for(int n_threads, int64_t n, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body);

}  // namespace kivi
