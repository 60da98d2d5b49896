#include "core/parallel.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace kivi {
namespace {

int read_topology_id(int cpu, const char* file) {
  std::ifstream in("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" + file);
  int id = -1;
  in >> id;
  return in ? id : -1;
}

}  // namespace

int physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return std::max(1, omp_get_num_procs());
  std::set<std::pair<int, int>> cores;
  int n_allowed = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    ++n_allowed;
    const int core = read_topology_id(cpu, "core_id");
    if (core >= 0) cores.emplace(read_topology_id(cpu, "physical_package_id"), core);
  }
  const int n = cores.empty() ? n_allowed : static_cast<int>(cores.size());
  return std::max(1, n);
}

void detail::parallel_for(int n_threads, int64_t n, int64_t grain, RangeFunction function, void* body) {
  grain = std::max<int64_t>(1, grain);
  const int64_t n_chunks = (n + grain - 1) / grain;
  const int team = static_cast<int>(std::min<int64_t>(n_threads, n_chunks));
  std::exception_ptr first_error;
  std::mutex error_mutex;
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(team)
  {
    try {
      for (;;) {
        const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= n) break;
        function(body, begin, std::min(n, begin + grain));
      }
    } catch (...) {
      const std::scoped_lock lock(error_mutex);
      if (!first_error) first_error = std::current_exception();
    }
  }
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace kivi
