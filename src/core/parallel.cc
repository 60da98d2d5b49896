#include "core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <fstream>
#include <limits>
#include <mutex>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace kivi {
namespace {

int read_topology_id(int cpu, const char* file) {
  std::ifstream in("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" + file);
  int id = -1;
  in >> id;
  return in ? id : -1;
}

// Spins while `waiting()` for up to a time that covers the gaps between the operations of a model; true if it ended.
template <typename Waiting>
bool spin_while(const Waiting& waiting) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kPatience = std::chrono::microseconds(100);
  constexpr int kLooksPerClock = 64;
  const Clock::time_point end = Clock::now() + kPatience;
  do {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (!waiting()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  } while (Clock::now() < end);
  return false;
}

// The process's helper threads. A job is done when its chunks are, not when every helper has come: on a machine whose
// cores are busy with something else the caller does the work of helpers that do not get to run. (A barrier, as OpenMP
// has, makes it wait for their time slices, which costs milliseconds for each operation of a model.)
class Team {
 public:
  // Threads end with the process, so nothing here is ever destroyed.
  static Team& instance() {
    static Team* const team = new Team;
    return *team;
  }

  // False, and nothing done, if the team already has a job: from another thread, or from inside a body.
  bool run(int n_helpers, int64_t n, int64_t grain, detail::RangeFunction function, void* body) {
    if (busy_.test_and_set(std::memory_order_acquire)) return false;
    add_helpers(n_helpers);
    n_helpers_.store(n_helpers, std::memory_order_relaxed);
    n_.store(n, std::memory_order_relaxed);
    grain_.store(grain, std::memory_order_relaxed);
    function_.store(function, std::memory_order_relaxed);
    body_.store(body, std::memory_order_relaxed);
    const auto n_chunks = static_cast<uint32_t>((n + grain - 1) / grain);
    n_unfinished_.store(n_chunks, std::memory_order_relaxed);
    n_chunks_.store(n_chunks, std::memory_order_relaxed);
    const uint64_t generation = (unclaimed_.load(std::memory_order_relaxed) >> 32) + 1;
    unclaimed_.store(generation << 32 | n_chunks, std::memory_order_release);
    job_.store(static_cast<uint32_t>(generation), std::memory_order_seq_cst);
    job_.notify_all();

    work(-1);
    wait_for_the_last_chunk();
    const std::exception_ptr error = std::exchange(error_, nullptr);
    busy_.clear(std::memory_order_release);
    if (error) std::rethrow_exception(error);
    return true;
  }

 private:
  void add_helpers(int n_helpers) {
    try {
      for (; n_threads_ < n_helpers; ++n_threads_) {
        std::thread([this, index = n_threads_] { help(index); }).detach();
      }
    } catch (const std::system_error&) {  // no more threads to be had: the caller works with those that are there
    }
  }

  void help(int index) {
    uint32_t seen = 0;
    for (;;) {
      if (!spin_while([&] { return job_.load(std::memory_order_acquire) == seen; })) job_.wait(seen);
      seen = job_.load(std::memory_order_acquire);
      work(index);
    }
  }

  // Takes chunks until there are none. The caller has index -1.
  void work(int index) {
    for (;;) {
      uint64_t unclaimed = unclaimed_.load(std::memory_order_acquire);
      const auto n_left = static_cast<uint32_t>(unclaimed);
      if (n_left == 0 || index >= n_helpers_.load(std::memory_order_relaxed)) return;
      // While a chunk of this generation is unclaimed its job does not end, so if the exchange succeeds, what was read
      // in between belongs to that job.
      const int64_t grain = grain_.load(std::memory_order_relaxed);
      const int64_t n = n_.load(std::memory_order_relaxed);
      const int64_t chunk = n_chunks_.load(std::memory_order_relaxed) - n_left;
      const detail::RangeFunction function = function_.load(std::memory_order_relaxed);
      void* const body = body_.load(std::memory_order_relaxed);
      if (!unclaimed_.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acq_rel)) continue;
      try {
        function(body, chunk * grain, std::min(n, (chunk + 1) * grain));
      } catch (...) {
        const std::scoped_lock lock(error_mutex_);
        if (!error_) error_ = std::current_exception();
      }
      if (n_unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1 && index >= 0) n_unfinished_.notify_one();
    }
  }

  void wait_for_the_last_chunk() {
    const auto unfinished = [&] { return n_unfinished_.load(std::memory_order_acquire); };
    if (spin_while([&] { return unfinished() != 0; })) return;
    for (uint32_t n = unfinished(); n != 0; n = unfinished()) n_unfinished_.wait(n);
  }

  std::atomic_flag busy_;
  int n_threads_ = 0;  // helpers there are; n_helpers_ of them may work on this job
  std::exception_ptr error_;
  std::mutex error_mutex_;

  std::atomic<int> n_helpers_{0};
  std::atomic<int64_t> n_{0};
  std::atomic<int64_t> grain_{1};
  std::atomic<uint32_t> n_chunks_{0};
  std::atomic<detail::RangeFunction> function_{nullptr};
  std::atomic<void*> body_{nullptr};

  alignas(64) std::atomic<uint64_t> unclaimed_{0};  // generation of the job << 32 | chunks that nobody has taken
  alignas(64) std::atomic<uint32_t> n_unfinished_{0};
  alignas(64) std::atomic<uint32_t> job_{0};  // generation again, for helpers to sleep on
};

}  // namespace

int physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
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
  constexpr int64_t kMaxChunks = std::numeric_limits<int32_t>::max();
  grain = std::max({int64_t{1}, grain, n / kMaxChunks + 1});
  const int64_t n_chunks = (n + grain - 1) / grain;
  const int n_helpers = static_cast<int>(std::min<int64_t>(n_threads, n_chunks)) - 1;
  if (!Team::instance().run(n_helpers, n, grain, function, body)) function(body, 0, n);
}

}  // namespace kivi
