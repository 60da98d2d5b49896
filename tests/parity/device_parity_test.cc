// attend and store_kv of every device against the reference, on the same stored numbers. Sequences go through steps
// of all kinds; after each, every byte of the device's cache must be the reference's (codes, scales, zeros and windows,
// and what nobody may touch), and so each step's attention is compared on the same cache.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <vector>

#include "lockstep.h"

namespace kivi::parity {
namespace {

class DeviceParity : public testing::TestWithParam<CacheCase> {};

// Calls run(lockstep) for every family of devices.
template <typename Run>
void for_each_family(const CacheCase& which, int n_sequences, int64_t max_tokens, Run run) {
  static const std::vector<Family> all = find_families();
  ASSERT_FALSE(all.empty());
  for (const Family& family : all) {
    SCOPED_TRACE(fmt::format("seed 5, {} pages, {}", family.order == format::CodeOrder::kLinear ? "linear" : "fragment",
                             name(family.dtype)));
    Lockstep lockstep(which, family, n_sequences, max_tokens, 5);
    try {
      run(lockstep);
    } catch (const Error& error) {  // a device need not have every case, but must say so
      if (error.code() != ErrorCode::kUnsupported) throw;
      std::cout << "not there: " << error.what() << "\n";
    }
    if (testing::Test::HasFatalFailure()) return;
  }
}

// Prompts of all lengths at once, chunks beside decoding, decoding, across flushes and page edges.
TEST_P(DeviceParity, EqualsTheReference) {
  for_each_family(GetParam(), 9, 1024, [](Lockstep& lockstep) {
    lockstep.step({0, 1, 31, 32, 33, 127, 128, 129, 300}, Numbers::kLoud);
    lockstep.step({1, 2, 17, 0, 200, 2, 1, 127, 1}, Numbers::kHalves, true);
    lockstep.step({1, 1, 1, 1, 1, 1, 1, 1, 1}, Numbers::kPeaked);
    lockstep.step({1, 1, 1, 0, 1, 0, 1, 1, 1}, Numbers::kLoud, true);
    lockstep.step({1, 130, 0, 96, 3, 2, 1, 1, 17}, Numbers::kPeaked);
    lockstep.step({70, 1, 0, 1, 40, 2, 300, 1, 1}, Numbers::kConstant);
    lockstep.step({1, 1, 1, 1, 1, 1, 1, 1, 1}, Numbers::kLoud);
  });
}

// Groups with numbers that have no place on a scale.
TEST_P(DeviceParity, StoresSpecialNumbers) {
  for_each_family(GetParam(), 3, 512, [](Lockstep& lockstep) {
    lockstep.step({300, 130, 1}, Numbers::kSpecial);
    lockstep.step({1, 1, 1}, Numbers::kSpecial);
    lockstep.step({100, 3, 150}, Numbers::kSpecial);
  });
}

constexpr format::WindowPolicy kKeepKeys{.sinks = 5, .keep = 64, .flush = 32};
constexpr format::WindowPolicy kKeepKeys128{.sinks = 5, .keep = 64, .flush = 128};
constexpr format::WindowPolicy kFlushValues{.sinks = 5, .keep = 40, .flush = 8};

constexpr CacheCase kCases[] = {
    {"f16", 128, 2, 1},
    {"f16:sinks=4", 96, 1, 4},
    {"kivi2", 128, 2, 1},
    {"kivi2", 64, 1, 4},
    {"kivi2", 96, 2, 1},
    {"kivi2", 256, 1, 2},
    {"kivi2:residual=32", 96, 1, 7},
    {"kivi2:residual=32:sinks=20", 64, 5, 1},
    {"kivi2:residual=0", 64, 1, 1},
    {"kivi2:group-size=64", 128, 1, 16},
    {"kivi2:group-size=64:residual=64:sinks=4", 96, 1, 1},
    {"kivi2:group-size=128", 64, 1, 8},
    {"kivi2:group-size=128:sinks=4", 128, 1, 1},
    {"kivi4", 128, 1, 4},
    {"kivi4", 96, 1, 1},
    {"kivi4:group-size=64:sinks=4", 256, 1, 1},
    {"kivi4:group-size=128:residual=256", 64, 1, 1},
    {"kivi2:key-bits=4", 128, 1, 8},
    {"kivi2:value-bits=4:sinks=20", 64, 1, 1},
    {"kivi2:key-bits=8", 96, 1, 1},
    {"kivi2:value-bits=8", 128, 1, 1},
    {"kivi4:key-bits=8:value-bits=8:group-size=64", 256, 1, 1},
    {"kivi4:key-bits=8:value-bits=8", 64, 1, 7},
    {"kivi2:key-bits=16", 64, 1, 2},
    {"kivi4:value-bits=16:sinks=4", 128, 1, 1},
    {"kivi2", 128, 1, 1, kKeepKeys, kFlushValues},
    // Codes of 3 bits, params in bytes.
    {"kivi-s", 64, 2, 4},
    {"kivi-s", 128, 1, 8},
    {"kivi-s", 256, 1, 2},
    {"kivi-m", 64, 1, 7},
    {"kivi-m", 128, 5, 1},
    {"kivi-m:group-size=32", 96, 1, 4},
    {"kivi-l", 64, 5, 1},
    {"kivi-l", 96, 1, 4},
    {"kivi-l", 128, 2, 2},
    {"kivi-l:group-size=64:residual=64", 256, 1, 1},
    {"kivi-s:group-size=32:residual=32:sinks=20", 64, 1, 4},
    {"kivi-s:group-size=64:residual=0", 128, 1, 1},
    {"kivi-s:key-bits=8:value-bits=8", 128, 1, 1},
    {"kivi-s:key-bits=2:value-bits=4", 64, 1, 1},
    {"kivi-s:key-bits=16", 128, 1, 1},
    {"kivi-l:value-bits=16", 64, 1, 2},
    {"kivi2:key-bits=3:value-bits=3", 64, 3, 1},
    {"kivi2:key-bits=3:value-bits=3", 128, 1, 4},
    {"kivi2:key-bits=3:value-bits=3", 96, 1, 1},
    {"kivi2:key-bits=3:value-bits=3:group-size=64:sinks=4", 256, 1, 2},
    {"kivi-s:value-bits=3", 64, 1, 1, kKeepKeys128, kFlushValues},
    {"kivi-s:value-bits=3:group-size=32", 128, 1, 1, kKeepKeys, kFlushValues},
    // Layers that slide: windows of one token, of less than R, of R, of no multiple of anything, never reached; capped.
    {"f16", 64, 1, 2, {}, {}, 1},
    {"f16:sinks=20", 96, 1, 4, {}, {}, 130},
    {"f16", 128, 2, 1, {}, {}, 512, 50.0F},
    {"kivi2", 128, 2, 1, {}, {}, 1},
    {"kivi2", 64, 1, 8, {}, {}, 45},
    {"kivi2", 96, 1, 1, {}, {}, 128},
    {"kivi2", 256, 1, 2, {}, {}, 200, 20.0F},
    {"kivi2", 128, 1, 4, {}, {}, 1000},
    {"kivi2:residual=32:sinks=20", 64, 2, 1, {}, {}, 100},
    {"kivi2:residual=0", 64, 1, 1, {}, {}, 257, 5.0F},
    {"kivi2:group-size=64", 128, 1, 2, {}, {}, 333},
    {"kivi2:group-size=128:sinks=4", 128, 1, 1, {}, {}, 150},
    {"kivi4:group-size=128:residual=256", 64, 1, 1, {}, {}, 129},
    {"kivi4", 96, 1, 1, {}, {}, 64},
    {"kivi4", 128, 1, 8, {}, {}, 0, 30.0F},
    {"kivi2:key-bits=16", 64, 1, 2, {}, {}, 99},
    {"kivi4:value-bits=16:sinks=4", 128, 1, 1, {}, {}, 99},
    {"kivi2", 128, 1, 1, kKeepKeys, kFlushValues, 70},
    {"kivi-s", 128, 1, 4, {}, {}, 200},
    {"kivi-m", 64, 1, 1, {}, {}, 45, 20.0F},
    {"kivi-l", 64, 2, 1, {}, {}, 333},
};

std::string case_name(const testing::TestParamInfo<CacheCase>& info) {
  std::string name = fmt::format("{}_d{}_h{}_kv{}{}", info.param.kv, info.param.head_dim, info.param.n_heads(),
                                 info.param.n_kv_heads, info.param.key_policy ? "_policies" : "");
  if (info.param.sliding_window > 0) name += fmt::format("_slides_{}", info.param.sliding_window);
  if (info.param.score_cap > 0) name += fmt::format("_cap_{}", info.param.score_cap);
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(EveryDevice, DeviceParity, testing::ValuesIn(kCases), case_name);

// One token beside thousands, decoding and in chunks.
TEST(DeviceParityRagged, LongBesideShort) {
  for (const int sliding_window : {0, 1500}) {
    for_each_family({"kivi2", 64, 1, 4, {}, {}, sliding_window}, 2, 6000, [](Lockstep& lockstep) {
      lockstep.step({1, 5000}, Numbers::kLoud);
      lockstep.step({1, 1}, Numbers::kPeaked);
      lockstep.step({5, 33}, Numbers::kLoud);
    });
  }
}

// More sequences than a block looks at in one go, and then more without new tokens side by side than a warp has lanes.
TEST(DeviceParityRagged, ManySequences) {
  constexpr int kSequences = 70;
  std::vector<int> prompts(kSequences);
  for (int b = 0; b < kSequences; ++b) prompts[b] = b * 7 % 41;
  const std::vector<int> ones(kSequences, 1);
  std::vector<int> some = ones;
  std::fill(some.begin() + 10, some.begin() + 55, 0);
  std::fill(some.end() - 5, some.end(), 0);
  for_each_family({"kivi2:residual=32", 64, 1, 1}, kSequences, 256, [&](Lockstep& lockstep) {
    lockstep.step(prompts, Numbers::kLoud, true);
    lockstep.step(ones, Numbers::kPeaked);
    lockstep.step(some, Numbers::kLoud);
  });
}

}  // namespace
}  // namespace kivi::parity
