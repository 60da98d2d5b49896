#include "emulator.h"

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace kivi::emulation {
namespace {

constexpr int kPoison = 0xFF;
constexpr std::align_val_t kSharedAlignment{1024};
constexpr size_t kStackBytes = size_t{256} << 10;

// A stack that is switched to and from; AddressSanitizer has to be told.
struct Stack {
  const void* bottom = nullptr;
  size_t size = 0;
  void* saved = nullptr;

  void leave([[maybe_unused]] const Stack& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&saved, to.bottom, to.size);
#endif
  }
  void enter([[maybe_unused]] Stack& from) const {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(saved, &from.bottom, &from.size);
#endif
  }
};

struct Copy {
  std::byte* to;
  const void* from;
  size_t n;
  int group;
};

struct Warp {
  int n_arrived = 0;
  void (*operation)(const Arguments&) = nullptr;
  Arguments arguments{};
};

// A thread of the GPU: a fiber that outlives blocks, so that none is made while kernels run.
struct Thread {
  Place place;
  Warp* warp = nullptr;
  std::vector<Copy> copies;
  int n_groups = 0;  // of copies, committed
  Stack stack;
  boost::context::fiber fiber;
};

// The order in which threads that can go on do.
enum class Order { kNewest, kOldest, kRandom };

class Gpu {
 public:
  void run_grid(const Grid& grid, const std::function<void()>& kernel) {
    const dim3& n = grid.threads;
    const unsigned n_threads = n.x * n.y * n.z;
    grid_ = grid;
    kernel_ = &kernel;
    while (threads_.size() < n_threads) threads_.push_back(make_thread());
    shared_.reset(static_cast<std::byte*>(::operator new(grid.shared_bytes, kSharedAlignment)));
    std::vector<unsigned> blocks(grid.blocks.x * grid.blocks.y * grid.blocks.z);
    for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
    std::shuffle(blocks.begin(), blocks.end(), random_);
    for (const unsigned i : blocks) {
      run_block(dim3(i % grid.blocks.x, i / grid.blocks.x % grid.blocks.y, i / grid.blocks.x / grid.blocks.y),
                n_threads);
    }
    current_ = nullptr;
  }

  Thread& current() const { return *current_; }
  const Grid& grid() const { return grid_; }
  std::byte* shared() const { return shared_.get(); }

  void sync_threads() {
    at_barrier_.push_back(current_);
    if (at_barrier_.size() == n_alive_) open_barrier();
    wait();
  }

  void meet(void (*operation)(const Arguments&), void* argument) {
    Warp& warp = *current_->warp;
    if (warp.n_arrived > 0 && warp.operation != operation) fault("lanes of a warp at different operations");
    warp.operation = operation;
    warp.arguments[static_cast<size_t>(current_->place.lane)] = argument;
    if (++warp.n_arrived < kLanes) return wait();
    operation(warp.arguments);
    warp.n_arrived = 0;
    const auto first = static_cast<size_t>(&warp - warps_.data()) * kLanes;
    for (size_t i = first; i < first + kLanes; ++i) {
      if (threads_[i].get() != current_) ready_.push_back(threads_[i].get());
    }
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kSharedAlignment); }
  };

  std::unique_ptr<Thread> make_thread() {
    namespace context = boost::context;
    auto thread = std::make_unique<Thread>();
    context::protected_fixedsize_stack stacks(kStackBytes);
    const context::stack_context memory = stacks.allocate();
    thread->stack = {static_cast<std::byte*>(memory.sp) - memory.size, memory.size};
    thread->fiber = context::fiber(std::allocator_arg, context::preallocated(memory.sp, memory.size, memory), stacks,
                                   [this](context::fiber&& scheduler) {
                                     scheduler_ = std::move(scheduler);
                                     current_->stack.enter(scheduler_stack_);
                                     for (;;) run_thread();
                                     return context::fiber();
                                   });
    return thread;
  }

  void run_thread() {
    (*kernel_)();
    if (--n_alive_ > 0 && at_barrier_.size() == n_alive_) open_barrier();
    wait();  // for the next block
  }

  void run_block(dim3 block, unsigned n_threads) {
    std::memset(shared_.get(), kPoison, grid_.shared_bytes);
    warps_.assign((n_threads + kLanes - 1) / kLanes, {});
    order_ = static_cast<Order>(random_() % 3);
    n_alive_ = n_threads;
    for (unsigned i = 0; i < n_threads; ++i) {
      Thread& thread = *threads_[i];
      const dim3& n = grid_.threads;
      thread.place = {dim3(i % n.x, i / n.x % n.y, i / n.x / n.y), block, static_cast<int>(i) % kLanes};
      thread.warp = &warps_[i / kLanes];
      thread.copies.clear();
      thread.n_groups = 0;
      ready_.push_back(&thread);
    }
    if (order_ == Order::kRandom) std::shuffle(ready_.begin(), ready_.end(), random_);
    while (!ready_.empty()) {
      current_ = take_ready();
      Thread& thread = *current_;
      scheduler_stack_.leave(thread.stack);
      thread.fiber = std::move(thread.fiber).resume();
      scheduler_stack_.enter(thread.stack);
    }
    if (n_alive_ > 0) fault("threads of a block wait for others that do not come");
  }

  Thread* take_ready() {
    if (order_ == Order::kRandom) std::swap(ready_[random_() % ready_.size()], ready_.back());
    Thread* const thread = order_ == Order::kOldest ? ready_.front() : ready_.back();
    if (order_ == Order::kOldest) {
      ready_.pop_front();
    } else {
      ready_.pop_back();
    }
    return thread;
  }

  void open_barrier() {
    ready_.insert(ready_.end(), at_barrier_.begin(), at_barrier_.end());
    at_barrier_.clear();
  }

  // Back to the scheduler, until this thread's turn comes again.
  void wait() {
    Stack& stack = current_->stack;
    stack.leave(scheduler_stack_);
    scheduler_ = std::move(scheduler_).resume();
    stack.enter(scheduler_stack_);
  }

  Grid grid_;
  const std::function<void()>* kernel_ = nullptr;
  std::unique_ptr<std::byte, Free> shared_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  std::deque<Thread*> ready_;
  std::vector<Thread*> at_barrier_;
  unsigned n_alive_ = 0;
  Thread* current_ = nullptr;
  Order order_ = Order::kOldest;
  boost::context::fiber scheduler_;
  Stack scheduler_stack_;
  std::mt19937 random_{1};
};

