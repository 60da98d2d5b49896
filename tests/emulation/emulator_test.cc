// The emulator does what CUDA's manual says of the operations, and shows the mistakes that it is there to show: each
// is made here on purpose.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "backend/cuda/device/ptx.cuh"

namespace kivi::emulation {
namespace {

// Runs the kernel in one block.
void run_block(unsigned n_threads, size_t shared_bytes, const std::function<void()>& kernel) {
  run_grid({1, n_threads, shared_bytes}, kernel);
}

// ---- What is right ----

TEST(Emulator, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> runs(3 * 5 * 7 * 4);
  run_grid({{3, 5}, {7, 4}, 0}, [&] {
    const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
    ++runs[(block * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x];
  });
  EXPECT_EQ(runs, std::vector<int>(runs.size(), 1));
}

TEST(Emulator, BarriersKeepStepsApart) {
  constexpr unsigned kThreads = 256;
  for (int i = 0; i < 10; ++i) {
    run_block(kThreads, kThreads * sizeof(unsigned), [] {
      auto* numbers = reinterpret_cast<unsigned*>(dynamic_shared());
      const unsigned mine = threadIdx.x;
      for (unsigned step = 0; step < 5; ++step) {
        numbers[mine] = mine + step;
        __syncthreads();
        EXPECT_EQ(numbers[(mine + 77) % kThreads], (mine + 77) % kThreads + step);
        __syncthreads();
      }
    });
  }
}

// Threads that are done are not waited for.
TEST(Emulator, ABarrierIsForThoseThatRun) {
  int n = 0;
  run_block(64, 0, [&] {
    if (threadIdx.x >= 40) return;
    __syncthreads();
    ++n;
  });
  EXPECT_EQ(n, 40);
}

TEST(Emulator, LanesTellEachOther) {
  run_block(64, 0, [] {
    const int lane = here().lane;
    EXPECT_EQ(__shfl_sync(~0U, lane * 10, 7), 70);
    EXPECT_EQ(__shfl_sync(~0U, lane * 10, lane + 1), (lane + 1) % 32 * 10);
    EXPECT_EQ(__shfl_xor_sync(~0U, lane, 5), lane ^ 5);
    EXPECT_EQ(__shfl_up_sync(~0U, lane, 3), lane < 3 ? lane : lane - 3);
    EXPECT_EQ(__ballot_sync(~0U, lane % 4 == 1), 0x22222222U);
    EXPECT_EQ(__match_any_sync(~0U, lane / 8), 0xFFU << (lane / 8 * 8));
    EXPECT_EQ(__reduce_add_sync(~0U, static_cast<unsigned>(lane)), 496U);
    EXPECT_TRUE(__any_sync(~0U, lane == 31));
    EXPECT_FALSE(__any_sync(~0U, lane == 32));
  });
}

TEST(Emulator, BitsOfTheDevice) {
  EXPECT_EQ(__fns(0b101100U, 0, 1), 2U);
  EXPECT_EQ(__fns(0b101100U, 3, 2), 5U);
  EXPECT_EQ(__fns(0b101100U, 0, 4), ~0U);
  EXPECT_EQ(__byte_perm(0x33221100U, 0x77665544U, 0x7610U), 0x77661100U);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(0b1000), 4);
}

// Matrices of small integers come out of their registers and back, and are multiplied exactly.
TEST(Emulator, MatrixProductsAreThoseOfTheWholeMatrices) {
  std::mt19937 random(1);
  float a[16][16];
  float b[16][8];
  for (auto& row : a) {
    for (float& x : row) x = static_cast<float>(random() % 17) - 8.0F;
  }
  for (auto& row : b) {
    for (float& x : row) x = static_cast<float>(random() % 17) - 8.0F;
  }
  run_block(32, (16 * 16 + 16 * 8) * sizeof(Half), [&] {
    auto* a_shared = reinterpret_cast<Half*>(dynamic_shared());
    Half* b_shared = a_shared + 16 * 16;
    const int lane = here().lane;
    for (int i = lane; i < 16 * 16; i += kLanes) a_shared[i] = to_half(a[i / 16][i % 16]);
    for (int i = lane; i < 16 * 8; i += kLanes) b_shared[i] = to_half(b[i / 8][i % 8]);
    __syncwarp();
    uint32_t a_pairs[4];
    uint32_t b_pairs[4];
    cuda::ldmatrix(a_pairs, a_shared + lane % 16 * 16 + lane / 16 * 8);
    cuda::ldmatrix_transposed(b_pairs, b_shared + lane % 16 * 8);
    float c[4] = {1.0F, 1.0F, 1.0F, 1.0F};
    cuda::mma_16x8x16<Half>(c, a_pairs, b_pairs[0], b_pairs[1]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8;
      const int column = lane % 4 * 2 + i % 2;
      float sum = 1.0F;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      EXPECT_EQ(c[i], sum) << row << " " << column;
    }
    EXPECT_EQ(cuda::transpose_8x8(b_pairs[0]),
              *reinterpret_cast<const uint32_t*>(b_shared + lane / 4 * 8 + lane % 4 * 2));
  });
}

TEST(Emulator, CopiesArriveWhenTheyAreWaitedFor) {
  alignas(16) const std::array<uint32_t, 8> numbers{1, 2, 3, 4, 5, 6, 7, 8};
  run_block(1, 32, [&] {
    const auto* shared = reinterpret_cast<const uint32_t*>(dynamic_shared());
    cuda::cp_async_16(dynamic_shared(), &numbers[0]);
    cuda::cp_async_commit();
    cuda::cp_async_part_16(shared_address(shared + 4), &numbers[4], 8, 0);
    cuda::cp_async_commit();
    EXPECT_EQ(shared[0], ~0U);
    cuda::cp_async_wait<1>();
    EXPECT_EQ(shared[3], 4U);
    EXPECT_EQ(shared[4], ~0U);
    cuda::cp_async_wait<0>();
    EXPECT_EQ(shared[5], 6U);
    EXPECT_EQ(shared[6], 0U);
    cuda::cp_async_16(dynamic_shared(), &numbers[0]);
    EXPECT_EQ(shared[0], ~0U) << "what was there may be overwritten at once";
  });
}

// ---- What is wrong ----

TEST(Emulator, AMissingBarrierIsSeen) {
  constexpr unsigned kThreads = 64;
  bool seen = false;
  for (int i = 0; i < 10 && !seen; ++i) {
    run_block(kThreads, kThreads, [&] {
      dynamic_shared()[threadIdx.x] = std::byte{1};
      seen |= dynamic_shared()[kThreads - 1 - threadIdx.x] != std::byte{1};
    });
  }
  EXPECT_TRUE(seen);
}

TEST(EmulatorDeathTest, FaultsEndTheProcess) {
  EXPECT_DEATH(run_block(32, 64, [] { cuda::load_shared_16(shared_address(dynamic_shared()) + 64); }), "beyond");
  EXPECT_DEATH(run_block(32, 64, [] { cuda::load_shared_16(shared_address(dynamic_shared()) + 8); }), "misaligned");
  EXPECT_DEATH(run_block(32, 0,
                         [] {
                           if (threadIdx.x < 16) {
                             __syncwarp();
                           } else {
                             __ballot_sync(~0U, true);
                           }
                         }),
               "different operations");
  EXPECT_DEATH(run_block(64, 0,
                         [] {
                           if (threadIdx.x != 5) __syncwarp();
                         }),
               "do not come");
  EXPECT_DEATH(run_block(32, 0, [] { __shfl_sync(0xFFFFU, 1, 0); }), "mask");
}

}  // namespace
}  // namespace kivi::emulation
