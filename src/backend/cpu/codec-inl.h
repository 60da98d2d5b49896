// Decoders of the weight formats, for one instruction set at a time. weights/format.h has the layouts; each codec here
// turns one block into f32 vectors, in the order of the elements and to the bit of decode_row. All of them have
//
//   kBlockElements, kBlockBytes  the unit that open() takes; a multiple of 32 elements
//   open(block)                  reads what the whole block shares: scales
//   group(g)                     makes elements 32 g .. 32 g + 31 ready
//   vector(i)                    elements i * kLanes .. of that group
//
// Blocks may be unaligned.
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "weights/format.h"

#if defined(KIVI_BACKEND_CPU_CODEC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KIVI_BACKEND_CPU_CODEC_INL_H_
#undef KIVI_BACKEND_CPU_CODEC_INL_H_
#else
#define KIVI_BACKEND_CPU_CODEC_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace kivi::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32Tag = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32Tag>;
using I32Tag = hn::RebindToSigned<F32Tag>;
constexpr size_t kLanes = HWY_LANES(float);
constexpr size_t kGroupElements = 32;

using Bytes16Tag = hn::FixedTag<uint8_t, 16>;
using Bytes16 = hn::Vec<Bytes16Tag>;
using Bytes32Tag = hn::CappedTag<uint8_t, 32>;  // 16 on 128-bit targets
constexpr size_t kBytes32 = HWY_MIN(32, HWY_LANES(uint8_t));

// The binary16 number at p, in every lane.
HWY_INLINE F32Vec half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  const hn::Rebind<uint16_t, F32Tag> u16;
  const hn::Rebind<hwy::float16_t, F32Tag> f16;
  return hn::PromoteTo(F32Tag(), hn::BitCast(f16, hn::Set(u16, bits)));
#else
  return hn::Set(F32Tag(), to_float(Half{bits}));
#endif
}

// kLanes integers of 8 bits at p, as floats.
template <typename Int8>
HWY_INLINE F32Vec floats_at(const Int8* p) {
  const hn::Rebind<Int8, F32Tag> bytes;
  return hn::ConvertTo(F32Tag(), hn::PromoteTo(I32Tag(), hn::LoadU(bytes, p)));
}

// v >> bits in 8-bit lanes that are masked with `mask` afterwards.
template <class D>
HWY_INLINE hn::Vec<D> shift_and_mask(D d, hn::Vec<D> v, int bits, uint8_t mask) {
  const hn::Repartition<uint16_t, D> u16;
  return hn::And(hn::BitCast(d, hn::ShiftRightSame(hn::BitCast(u16, v), bits)), hn::Set(d, mask));
}

// The 32 codes of 4 bits of a group, and their values: scale * code + offset.
class Nibbles {
 public:
#if HWY_TARGET == HWY_AVX3
  // A register holds the values of all sixteen codes: they are computed once and looked up.
  HWY_INLINE void set_values(F32Vec scale, F32Vec offset) {
    values_ = hn::MulAdd(scale, hn::Iota(F32Tag(), 0.0F), offset);
  }
  // The low halves of 16 bytes, then their high halves.
  HWY_INLINE void set_both_halves(const uint8_t* qs) {
    codes_[0] = hn::PromoteTo(I32Tag(), hn::LoadU(Bytes16Tag(), qs));
    codes_[1] = hn::ShiftRight<4>(codes_[0]);
  }
  // The halves of 32 bytes that start at bit `shift`.
  HWY_INLINE void set_one_half(const uint8_t* qs, int shift) {
    for (size_t i = 0; i < 2; ++i) {
      codes_[i] = hn::ShiftRightSame(hn::PromoteTo(I32Tag(), hn::LoadU(Bytes16Tag(), qs + 16 * i)), shift);
    }
  }
  // The instruction ignores all but the low four bits of each code; Highway's TableLookupLanes asks for clean ones.
  HWY_INLINE F32Vec vector(size_t i) const {
    return F32Vec{_mm512_permutexvar_ps(codes_[i].raw, values_.raw)};
  }

