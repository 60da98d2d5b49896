// What the CUDA kernels take the words of a page for, enumerated on the host against the layout's index functions.
#include "backend/cuda/kernels/fragment_words.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "backend/cuda/kernels/expand_page.h"
#include "format/group_params.h"

namespace kivi::cuda {
namespace {

using format::PageLayout;
using format::ParamFormat;

constexpr int kBits[] = {2, 3, 4, 8};
constexpr int kHeadDims[] = {32, 64, 96, 128, 160, 192, 224, 256};

PageLayout layout_of(int head_dim, int bits, int group = 32, ParamFormat params = ParamFormat::kHalf) {
  PageLayout layout{1, head_dim, bits, bits, group, group, format::CodeOrder::kFragment, params};
  while (head_dim % layout.value_group != 0) layout.value_group /= 2;
  return layout;
}

// Calls run(with the number of bits as a constant).
template <typename Run>
void with_bits(int bits, Run run) {
  if (bits == 2) run(std::integral_constant<int, 2>());
  if (bits == 3) run(std::integral_constant<int, 3>());
  if (bits == 4) run(std::integral_constant<int, 4>());
  if (bits == 8) run(std::integral_constant<int, 8>());
}

// The word of a plane, counted from the first of that plane, and the code's place in it.
format::CodePlace place_in(Plane plane, const format::CodePlaces& at, int head_dim, int bits) {
  if (plane == Plane::kLow) return at.low;
  return {at.high.word - words_of_tokens(format::kPageTokens, head_dim, bits, Plane::kLow), at.high.place};
}

void expect_stretches(int head_dim, int bits, Plane plane) {
  SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << " bits " << bits
                                  << (plane == Plane::kHigh ? " high" : ""));
  const PageLayout layout = layout_of(head_dim, bits);
  const int stretch = exclusive_tokens(head_dim, bits);
  const int n_words = words_of_tokens(stretch, head_dim, bits, plane);
  bool shared = false;  // by the two halves of a stretch of 64
  std::vector<int> owner(words_of_tokens(format::kPageTokens, head_dim, bits, plane), -1);
  for (int token = 0; token < format::kPageTokens; ++token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      const int64_t key = place_in(plane, layout.key_code(token, channel), head_dim, bits).word;
      EXPECT_EQ(key / n_words, token / stretch);
      EXPECT_EQ(place_in(plane, layout.value_code(token, channel), head_dim, bits).word / n_words, token / stretch);
      int& half = owner[key];
      shared |= half >= 0 && half != token / 32;
      half = token / 32;
    }
  }
  EXPECT_EQ(shared, stretch == 64);
}

TEST(FragmentWords, AWordBelongsToOneStretchOfTokens) {
  for (const int bits : kBits) {
    for (const int head_dim : kHeadDims) {
      expect_stretches(head_dim, bits, Plane::kLow);
      if (format::has_high_plane(bits)) expect_stretches(head_dim, bits, Plane::kHigh);
    }
  }
}

// Tokens first .. end - 1 of a page written through words: exactly their codes change, each word once.
template <int Bits>
void expect_words_write(int head_dim, int first, int end) {
  SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << " bits " << Bits << " tokens " << first << " " << end);
  const PageLayout layout = layout_of(head_dim, Bits);
  std::mt19937 random(first * 1000 + end);
  std::vector<uint32_t> codes(format::kPageTokens * head_dim);
  for (uint32_t& code : codes) code = random() & format::max_code(Bits);
  const auto code_of = [&](int token, int channel) {
    EXPECT_TRUE(token >= first && token < end);
    return codes[token * head_dim + channel];
  };
  const int n_low = words_of_tokens(format::kPageTokens, head_dim, Bits, Plane::kLow);
  constexpr bool kTwoPlanes = format::has_high_plane(Bits);
  const int n_high = kTwoPlanes ? words_of_tokens(format::kPageTokens, head_dim, Bits, Plane::kHigh) : 0;
  std::vector<uint32_t> keys(n_low + n_high);
  for (uint32_t& word : keys) word = static_cast<uint32_t>(random());
  std::vector<uint32_t> values = keys;
  std::vector<uint32_t> wanted_keys = keys;
  std::vector<uint32_t> wanted_values = keys;
  for (int token = first; token < end; ++token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      const auto set = [&](std::vector<uint32_t>& words, const format::CodePlaces& at) {
        format::write_code(words.data(), at, Bits, codes[token * head_dim + channel]);
      };
      set(wanted_keys, layout.key_code(token, channel));
      set(wanted_values, layout.value_code(token, channel));
    }
  }
  const auto write = [&]<Plane plane>(int first_word, int n_words) {
    for (int word = 0; word < n_words; ++word) {
      uint32_t& key = keys[first_word + word];
      key = key_word<Bits, plane>(word, head_dim, first, end, code_of).apply(key);
      uint32_t& value = values[first_word + word];
      value = value_word<Bits, plane>(word, head_dim, first, end, code_of).apply(value);
    }
  };
  write.template operator()<Plane::kLow>(0, n_low);
  if constexpr (kTwoPlanes) write.template operator()<Plane::kHigh>(n_low, n_high);
  EXPECT_EQ(keys, wanted_keys);
  EXPECT_EQ(values, wanted_values);
}

