// What the attention kernels of one instruction set share: vectors of f32, and loads that make f32 of what the cache
// holds.
#include <hwy/highway.h>

#include <cstdint>

#include "core/half.h"
#include "format/packed_word.h"

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

// Codes first .. first + kLanes - 1 of a run of words, as floats. `first` is a multiple of kLanes and known when
// inlined.
template <int kBits>
HWY_INLINE VF load_codes(const uint32_t* words, int first) {
  constexpr int kPerWord = 32 / kBits;
  const DF d;
  const DU du;
  if constexpr (kBits == 8) {
    const hn::Rebind<uint8_t, DF> d8;
    const auto bytes = hn::LoadU(d8, reinterpret_cast<const uint8_t*>(words) + first);
    return hn::ConvertTo(d, hn::PromoteTo(hn::RebindToSigned<DF>(), bytes));
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
    case 4:
      return body(std::integral_constant<int, 4>());
    default:
      return body(std::integral_constant<int, 8>());
  }
}

}  // namespace kivi::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KIVI_BACKEND_CPU_ATTEND_INL_H_