 private:
  F32Vec values_;
  hn::Vec<I32Tag> codes_[2];
#else
  HWY_INLINE void set_values(F32Vec scale, F32Vec offset) {
    scale_ = scale;
    offset_ = offset;
  }
  HWY_INLINE void set_both_halves(const uint8_t* qs) {
    const Bytes16Tag d;
    const Bytes16 v = hn::LoadU(d, qs);
    hn::Store(hn::And(v, hn::Set(d, uint8_t{15})), d, codes_);
    hn::Store(hn::ShiftRight<4>(v), d, codes_ + 16);
  }
  HWY_INLINE void set_one_half(const uint8_t* qs, int shift) {
    const Bytes32Tag d;
    for (size_t i = 0; i < 32; i += kBytes32) {
      hn::Store(shift_and_mask(d, hn::LoadU(d, qs + i), shift, 15), d, codes_ + i);
    }
  }
  HWY_INLINE F32Vec vector(size_t i) const {
    return hn::MulAdd(scale_, floats_at(codes_ + i * kLanes), offset_);
  }

 private:
  F32Vec scale_;
  F32Vec offset_;
  alignas(32) uint8_t codes_[32];
#endif
};

class CodecF32 {
 public:
  static constexpr size_t kBlockElements = 32;
  static constexpr size_t kBlockBytes = 128;
  HWY_INLINE void open(const uint8_t* block) { block_ = block; }
  HWY_INLINE void group(size_t /*g*/) {}
  HWY_INLINE F32Vec vector(size_t i) const {
    const hn::Repartition<uint8_t, F32Tag> bytes;
    return hn::BitCast(F32Tag(), hn::LoadU(bytes, block_ + 4 * i * kLanes));
  }

 private:
  const uint8_t* block_;
};

template <typename Float16>  // hwy::float16_t or hwy::bfloat16_t
class CodecF16 {
 public:
  static constexpr size_t kBlockElements = 32;
  static constexpr size_t kBlockBytes = 64;
  HWY_INLINE void open(const uint8_t* block) { block_ = block; }
  HWY_INLINE void group(size_t /*g*/) {}
  HWY_INLINE F32Vec vector(size_t i) const {
    const hn::Rebind<Float16, F32Tag> f16;
    const hn::Repartition<uint8_t, decltype(f16)> bytes;
    return hn::PromoteTo(F32Tag(), hn::BitCast(f16, hn::LoadU(bytes, block_ + 2 * i * kLanes)));
  }

 private:
  const uint8_t* block_;
};

class CodecQ8_0 {
 public:
  using Block = BlockQ8_0;
  static constexpr size_t kBlockElements = 32;
  static constexpr size_t kBlockBytes = sizeof(Block);
  HWY_INLINE void open(const uint8_t* block) {
    d_ = half_at(block + offsetof(Block, d));
    codes_ = reinterpret_cast<const int8_t*>(block + offsetof(Block, qs));
  }
  HWY_INLINE void group(size_t /*g*/) {}
  HWY_INLINE F32Vec vector(size_t i) const { return hn::Mul(d_, floats_at(codes_ + i * kLanes)); }

 private:
  F32Vec d_;
  const int8_t* codes_;
};

class CodecQ4_0 {
 public:
  using Block = BlockQ4_0;
  static constexpr size_t kBlockElements = 32;
  static constexpr size_t kBlockBytes = sizeof(Block);
  HWY_INLINE void open(const uint8_t* block) {
    const F32Vec d = half_at(block + offsetof(Block, d));
    nibbles_.set_values(d, hn::Mul(d, hn::Set(F32Tag(), -8.0F)));  // d * code - 8 d is exact
    nibbles_.set_both_halves(block + offsetof(Block, qs));
  }
  HWY_INLINE void group(size_t /*g*/) {}
  HWY_INLINE F32Vec vector(size_t i) const { return nibbles_.vector(i); }

 private:
  Nibbles nibbles_;
};

class CodecQ4_1 {
 public:
  using Block = BlockQ4_1;
  static constexpr size_t kBlockElements = 32;
  static constexpr size_t kBlockBytes = sizeof(Block);
  HWY_INLINE void open(const uint8_t* block) {
    nibbles_.set_values(half_at(block + offsetof(Block, d)), half_at(block + offsetof(Block, m)));
    nibbles_.set_both_halves(block + offsetof(Block, qs));
  }
  HWY_INLINE void group(size_t /*g*/) {}
  HWY_INLINE F32Vec vector(size_t i) const { return nibbles_.vector(i); }