TEST(FragmentWords, WordsWriteTheirTokensAndNoOthers) {
  for (const int head_dim : kHeadDims) {
    for (const int bits : kBits) {
      with_bits(bits, [&](auto constant) {
        constexpr int kWidth = decltype(constant)::value;
        expect_words_write<kWidth>(head_dim, 0, 128);
        expect_words_write<kWidth>(head_dim, 32, 64);
        expect_words_write<kWidth>(head_dim, 77, 78);
        expect_words_write<kWidth>(head_dim, 5, 111);
      });
    }
  }
}

// What store_token.cuh writes without reading: of a token, the codes of channels c, c + 2, c + 32, c + 34, ... up to 8
// / bits spans of 32, side by side in whole bytes that no other token has.
TEST(FragmentWords, TheCodesOfAValueFillBytes) {
  for (const int head_dim : kHeadDims) {
    for (const int width : kBits) {
      const int bits = format::low_bits(width);
      const PageLayout layout = layout_of(head_dim, width);
      const int run_spans = std::min(8 / bits, head_dim / 32);
      if (head_dim % (32 * run_spans) != 0 || 2 * run_spans * bits % 8 != 0) continue;
      std::map<int64_t, int> token_of_byte;
      for (int token = 0; token < format::kPageTokens; ++token) {
        for (int channel = 0; channel < head_dim; ++channel) {
          if (channel / 32 % run_spans != 0 || channel % 4 > 1) continue;  // the first of a run
          const format::CodePlace first = layout.value_code(token, channel).low;
          ASSERT_EQ(first.place * bits % 8, 0);
          for (int i = 0; i < 2 * run_spans; ++i) {
            const format::CodePlace place = layout.value_code(token, channel + i / 2 * 32 + i % 2 * 2).low;
            EXPECT_EQ(place.word, first.word);
            EXPECT_EQ(place.place, first.place + i);
            const int64_t byte = 4 * place.word + bits * place.place / 8;
            EXPECT_EQ(token_of_byte.emplace(byte, token).first->second, token);
          }
        }
      }
    }
  }
}

// And the high bits of the same codes, in 128 channels: rows r and r + 8 are neighbouring bytes that no other token
// has. In 64 channels every other bit of these, and the next ones are those of the token four further on.
TEST(FragmentWords, TheHighBitsOfAValueFillBytesOrEveryOtherBit) {
  for (const int head_dim : {64, 128, 256}) {
    const PageLayout layout = layout_of(head_dim, 3);
    for (int token = 0; token < format::kPageTokens; ++token) {
      for (int channel = 0; channel < head_dim; ++channel) {
        const int run = std::min(head_dim, 128);
        if (channel % run / 32 != 0 || channel % 4 != 0) continue;  // the first of a run
        const format::CodePlace first = layout.value_code(token, channel).high;
        const int shift = head_dim == 64 ? token % 8 / 4 : 0;
        EXPECT_EQ(first.place % 16, shift);
        uint32_t mask = 0;
        for (int i = 0; i < run / 8; ++i) {
          const format::CodePlace place = layout.value_code(token, channel + i / 4 * 32 + i % 4).high;
          EXPECT_EQ(place.word, first.word);
          EXPECT_EQ(place.place - first.place, 8 * (i % 2) + format::high_bit_in_byte(i / 2));
          mask |= 1U << (place.place % 16);
        }
        EXPECT_EQ(mask, head_dim == 64 ? 0x5555U << shift : 0xFFFFU);
      }
    }
  }
}

// ---- Expanding half a page ----

void copy(const Strip& strip, const std::byte* block, std::byte* staged) {
  ASSERT_EQ(strip.bytes % 16 + strip.from % 16 + strip.to % 16, 0);
  std::copy_n(block + strip.from, strip.bytes, staged + strip.to);
}

template <typename T>
T rounded(float x) {
  if constexpr (std::is_same_v<T, Half>) {
    return to_half(std::min(x, kHalfMax));
  } else {
    return to_bfloat16(x);
  }
}

