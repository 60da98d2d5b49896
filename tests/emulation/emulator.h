// A small GPU on the CPU: it runs the CUDA backend, compiled by the host's compiler, where there is no GPU.
//
// The headers in include/ stand for CUDA's and for the two of backend/cuda/device that are not C++ (launch.cuh,
// ptx.cuh: an instruction that is new there is needed here, too); all else, kernels and host side, is the backend's own
// source. What is emulated:
//   threads    a fiber each, all of a block on one host thread; blocks run one after the other, in random order. A
//              thread runs until it waits for others; who goes on then is random (fixed seed), or the newest or the
//              oldest of those that can, anew for each block. So what only a barrier keeps apart gets mixed up.
//   a warp     matrix products, ldmatrix, shuffles, votes: computed when all 32 lanes have come to the same operation;
//              lanes at different ones, or that never come, end the process with a message, as does a block whose
//              threads wait for each other
//   shared     dynamic memory of a block: poisoned (0xFF: NaN, the largest code) when it begins, and while an
//              asynchronous copy may be writing, which is from its start to the wait for it; addresses and alignment
//              are checked. Variables begin as the block before left them.
//   runtime    streams, whose operations wait until something waits for them; graphs; memory that ends where it was
//              asked to end, for AddressSanitizer to see; one GPU each of the two kinds that kernels know (runtime.cc)
// What is not: time, caches, banks, registers, fences and the order of memory, threads that run truly at once (so no
// race between two barriers that only single instructions could show), rounding inside the tensor cores, partial masks,
// and the difference between memory of the device and of the host.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace kivi::emulation {

inline constexpr int kLanes = 32;
inline constexpr unsigned kMostThreads = 1024;  // of a block

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;
};

// Runs `kernel` in every thread of the grid. Ends the process with a message where the kernel does what may not be.
void run_grid(const Grid& grid, const std::function<void()>& kernel);

[[noreturn]] void fault(const char* what);

// ---- What a running thread asks ----

struct Place {
  dim3 thread;
  dim3 block;
  int lane = 0;
};
const Place& here();
const Grid& grid();

void sync_threads();

// The block's dynamic shared memory, aligned to 1024 bytes, and its addresses, which count from kSharedBase.
inline constexpr uint32_t kSharedBase = 1024;
std::byte* dynamic_shared();
uint32_t shared_address(const void* shared);
// Where `size` bytes at the address are; a fault if they are not all there or not aligned to their size.
std::byte* at_shared_address(uint32_t address, size_t size);

// cp.async: 16 bytes, the first n of them from `global`, the others 0.
void start_copy(uint32_t shared, const void* global, int n);
void commit_copies();
void wait_for_copies(int n_pending);

// ---- Operations of a warp ----

// Waits for all lanes; the last to come runs `operation` on what all have brought.
using Arguments = std::array<void*, kLanes>;
void meet(void (*operation)(const Arguments&), void* argument);

// run(in, out) of all lanes, where each brings its `in` and gets its element of out.
template <typename Out, typename In, auto run>
Out collective(const In& in) {
  struct Argument {
    In in;
    Out out;
  };
  Argument mine{in, {}};
  meet(
      [](const Arguments& arguments) {
        std::array<In, kLanes> all_in;
        std::array<Out, kLanes> all_out{};
        for (size_t i = 0; i < kLanes; ++i) all_in[i] = static_cast<const Argument*>(arguments[i])->in;
        run(all_in, all_out);
        for (size_t i = 0; i < kLanes; ++i) static_cast<Argument*>(arguments[i])->out = all_out[i];
      },
      &mine);
  return mine.out;
}

}  // namespace kivi::emulation