// Never destroyed: a fiber ends only with the process.
Gpu& gpu() {
  static Gpu& the_one = *new Gpu;
  return the_one;
}

}  // namespace

void run_grid(const Grid& grid, const std::function<void()>& kernel) {
  gpu().run_grid(grid, kernel);
}

void fault(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

const Place& here() {
  return gpu().current().place;
}
const Grid& grid() {
  return gpu().grid();
}
void sync_threads() {
  gpu().sync_threads();
}
void meet(void (*operation)(const Arguments&), void* argument) {
  gpu().meet(operation, argument);
}

// ---- Shared memory ----

std::byte* dynamic_shared() {
  return gpu().shared();
}

uint32_t shared_address(const void* shared) {
  const auto offset = static_cast<const std::byte*>(shared) - gpu().shared();
  if (offset < 0 || static_cast<size_t>(offset) > grid().shared_bytes) fault("not an address of dynamic shared memory");
  return kSharedBase + static_cast<uint32_t>(offset);
}

std::byte* at_shared_address(uint32_t address, size_t size) {
  if (address < kSharedBase || address - kSharedBase + size > grid().shared_bytes) fault("beyond shared memory");
  if (address % size != 0) fault("misaligned in shared memory");
  return gpu().shared() + (address - kSharedBase);
}

// ---- Asynchronous copies ----

void start_copy(uint32_t shared, const void* global, int n) {
  constexpr size_t kBytes = 16;
  std::byte* to = at_shared_address(shared, kBytes);
  if (reinterpret_cast<uintptr_t>(global) % kBytes != 0) fault("misaligned source of an asynchronous copy");
  std::memset(to, kPoison, kBytes);
  Thread& thread = gpu().current();
  thread.copies.push_back({to, global, static_cast<size_t>(n), thread.n_groups});
}

void commit_copies() {
  ++gpu().current().n_groups;
}

void wait_for_copies(int n_pending) {
  Thread& thread = gpu().current();
  auto copy = thread.copies.begin();
  for (; copy != thread.copies.end() && copy->group < thread.n_groups - n_pending; ++copy) {
    std::memset(copy->to, 0, 16);
    std::memcpy(copy->to, copy->from, copy->n);
  }
  thread.copies.erase(thread.copies.begin(), copy);
}

}  // namespace kivi::emulation
