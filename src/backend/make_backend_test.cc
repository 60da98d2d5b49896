#include <gtest/gtest.h>

#include <cstdlib>

#include "backend/backend_tester.h"
#include "backend/cuda_factory.h"

namespace kivi {
namespace {

class ForcedIsa {
 public:
  explicit ForcedIsa(const char* isa) { setenv("KIVI_FORCE_ISA", isa, 1); }
  ~ForcedIsa() { unsetenv("KIVI_FORCE_ISA"); }
};

TEST(MakeBackend, EveryAvailableDeviceIsMade) {
  for (const std::string& device : available_devices()) EXPECT_EQ(make_backend({device, {}})->info().device, device);
}

TEST(MakeBackend, CpuIsTheBestInstructionSet) {
  EXPECT_EQ(make_backend({"cpu", {}})->info().device, cpu_devices().front().name);
  EXPECT_GE(make_backend({"cpu", {}})->info().n_threads, 1);
}

TEST(MakeBackend, TheBestDeviceIsAGpuIfThereIsOne) {
  const std::vector<std::string> gpus = cuda_devices();
  EXPECT_EQ(make_backend({})->info().device, gpus.empty() ? cpu_devices().front().name : gpus.front());
}

TEST(MakeBackend, AGpuThatIsNotThereIsAnErrorOfOneLine) {
  const auto error = error_of([] { make_backend({"cuda:999", {}}); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kUnsupported);
  const std::string what = error->what();
  EXPECT_EQ(what.find('\n'), std::string::npos);
  EXPECT_NE(what.find(cuda_devices().empty() ? "--device cpu" : "cuda:0"), std::string::npos) << what;
}

TEST(MakeBackend, OnlyAGpuComputesInBf16) {
  for (const char* device : {"cpu", "cpu:portable", "reference"}) {
    EXPECT_EQ(make_backend({.device = device, .n_threads = 1, .dtype = DType::kF16})->activation_dtype(), DType::kF32);
    const auto error = error_of([&] { make_backend({.device = device, .n_threads = 1, .dtype = DType::kBF16}); });
    ASSERT_TRUE(error) << device;
    EXPECT_EQ(error->code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(error->what()).find("bf16"), std::string::npos) << error->what();
  }
  EXPECT_EQ(error_of([] { make_backend({.device = "cuda", .n_threads = {}, .dtype = DType::kF32}); })->code(),
            ErrorCode::kUnsupported);
  for (const std::string& device : cuda_devices()) {
    EXPECT_EQ(make_backend({.device = device, .n_threads = {}})->activation_dtype(), DType::kF16);
  }
}

TEST(MakeBackend, TheEnvironmentForcesAnInstructionSet) {
  const ForcedIsa forced("portable");
  EXPECT_EQ(make_backend({"cpu", {}})->info().device, "cpu:portable");
  EXPECT_EQ(make_backend({})->info().device, "cpu:portable");
  EXPECT_EQ(make_backend({"cpu:portable", {}})->info().device, "cpu:portable");
  const auto error = error_of([] { make_backend({"cpu:avx2", {}}); });
  ASSERT_TRUE(error);
  EXPECT_NE(std::string(error->what()).find("avx2"), std::string::npos);
  EXPECT_NE(std::string(error->what()).find("portable"), std::string::npos);
}

TEST(MakeBackend, WhatIsNotThereIsAnErrorThatListsWhatIs) {
  for (const char* device : {"tpu", "cpu:", "cpu:sse9", "reference:x", "cuda:x", "cpu:avx512:2"}) {
    const auto error = error_of([&] { make_backend({device, {}}); });
    ASSERT_TRUE(error) << device;
    EXPECT_EQ(error->code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(error->what()).find("portable"), std::string::npos) << error->what();
  }
  const ForcedIsa forced("sse9");
  EXPECT_EQ(error_of([] { make_backend({}); })->code(), ErrorCode::kUnsupported);
}

TEST(MakeBackend, ThreadsAreAtLeastOne) {
  EXPECT_EQ(make_backend({"cpu", 3})->info().n_threads, 3);
  EXPECT_EQ(error_of([] { make_backend({"cpu", 0}); })->code(), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace kivi
