// What the attention kernels of one instruction set share: vectors of f32, and loads that make f32 of what the cache
// holds.
#include <hwy/highway.h>

#include <cstdint>

#include "core/half.h"
#include "format/group_params.h"

#if defined(KIVI_BACKEND_CPU_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KIVI_BACKEND_CPU_ATTEND_INL_H_
#undef KIVI_BACKEND_CPU_ATTEND_INL_H_
#else
#define KIVI_BACKEND_CPU_ATTEND_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace kivi::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::ScalableTag<float>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));

HWY_INLINE VF load_halves(const Half* from) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(), hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(from)));
}

// Scales in a byte each (format::scale_of_byte), and bytes as floats.
HWY_INLINE VF load_byte_scales(const uint8_t* from) {
  const hn::Rebind<uint8_t, DF> d8;
  const hn::Rebind<uint16_t, DF> d16;
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(), hn::BitCast(dh, hn::ShiftLeft<7>(hn::PromoteTo(d16, hn::LoadU(d8, from)))));
}
HWY_INLINE VF load_bytes(const uint8_t* from) {
  const hn::Rebind<uint8_t, DF> d8;
  return hn::ConvertTo(DF(), hn::PromoteTo(hn::RebindToSigned<DF>(), hn::LoadU(d8, from)));
}

// The high bits of kLanes codes of 3 bits, as floats 0 or 4; the first is bit `bit` of the byte.
HWY_INLINE VF load_high_bits(const uint8_t* from, int bit) {
  const DF d;
  const VF four = hn::Set(d, 4.0F);
  if constexpr (kLanes >= 8) {
    return hn::IfThenElseZero(hn::LoadMaskBits(d, from + bit / 8), four);
  } else {
    const DU du;
    const auto lane_bit = hn::Shl(hn::Set(du, 1U), hn::Iota(du, static_cast<uint32_t>(bit % 8)));
    const auto byte = hn::Set(du, uint32_t{from[bit / 8]});
    return hn::IfThenElseZero(hn::RebindMask(d, hn::Ne(hn::And(byte, lane_bit), hn::Zero(du))), four);
  }
}

// A run of codes: its words and, with 3 bits, its plane of high bits.
struct CodeRun {
  const uint32_t* words;
  const uint8_t* high;

  // The run that begins at this place of a side's codes, whose high bit is the first of a byte.
  static CodeRun at(const std::byte* codes, const format::CodePlaces& first) {
    const auto* words = reinterpret_cast<const uint32_t*>(codes);
    return {words + first.low.word, reinterpret_cast<const uint8_t*>(words + first.high.word) + first.high.place / 8};
  }
  // n codes further on: whole bytes of high bits, and words or, where kernels know the place in a word, less.
  template <int kBits>
  HWY_INLINE CodeRun plus(int64_t n) const {
    return {words + n / format::codes_per_word(kBits), high + n / 8};
  }
};

// Codes first .. first + kLanes - 1 of a run of words, as floats; their high bits begin at bit high_bit of the run's.
// Both are multiples of kLanes and known when inlined.
template <int kBits>
HWY_INLINE VF load_codes(const CodeRun& run, int first, int high_bit) {
  if constexpr (kBits == 3) {
    return hn::Add(load_codes<2>(run, first, 0), load_high_bits(run.high, high_bit));
  }
  const uint32_t* words = run.words;
  constexpr int kPerWord = format::codes_per_word(kBits);
  const DF d;
  const DU du;
  if constexpr (kBits == 8) {
    return load_bytes(reinterpret_cast<const uint8_t*>(words) + first);
  } else {
    auto word = hn::Set(du, words[first / kPerWord]);
    if constexpr (kLanes > kPerWord) {
      static_assert(kLanes == 2 * kPerWord);
      word = hn::IfThenElse(hn::FirstN(du, kPerWord), word, hn::Set(du, words[first / kPerWord + 1]));
    }
    const auto lane = hn::And(hn::Iota(du, 0), hn::Set(du, kPerWord - 1));
    const auto start = hn::Set(du, static_cast<uint32_t>(first % kPerWord));
    const auto shifted = hn::Shr(word, hn::Mul(hn::Add(lane, start), hn::Set(du, kBits)));
#if HWY_TARGET == HWY_AVX3
    // The permutation reads the low four bits of each lane: a table look-up that masks and converts in one instruction.
    alignas(64) static constexpr float kTable[2][16] = {{0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3},
                                                        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
    return VF{_mm512_permutexvar_ps(shifted.raw, hn::Load(d, kTable[kBits / 4]).raw)};
#else
    const auto code = hn::And(shifted, hn::Set(du, format::max_code(kBits)));
    return hn::ConvertTo(d, hn::BitCast(hn::RebindToSigned<DF>(), code));
#endif
  }
}

// Calls body(integral_constant) for the bit width.
template <typename Body>
HWY_INLINE void with_bits(int bits, Body body) {
  switch (bits) {
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    default:
      return body(std::integral_constant<int, 8>());
  }
}

}  // namespace kivi::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KIVI_BACKEND_CPU_ATTEND_INL_H_
