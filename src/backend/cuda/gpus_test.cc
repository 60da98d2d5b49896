// What is said of GPUs that cannot be used. Needs none.
#include "backend/cuda/gpus.h"

#include <gtest/gtest.h>

#include "backend/backend_tester.h"

namespace kivi::cuda {
namespace {

void expect_refusal(const Gpus& gpus, int index, std::initializer_list<const char*> fragments) {
  const auto error = error_of([&] { require_usable(gpus, index); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kUnsupported);
  const std::string what = error->what();
  EXPECT_EQ(what.find('\n'), std::string::npos);
  for (const char* fragment : fragments) EXPECT_NE(what.find(fragment), std::string::npos) << what;
}

TEST(Gpus, SayWhyTheyCannotBeUsed) {
  expect_refusal({.why_none = "no NVIDIA driver is loaded"}, 0, {"cuda:0", "no NVIDIA driver", "--device cpu"});
  expect_refusal({.capabilities = {90}}, 1, {"cuda:1", "has cuda:0"});
  expect_refusal({.capabilities = {90, 80}}, 2, {"cuda:0 to cuda:1"});
  expect_refusal({.capabilities = {90, 75}}, 1, {"cuda:1", "7.5", "8.0", "--device cpu"});
  EXPECT_FALSE(error_of([] { require_usable({.capabilities = {75, 80, 90}}, 2); }));
}

TEST(Gpus, AreFoundOrItIsSaidWhyNot) {
  const Gpus gpus = find_gpus();
  EXPECT_TRUE(!gpus.capabilities.empty() || !gpus.why_none.empty());
}

}  // namespace
}  // namespace kivi::cuda