template <typename T, int kHeadDim, int Bits, ParamFormat kParams>
void expect_expanded(const PageLayout& layout, bool keys, int half, int n_tokens) {
  SCOPED_TRACE(testing::Message() << "head_dim " << kHeadDim << " bits " << Bits << " group " << layout.key_group
                                  << (kParams == ParamFormat::kByte ? " params in bytes" : "")
                                  << (keys ? " keys" : " values") << " half " << half << " tokens " << n_tokens);
  constexpr int kPitch = kHeadDim + 8;
  std::mt19937 random(n_tokens);
  std::vector<std::byte> block(layout.block_bytes());
  for (std::byte& byte : block) byte = static_cast<std::byte>(random());
  const auto tame = [&](int64_t begin, int64_t end) {  // params: below 2 as halves, finite as scales of bytes
    constexpr uint16_t kMask = kParams == ParamFormat::kHalf ? 0xBFFF : 0xBFBF;
    for (int64_t at = begin; at < end; at += 2) reinterpret_cast<Half*>(block.data() + at)->bits &= kMask;
  };
  tame(layout.key_scales(), layout.value_codes());
  tame(layout.value_scales(), layout.block_bytes());
  const HalfPage parts = keys ? key_half_page(layout, half) : value_half_page(layout, half);
  std::vector<std::byte> staged(parts.bytes());
  for (const Strip& strip : parts.strips) copy(strip, block.data(), staged.data());
  std::vector<T> rows(kHalfPage * kPitch, T{0xEEEE});
  std::vector<T> wanted = rows;
  for (int item = 0; item < expand_items(kHeadDim); ++item) {
    if (keys) {
      expand_keys<T, kHeadDim, Bits, kParams>(item, staged.data(), parts, layout.key_group, n_tokens, rows.data(),
                                              kPitch);
    } else {
      expand_values<T, kHeadDim, Bits, kParams>(item, staged.data(), parts, layout.value_group, n_tokens, rows.data(),
                                                kPitch);
    }
  }
  for (int i = 0; i < n_tokens; ++i) {
    const int token = half * kHalfPage + i;
    for (int channel = 0; channel < kHeadDim; ++channel) {
      const format::CodePlaces at = keys ? layout.key_code(token, channel) : layout.value_code(token, channel);
      const auto* words =
          reinterpret_cast<const uint32_t*>(block.data() + (keys ? layout.key_codes() : layout.value_codes()));
      const format::GroupLine line = keys ? format::key_line(layout, block.data(), token, channel)
                                          : format::value_line(layout, block.data(), token, channel);
      const float x = format::dequantise(format::read_code(words, at, Bits), line.scale, line.zero);
      wanted[i * kPitch + channel] = rounded<T>(x);
    }
  }
  EXPECT_TRUE(rows == wanted);
}

template <typename T, int kHeadDim, int Bits, ParamFormat kParams>
void expect_all_expanded() {
  for (const int group : {32, 64, 128}) {
    const PageLayout layout = layout_of(kHeadDim, Bits, group, kParams);
    for (const bool keys : {true, false}) {
      expect_expanded<T, kHeadDim, Bits, kParams>(layout, keys, 0, 64);
      expect_expanded<T, kHeadDim, Bits, kParams>(layout, keys, 1, 64);
      expect_expanded<T, kHeadDim, Bits, kParams>(layout, keys, 1, 32);
      expect_expanded<T, kHeadDim, Bits, kParams>(layout, keys, 0, 19);
    }
  }
}

TEST(ExpandPage, HalvesOfPagesBecomeRows) {
  for (const int bits : kBits) {
    with_bits(bits, [](auto constant) {
      constexpr int kWidth = decltype(constant)::value;
      expect_all_expanded<Half, 64, kWidth, ParamFormat::kHalf>();
      expect_all_expanded<Half, 96, kWidth, ParamFormat::kHalf>();
      expect_all_expanded<Half, 128, kWidth, ParamFormat::kHalf>();
      expect_all_expanded<Half, 256, kWidth, ParamFormat::kHalf>();
      expect_all_expanded<BFloat16, 128, kWidth, ParamFormat::kHalf>();
      expect_all_expanded<Half, 64, kWidth, ParamFormat::kByte>();
      expect_all_expanded<Half, 96, kWidth, ParamFormat::kByte>();
      expect_all_expanded<BFloat16, 128, kWidth, ParamFormat::kByte>();
      expect_all_expanded<Half, 256, kWidth, ParamFormat::kByte>();
    });
  }
}

TEST(ExpandPage, CodesBecomeFloatsExactly) {
  for (uint32_t code = 0; code < 256; ++code) EXPECT_EQ(code_to_float(code), static_cast<float>(code));
}

// The largest number of a group can round up to beyond binary16.
TEST(ExpandPage, NothingBecomesInfinite) {
  EXPECT_EQ((pack_stored<Half, ParamFormat::kHalf>(65536.0F, -65504.0F)), 0xFBFF7BFFU);
  EXPECT_EQ((pack_stored<Half, ParamFormat::kByte>(65536.0F, -92160.0F)), 0xFBFF7BFFU);
}

}  // namespace
}  // namespace kivi::cuda