 private:
  Nibbles nibbles_;
};

class CodecQ5_0 {
 public:
  using Block = BlockQ5_0;
  static constexpr size_t kBlockElements = 32;
  static constexpr size_t kBlockBytes = sizeof(Block);
  HWY_INLINE void open(const uint8_t* block) {
    d_ = half_at(block + offsetof(Block, d));
    const Bytes16Tag d;
    const Bytes16 qs = hn::LoadU(d, block + offsetof(Block, qs));
    store_codes(hn::And(qs, hn::Set(d, uint8_t{15})), block + offsetof(Block, qh), codes_);
    store_codes(hn::ShiftRight<4>(qs), block + offsetof(Block, qh) + 2, codes_ + 16);
  }
  HWY_INLINE void group(size_t /*g*/) {}
  HWY_INLINE F32Vec vector(size_t i) const { return hn::Mul(d_, floats_at(codes_ + i * kLanes)); }

 private:
  // nibble + 16 * bit - 16
  static HWY_INLINE void store_codes(Bytes16 nibbles, const uint8_t* high_bits, int8_t* codes) {
    const Bytes16Tag d;
    const Bytes16 sixteen_less = hn::IfThenZeroElse(hn::LoadMaskBits(d, high_bits), hn::Set(d, uint8_t{16}));
    const hn::RebindToSigned<Bytes16Tag> i8;
    hn::Store(hn::BitCast(i8, hn::Sub(nibbles, sixteen_less)), i8, codes);
  }

  F32Vec d_;
  alignas(16) int8_t codes_[32];
};

// The eight scales and offsets of a Q4_K or Q5_K block: d * scale and -(dmin * min).
struct ScalesK {
  HWY_INLINE void open(const uint8_t* d, const uint8_t* dmin, const uint8_t* packed) {
    uint32_t a;
    uint32_t b;
    uint32_t c;
    std::memcpy(&a, packed, 4);
    std::memcpy(&b, packed + 4, 4);
    std::memcpy(&c, packed + 8, 4);
    // scale_min_k4 on four sub-blocks at once: bytes of a word.
    const uint32_t scales[2] = {a & 0x3F3F3F3F, (c & 0x0F0F0F0F) | ((a >> 6) & 0x03030303) << 4};
    const uint32_t mins[2] = {b & 0x3F3F3F3F, ((c >> 4) & 0x0F0F0F0F) | ((b >> 6) & 0x03030303) << 4};
    const hn::CappedTag<float, 8> f32;
    const hn::RebindToSigned<decltype(f32)> i32;
    const hn::Rebind<uint8_t, decltype(f32)> u8;
    const auto d_all = hn::Set(f32, first_lane(half_at(d)));
    const auto dmin_all = hn::Set(f32, first_lane(half_at(dmin)));
    uint8_t bytes[16];
    std::memcpy(bytes, scales, 8);
    std::memcpy(bytes + 8, mins, 8);
    for (size_t j = 0; j < 8; j += hn::Lanes(f32)) {
      const auto s = hn::ConvertTo(f32, hn::PromoteTo(i32, hn::LoadU(u8, bytes + j)));
      const auto m = hn::ConvertTo(f32, hn::PromoteTo(i32, hn::LoadU(u8, bytes + 8 + j)));
      hn::Store(hn::Mul(d_all, s), f32, scale + j);
      hn::Store(hn::Neg(hn::Mul(dmin_all, m)), f32, offset + j);
    }
  }
  static HWY_INLINE float first_lane(F32Vec v) { return hn::GetLane(v); }

  alignas(32) float scale[8];
  alignas(32) float offset[8];
};

class CodecQ4_K {
 public:
  using Block = BlockQ4_K;
  static constexpr size_t kBlockElements = 256;
  static constexpr size_t kBlockBytes = sizeof(Block);
  HWY_INLINE void open(const uint8_t* block) {
    scales_.open(block + offsetof(Block, d), block + offsetof(Block, dmin), block + offsetof(Block, scales));
    qs_ = block + offsetof(Block, qs);
  }
  HWY_INLINE void group(size_t g) {
    nibbles_.set_values(hn::Set(F32Tag(), scales_.scale[g]), hn::Set(F32Tag(), scales_.offset[g]));
    nibbles_.set_one_half(qs_ + 32 * (g / 2), 4 * static_cast<int>(g % 2));
  }
  HWY_INLINE F32Vec vector(size_t i) const { return nibbles_.vector(i); }

