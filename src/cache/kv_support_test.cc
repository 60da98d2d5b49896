#include "cache/kv_support.h"

#include <gtest/gtest.h>

#include <optional>

#include "backend/fake_device.h"
#include "core/error.h"

namespace kivi {
namespace {

constexpr KvShape kShape{.n_layers = 2, .n_kv_heads = 2, .head_dim = 64};

std::optional<Error> refusal(Backend& backend, const KvShape& shape, const char* kv) {
  try {
    require_kernels(backend, shape, 2, parse_kv_config(kv));
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

TEST(KvSupport, EveryDeviceHasThePresets) {
  for (const std::string& device : available_devices()) {
    const auto backend = make_backend({.device = device, .n_threads = 1});
    for (const char* kv : {"f16", "kivi4:sinks=20", "kivi2", "kivi2:residual=32"}) {
      EXPECT_NO_THROW(require_kernels(*backend, kShape, 8, parse_kv_config(kv))) << device << " " << kv;
    }
  }
  FakeDevice recording;
  EXPECT_NO_THROW(require_kernels(recording, kShape, 8, parse_kv_config("kivi2")));
}

TEST(KvSupport, AHeadThatNoKernelTakesIsTold) {
  const auto backend = make_backend({.device = "cpu", .n_threads = 1});
  const KvShape odd{.n_layers = 1, .n_kv_heads = 2, .head_dim = 72};
  for (const char* kv : {"f16", "kivi2"}) {
    const auto error = refusal(*backend, odd, kv);
    ASSERT_TRUE(error) << kv;
    EXPECT_EQ(error->code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(error->what()).find("head_dim 72"), std::string::npos) << error->what();
  }
}

// A device that has a kernel for f16 caches of head_dim 64 alone.
class Picky : public FakeDevice {
 public:
  void plan_attend(const PlanAttendArgs& args) override {
    const format::PageLayout& layout = args.cache.layout;
    if (layout.key_bits != 0 || layout.head_dim != 64) fail(ErrorCode::kUnsupported, "head_dim 64 in 16 bits only");
    FakeDevice::plan_attend(args);
  }
};

TEST(KvSupport, AMissingKernelIsTold) {
  Picky backend;
  EXPECT_NO_THROW(require_kernels(backend, kShape, 2, parse_kv_config("f16")));
  const auto error = refusal(backend, kShape, "kivi2");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kUnsupported);
  EXPECT_NE(std::string(error->what()).find("head_dim 64"), std::string::npos);
}

}  // namespace
}  // namespace kivi
