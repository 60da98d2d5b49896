// The quantiser of the CUDA kernels against format::quantise, at the borders between codes.
#include "backend/cuda/kernels/group_quantiser.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/half.h"

namespace kivi::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The quantisers of a line whose reciprocal is off by as much as the device's may be.
std::vector<GroupQuantiser> quantisers(const format::GroupLine& line, int bits) {
  std::vector<GroupQuantiser> all;
  const float exact = 1.0F / line.scale;
  for (const int off : {-2, -1, 0, 1, 2}) {
    const auto reciprocal = line.scale == 0.0F ? exact : std::bit_cast<float>(std::bit_cast<uint32_t>(exact) + off);
    if (std::abs(reciprocal - exact) > 0x1p-23F * exact) continue;
    all.push_back(GroupQuantiser::make(line, bits, reciprocal));
  }
  return all;
}

struct Mismatches {
  int64_t n = 0;
  void compare(const std::vector<GroupQuantiser>& quantisers, float x, const format::GroupLine& line, int bits) {
    const uint32_t wanted = format::quantise(x, line.scale, line.zero, bits);
    for (const GroupQuantiser& quantiser : quantisers) {
      if (quantiser.code(x, bits) == wanted) continue;
      if (n++ == 0) ADD_FAILURE() << x << " of scale " << line.scale << ", zero " << line.zero << ", bits " << bits;
    }
  }
};

// The border above code k, and the floats beside it.
std::vector<float> around(float border) {
  std::vector<float> all = {border};
  float below = border;
  float above = border;
  for (int i = 0; i < 3; ++i) {
    all.push_back(below = std::nextafter(below, -kInfinity));
    all.push_back(above = std::nextafter(above, kInfinity));
  }
  return all;
}

// Every scale there is, subnormal ones among them, at every border (of 255, at some).
TEST(GroupQuantiser, EqualsTheDivisionAtEveryBorder) {
  Mismatches mismatches;
  for (uint16_t scale_bits = 1; scale_bits < 0x7C00; ++scale_bits) {
    const format::GroupLine line{to_float(Half{scale_bits}), 0.0F};
    for (const int bits : {2, 3, 4, 8}) {
      const std::vector<GroupQuantiser> all = quantisers(line, bits);
      const auto top = static_cast<int>(format::max_code(bits));
      for (int k = bits == 8 ? scale_bits % 16 : 0; k <= top; k += bits == 8 ? 16 : 1) {
        for (const float x : around((static_cast<float>(k) + 0.5F) * line.scale)) {
          mismatches.compare(all, x, line, bits);
        }
      }
    }
  }
  EXPECT_EQ(mismatches.n, 0);
}

// 16-bit numbers x, and zeros as they are stored: many differences are borders exactly, others are rounded.
TEST(GroupQuantiser, EqualsTheDivisionOfNumbersLessTheirZero) {
  std::mt19937 random(3);
  Mismatches mismatches;
  for (int round = 0; round < 20000; ++round) {
    const auto spread =
        std::ldexp(1.0F + static_cast<float>(random() % 1024) / 1024.0F, static_cast<int>(random() % 30) - 16);
    const auto middle = std::ldexp(static_cast<float>(random() % 2048) - 1024.0F, static_cast<int>(random() % 16) - 10);
    for (const int bits : {2, 3, 4, 8}) {
      format::GroupLine line = format::line_of(format::group_params({middle - spread, middle + spread}, bits));
      if (round % 2 == 1) line.scale = format::scale_of_byte(format::scale_to_byte(line.scale));
      const std::vector<GroupQuantiser> all = quantisers(line, bits);
      for (int i = 0; i < 32; ++i) {
        const float x = middle + spread * (static_cast<float>(random() % 2048) / 1000.0F - 1.0F);
        mismatches.compare(all, to_float(to_half(x)), line, bits);
        mismatches.compare(all, to_float(to_bfloat16(x)), line, bits);
      }
    }
  }
  EXPECT_EQ(mismatches.n, 0);
}

TEST(GroupQuantiser, EqualsTheDivisionOfSpecialNumbers) {
  Mismatches mismatches;
  const float largest = std::numeric_limits<float>::max();
  for (const float scale : {0.0F, 0x1p-24F, 0x3p-24F, 1.0F, 0x1.554p-2F, 43680.0F, 65504.0F}) {
    for (const float zero : {0.0F, -kHalfMax, kHalfMax, 0x1p-24F, -1.5F}) {
      const format::GroupLine line{scale, zero};
      for (const int bits : {2, 3, 4, 8}) {
        for (const float x : {0.0F, -0.0F, std::nanf(""), kInfinity, -kInfinity, largest, -largest, 0x1p-149F,
                              -0x1p-149F, 0x1p-133F, kHalfMax, -kHalfMax, 65536.0F, 0x1p-24F}) {
          mismatches.compare(quantisers(line, bits), x, line, bits);
        }
      }
    }
  }
  EXPECT_EQ(mismatches.n, 0);
}

}  // namespace
}  // namespace kivi::cuda