 private:
  ScalesK scales_;
  const uint8_t* qs_;
  Nibbles nibbles_;
};

class CodecQ5_K {
 public:
  using Block = BlockQ5_K;
  static constexpr size_t kBlockElements = 256;
  static constexpr size_t kBlockBytes = sizeof(Block);
  HWY_INLINE void open(const uint8_t* block) {
    scales_.open(block + offsetof(Block, d), block + offsetof(Block, dmin), block + offsetof(Block, scales));
    qh_ = block + offsetof(Block, qh);
    qs_ = block + offsetof(Block, qs);
  }
  HWY_INLINE void group(size_t g) {
    scale_ = hn::Set(F32Tag(), scales_.scale[g]);
    offset_ = hn::Set(F32Tag(), scales_.offset[g]);
    const Bytes32Tag d;
    const int shift = static_cast<int>(g);
    for (size_t i = 0; i < 32; i += kBytes32) {
      const auto low = shift_and_mask(d, hn::LoadU(d, qs_ + 32 * (g / 2) + i), 4 * (shift % 2), 15);
      const auto high = shift_and_mask(d, hn::LoadU(d, qh_ + i), shift, 1);
      hn::Store(hn::Or(low, hn::ShiftLeft<4>(high)), d, codes_ + i);
    }
  }
  HWY_INLINE F32Vec vector(size_t i) const { return hn::MulAdd(scale_, floats_at(codes_ + i * kLanes), offset_); }

 private:
  ScalesK scales_;
  const uint8_t* qh_;
  const uint8_t* qs_;
  F32Vec scale_;
  F32Vec offset_;
  alignas(32) uint8_t codes_[32];
};

class CodecQ6_K {
 public:
  using Block = BlockQ6_K;
  static constexpr size_t kBlockElements = 256;
  static constexpr size_t kBlockBytes = sizeof(Block);
  HWY_INLINE void open(const uint8_t* block) {
    const F32Vec d = half_at(block + offsetof(Block, d));
    const auto* scales = reinterpret_cast<const int8_t*>(block + offsetof(Block, scales));
    for (size_t j = 0; j < 16; j += kLanes) hn::Store(hn::Mul(d, floats_at(scales + j)), F32Tag(), scales_ + j);
    ql_ = block + offsetof(Block, ql);
    qh_ = block + offsetof(Block, qh);
  }
  HWY_INLINE void group(size_t g) {
    first_scale_ = 2 * g;
    const Bytes32Tag d;
    const hn::RebindToSigned<Bytes32Tag> i8;
    const size_t half = g / 4;
    const int k = static_cast<int>(g % 4);
    for (size_t i = 0; i < 32; i += kBytes32) {
      const auto ql = hn::LoadU(d, ql_ + 64 * half + 32 * (g % 2) + i);
      const auto low = shift_and_mask(d, ql, 4 * (k / 2), 15);
      const auto high = shift_and_mask(d, hn::LoadU(d, qh_ + 32 * half + i), 2 * k, 3);
      const auto code = hn::Sub(hn::Or(low, hn::ShiftLeft<4>(high)), hn::Set(d, uint8_t{32}));
      hn::Store(hn::BitCast(i8, code), i8, codes_ + i);
    }
  }
  HWY_INLINE F32Vec vector(size_t i) const {
    const F32Vec scale = hn::Set(F32Tag(), scales_[first_scale_ + i * kLanes / 16]);
    return hn::Mul(scale, floats_at(codes_ + i * kLanes));
  }

 private:
  alignas(64) float scales_[16];
  size_t first_scale_;
  const uint8_t* ql_;
  const uint8_t* qh_;
  alignas(32) int8_t codes_[32];
};

}  // namespace HWY_NAMESPACE
}  // namespace kivi::cpu
HWY_AFTER_NAMESPACE();

#endif  // KIVI_BACKEND_CPU_CODEC_INL_H_
