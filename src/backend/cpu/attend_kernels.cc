// Attention kernels in f32, one source for every instruction set.
//
// Keys: a group is G tokens of every channel with one scale and zero per channel, so
//   q . key_t = sum_c (q_c scale_c) code_ct + sum_c q_c zero_c
// and the scale goes into the query once a group. Values: a group is channels of one token, so the scale goes into the
// probability once a token and group. What is left per element is: unpack a code to float, one multiply-add per head.
// A vector holds consecutive tokens of one channel (keys) or consecutive channels of one token (values): the order in
// which a word holds its codes, so that unpacking is one broadcast, one shift and one conversion.
#include "backend/cpu/attend_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attend_kernels.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After foreach_target.h.
#include <hwy/contrib/math/math-inl.h>

#include "backend/cpu/attend-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kivi::cpu::HWY_NAMESPACE {

constexpr int kPart = 32;  // tokens of packed values between two requests for memory

// Asks for a range of memory in n_steps steps of about the same size.
class AskAhead {
 public:
  AskAhead(const ByteRange& range, int64_t n_steps)
      : line_(range.data), due_(range.data), step_bytes_((range.size + n_steps - 1) / n_steps) {}
  HWY_INLINE void step() {
    due_ += step_bytes_;
    for (; line_ < due_; line_ += kLineBytes) hwy::Prefetch(line_);
  }

 private:
  static constexpr int kLineBytes = 64;
  const std::byte* line_;
  const std::byte* due_;
  int64_t step_bytes_;
};

// Query heads that share one pass over the codes: as many as there are registers for.
constexpr int kHeadBlock = kLanes == 16 ? kMaxHeadBlock : 4;

// Calls body(integral_constant) for n heads, or for kHeadBlock if there are more.
template <int kHeads = 1, typename Body>
HWY_INLINE void with_heads(int n, Body body) {
  if constexpr (kHeads < kHeadBlock) {
    if (n > kHeads) return with_heads<kHeads + 1>(n, body);
  }
  body(std::integral_constant<int, kHeads>());
}

// How often n query heads make a kernel pass over its codes or rows.
constexpr int n_passes(int n_heads) {
  return (n_heads + kHeadBlock - 1) / kHeadBlock;
}

// Place in its word of a code that is a multiple of 2 * kLanes; 0, known at compile time, where that is whole words.
template <int kBits>
HWY_INLINE constexpr int place_of(int code) {
  constexpr int kPerWord = format::codes_per_word(kBits);
  return 2 * kLanes % kPerWord == 0 ? 0 : code % kPerWord;
}

// sums[h][v] += weights[h * weights_stride] * code, for kVectors vectors of codes from place `first` of the run on.
template <int kBits, int kHeads, int kVectors>
HWY_INLINE void add_codes(const CodeRun& run, int first, const float* weights, int weights_stride,
                          VF (&sums)[kHeads][kVectors]) {
  VF code[kVectors];
  for (int v = 0; v < kVectors; ++v) code[v] = load_codes<kBits>(run, first + v * kLanes, v * kLanes);
  for (int h = 0; h < kHeads; ++h) {
    const VF weight = hn::Set(DF(), weights[h * weights_stride]);
    for (int v = 0; v < kVectors; ++v) sums[h][v] = hn::MulAdd(weight, code[v], sums[h][v]);
  }
}

// Passes sum over i < n of weights_h[i] * code_i to store(h, v, sum), for kVectors vectors of codes and kHeads rows of
// weights. The codes of step i start at place `first` of the run, i * stride codes further on.
template <int kBits, int kHeads, int kVectors, typename Store>
HWY_INLINE void sum_codes(const CodeRun& run, int first, int stride, int n, const float* weights, int weights_stride,
                          Store store) {
  // A multiply-add takes four cycles and two start in one: odd steps have sums of their own where registers allow.
  constexpr int kChains = kLanes == 16 && kHeads * kVectors <= 6 ? 2 : 1;
  VF sums[kChains][kHeads][kVectors];
  for (auto& chain : sums) {
    for (auto& row : chain) {
      for (VF& sum : row) sum = hn::Zero(DF());
    }
  }
  int i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (int chain = 0; chain < kChains; ++chain)
      add_codes<kBits>(run.plus<kBits>(int64_t{i + chain} * stride), first, weights + i + chain, weights_stride,
                       sums[chain]);
  }
  if constexpr (kChains > 1) {
    if (i < n) add_codes<kBits>(run.plus<kBits>(int64_t{i} * stride), first, weights + i, weights_stride, sums[0]);
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) {
      store(h, v, kChains > 1 ? hn::Add(sums[0][h][v], sums[kChains - 1][h][v]) : sums[0][h][v]);
    }
  }
}

// Calls body(integral_constant kVectors, offset) for the stretches of a group of n codes.
template <typename Body>
HWY_INLINE void for_each_vectors(int n, Body body) {
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) body(std::integral_constant<int, 2>(), i);
  if constexpr (kLanes > 8) {  // a group of an odd number of vectors
    if (i < n) body(std::integral_constant<int, 1>(), i);
  }
}

// Scales and zeros of codes that have their own, one after the other.
struct HalfParams {
  const Half* scales;
  const Half* zeros;
  HWY_INLINE VF scale(int i) const { return load_halves(scales + i); }
  HWY_INLINE VF zero(int i, VF /*scale*/) const { return load_halves(zeros + i); }
  format::GroupLine line(int i) const { return {to_float(scales[i]), to_float(zeros[i])}; }
};
struct ByteKeyParams {
  const uint8_t* scales;
  const uint8_t* zeros;
  float unit;
  HWY_INLINE VF scale(int i) const { return load_byte_scales(scales + i); }
  HWY_INLINE VF zero(int i, VF /*scale*/) const {
    return hn::Mul(hn::Sub(load_bytes(zeros + i), hn::Set(DF(), 128.0F)), hn::Set(DF(), unit));
  }
  format::GroupLine line(int i) const {
    return {format::scale_of_byte(scales[i]), format::zero_of_byte(zeros[i], unit)};
  }
};
struct ByteValueParams {
  const uint8_t* scales;
  int bits;
  HWY_INLINE VF scale(int i) const { return load_byte_scales(scales + i); }
  HWY_INLINE VF zero(int /*i*/, VF scale) const {
    return hn::Mul(scale, hn::Set(DF(), format::value_zero_steps(bits)));
  }
  format::GroupLine line(int i) const { return format::value_line(scales[i], bits); }
};

// For n codes that have scales and zeros of their own and are weighted by rows of x: scaled_h[i] = x_h[i] * scale[i],
// and bias[h] = sum of x_h[i] * zero[i]. Rows are `stride` apart.
template <int kHeads, typename Params>
void fold_params(const Params& params, int n, const float* x, int stride, float* scaled, float* bias) {
  const DF d;
  VF sum[kHeads];
  for (VF& row : sum) row = hn::Zero(d);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VF scale = params.scale(i);
    const VF zero = params.zero(i, scale);
    for (int h = 0; h < kHeads; ++h) {
      const VF weight = hn::LoadU(d, x + h * stride + i);
      hn::StoreU(hn::Mul(weight, scale), d, scaled + h * stride + i);
      sum[h] = hn::MulAdd(weight, zero, sum[h]);
    }
  }
  for (int h = 0; h < kHeads; ++h) bias[h] = hn::GetLane(hn::SumOfLanes(d, sum[h]));
  for (; i < n; ++i) {
    const format::GroupLine line = params.line(i);
    for (int h = 0; h < kHeads; ++h) {
      scaled[h * stride + i] = x[h * stride + i] * line.scale;
      bias[h] += x[h * stride + i] * line.zero;
    }
  }
}

// The same for the group of keys that begins with `token`: of its channels.
template <int kHeads>
HWY_INLINE void fold_key_params(const format::PageLayout& layout, const std::byte* block, int token, const float* q,
                                float* scaled, float* bias) {
  const int64_t param = layout.key_param(token, 0);
  const std::byte* scales = block + layout.key_scales() + param * layout.param_bytes();
  const std::byte* zeros = block + layout.key_zeros() + param * layout.param_bytes();
  const int n = layout.head_dim;
  if (layout.params == format::ParamFormat::kHalf) {
    const HalfParams params{reinterpret_cast<const Half*>(scales), reinterpret_cast<const Half*>(zeros)};
    fold_params<kHeads>(params, n, q, n, scaled, bias);
  } else {
    const float unit = format::half_at(block + layout.key_zero_units(), token / layout.key_group);
    const ByteKeyParams params{reinterpret_cast<const uint8_t*>(scales), reinterpret_cast<const uint8_t*>(zeros), unit};
    fold_params<kHeads>(params, n, q, n, scaled, bias);
  }
}

// The same for group `group` of the values: of their tokens.
template <int kHeads>
HWY_INLINE void fold_value_params(const PackedRows& values, int group, const float* p, float* scaled, float* bias) {
  const format::PageLayout& layout = *values.layout;
  const int64_t param = int64_t{group} * format::kPageTokens + values.first;
  const std::byte* scales = values.block + layout.value_scales() + param * layout.param_bytes();
  if (layout.params == format::ParamFormat::kHalf) {
    const HalfParams params{reinterpret_cast<const Half*>(scales),
                            reinterpret_cast<const Half*>(values.block + layout.value_zeros()) + param};
    fold_params<kHeads>(params, values.n, p, kTile, scaled, bias);
  } else {
    const ByteValueParams params{reinterpret_cast<const uint8_t*>(scales), layout.value_bits};
    fold_params<kHeads>(params, values.n, p, kTile, scaled, bias);
  }
}

template <int kBits, int kHeads>
void score_groups(const PackedRows& keys, const float* q, float* qs, float* scores, AskAhead& ahead) {
  const DF d;
  const format::PageLayout& layout = *keys.layout;
  const int head_dim = layout.head_dim;
  for (int done = 0; done < keys.n; done += layout.key_group) {
    float bias[kHeads];
    fold_key_params<kHeads>(layout, keys.block, keys.first + done, q, qs, bias);
    ahead.step();
    const CodeRun run = CodeRun::at(keys.block + layout.key_codes(), layout.key_code(keys.first + done, 0));
    for_each_vectors(layout.key_group, [&](auto vectors, int token) {
      const auto store = [&](int h, int v, VF dot) HWY_ATTR {
        hn::StoreU(hn::Add(dot, hn::Set(d, bias[h])), d, scores + h * kTile + done + token + v * kLanes);
      };
      sum_codes<kBits, kHeads, vectors()>(run.plus<kBits>(token), place_of<kBits>(token), layout.key_group, head_dim,
                                          qs, head_dim, store);
    });
  }
}

void packed_scores(const PackedRows& keys, const QueryRows& q, float* scratch, float* scores) {
  const int head_dim = keys.layout->head_dim;
  AskAhead ahead(keys.next, int64_t{n_passes(q.n)} * keys.n / keys.layout->key_group);
  with_bits(keys.layout->key_bits, [&](auto bits) {
    for (int h = 0; h < q.n; h += kHeadBlock) {
      with_heads(q.n - h, [&](auto heads) {
        score_groups<bits(), heads()>(keys, q.data + int64_t{h} * head_dim, scratch, scores + int64_t{h} * kTile,
                                      ahead);
      });
    }
  });
}

template <int kHeads>
void score_half_rows(const HalfRows& keys, const float* q, float* scores, AskAhead& ahead) {
  const DF d;
  for (int i = 0; i < keys.n; ++i) {
    const Half* key = keys.data + i * keys.stride;
    ahead.step();
    VF acc[kHeads];
    for (int h = 0; h < kHeads; ++h) acc[h] = hn::Zero(d);
    for (int c = 0; c < keys.head_dim; c += kLanes) {
      const VF k = load_halves(key + c);
      for (int h = 0; h < kHeads; ++h) acc[h] = hn::MulAdd(hn::LoadU(d, q + h * keys.head_dim + c), k, acc[h]);
    }
    for (int h = 0; h < kHeads; ++h) scores[h * kTile + i] = hn::GetLane(hn::SumOfLanes(d, acc[h]));
  }
}

void half_scores(const HalfRows& keys, const QueryRows& q, float* scores) {
  AskAhead ahead(keys.next, int64_t{n_passes(q.n)} * keys.n);
  for (int h = 0; h < q.n; h += kHeadBlock) {
    with_heads(q.n - h, [&](auto heads) {
      score_half_rows<heads()>(keys, q.data + int64_t{h} * keys.head_dim, scores + int64_t{h} * kTile, ahead);
    });
  }
}

// e^x for x <= 0, to about 1e-7 of it; 0 below -86. Highway's takes every x, and twice the time.
HWY_INLINE VF exp_of_negative(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  const auto constant = [&](float c) HWY_ATTR { return hn::Set(d, c); };
  // x = k ln 2 + r. Adding 1.5 * 2^23 rounds to a whole number, which is then in the low bits of the sum.
  const VF shifted = hn::MulAdd(x, constant(0x1.715476p0F), constant(0x1.8p23F));
  const VF k = hn::Sub(shifted, constant(0x1.8p23F));
  // ln 2 in two parts; k times the first is exact.
  const VF r = hn::NegMulAdd(k, constant(0x1.7f7d1cp-20F), hn::NegMulAdd(k, constant(0x1.62e4p-1F), x));
  // The polynomial of degree 6 that starts with 1 + r and has the least relative error for |r| <= ln 2 / 2: 3e-9.
  VF sum = constant(0.00138145967F);
  for (const float c : {0.00836871710F, 0.0416683881F, 0.166665206F, 0.499999934F, 1.0F, 1.0F}) {
    sum = hn::MulAdd(sum, r, constant(c));
  }
  const auto power = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  return hn::IfThenElseZero(hn::Ge(x, constant(-86.0F)), hn::BitCast(d, hn::Add(hn::BitCast(di, sum), power)));
}

void cap_scores(float* scores, int n, float cap) {
  const DF d;
  const VF limit = hn::Set(d, cap);
  const VF inverse = hn::Set(d, 1.0F / cap);
  for (int i = 0; i < n; i += kLanes) {
    hn::StoreU(hn::Mul(hn::CallTanh(d, hn::Mul(hn::LoadU(d, scores + i), inverse)), limit), d, scores + i);
  }
}

void softmax_step(float* scores, int n, int n_padded, int head_dim, float* maximum, float* total, float* out) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const DF d;
  const int end = (n + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + n, scores + end, kMinusInfinity);
  if (end < n_padded) std::fill(scores + end, scores + n_padded, 0.0F);
  if (n == 0) return;

  VF top = hn::Set(d, kMinusInfinity);
  for (int i = 0; i < end; i += kLanes) top = hn::Max(top, hn::LoadU(d, scores + i));
  const float new_maximum = std::max(*maximum, hn::GetLane(hn::MaxOfLanes(d, top)));
  if (new_maximum > *maximum) {
    const float factor = std::exp(*maximum - new_maximum);  // 0 at the first tile
    *maximum = new_maximum;
    *total *= factor;
    for (int c = 0; c < head_dim; c += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, out + c), hn::Set(d, factor)), d, out + c);
    }
  }
  VF sum = hn::Zero(d);
  for (int i = 0; i < end; i += kLanes) {
    const VF p = exp_of_negative(hn::Sub(hn::LoadU(d, scores + i), hn::Set(d, new_maximum)));
    sum = hn::Add(sum, p);
    hn::StoreU(p, d, scores + i);
  }
  *total += hn::GetLane(hn::SumOfLanes(d, sum));
}

template <int kBits, int kHeads>
void sum_groups(const PackedRows& values, const float* p, float* ps, float* out, AskAhead& ahead) {
  const DF d;
  const format::PageLayout& layout = *values.layout;
  const CodeRun row = CodeRun::at(values.block + layout.value_codes(), layout.value_code(values.first, 0));
  for (int group = 0; group < layout.value_groups(); ++group) {
    float bias[kHeads];
    fold_value_params<kHeads>(values, group, p, ps, bias);
    for (int from = 0; from < values.n; from += kPart) {
      ahead.step();
      const int n = std::min(kPart, values.n - from);
      const bool last = from + n == values.n;
      for_each_vectors(layout.value_group, [&](auto vectors, int channel) {
        const int c = group * layout.value_group + channel;
        sum_codes<kBits, kHeads, vectors()>(row.plus<kBits>(int64_t{from} * layout.head_dim + c), place_of<kBits>(c),
                                            layout.head_dim, n, ps + from, kTile, [&](int h, int v, VF dot) {
                                              float* to = out + h * layout.head_dim + c + v * kLanes;
                                              if (last) dot = hn::Add(dot, hn::Set(d, bias[h]));
                                              hn::StoreU(hn::Add(hn::LoadU(d, to), dot), d, to);
                                            });
      });
    }
  }
}

void packed_values(const PackedRows& values, const float* p, int n_heads, float* scratch, float* out) {
  const int n_parts = values.layout->value_groups() * ((values.n + kPart - 1) / kPart);
  AskAhead ahead(values.next, int64_t{n_passes(n_heads)} * n_parts);
  with_bits(values.layout->value_bits, [&](auto bits) {
    for (int h = 0; h < n_heads; h += kHeadBlock) {
      with_heads(n_heads - h, [&](auto heads) {
        sum_groups<bits(), heads()>(values, p + int64_t{h} * kTile, scratch, out + int64_t{h} * values.layout->head_dim,
                                    ahead);
      });
    }
  });
}

template <int kHeads, int kVectors>
HWY_INLINE void sum_half_rows(const HalfRows& values, int channel, const float* p, float* out, AskAhead& ahead) {
  const DF d;
  VF acc[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) acc[h][v] = hn::LoadU(d, out + h * values.head_dim + channel + v * kLanes);
  }
  for (int i = 0; i < values.n; ++i) {
    const Half* value = values.data + i * values.stride + channel;
    ahead.step();
    VF x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = load_halves(value + v * kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const VF weight = hn::Set(d, p[h * kTile + i]);
      for (int v = 0; v < kVectors; ++v) acc[h][v] = hn::MulAdd(weight, x[v], acc[h][v]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(acc[h][v], d, out + h * values.head_dim + channel + v * kLanes);
  }
}

void half_values(const HalfRows& values, const float* p, int n_heads, float* out) {
  const int columns = (values.head_dim + 2 * kLanes - 1) / (2 * kLanes);
  AskAhead ahead(values.next, int64_t{n_passes(n_heads)} * columns * values.n);
  for (int h = 0; h < n_heads; h += kHeadBlock) {
    with_heads(n_heads - h, [&](auto heads) {
      const float* weights = p + int64_t{h} * kTile;
      float* rows = out + int64_t{h} * values.head_dim;
      for_each_vectors(values.head_dim, [&](auto vectors, int c) {
        sum_half_rows<heads(), vectors()>(values, c, weights, rows, ahead);
      });
    });
  }
}

const AttendKernels* table() {
  static constexpr AttendKernels kernels = {
      packed_scores, half_scores, cap_scores, softmax_step, packed_values, half_values,
  };
  return &kernels;
}

}  // namespace kivi::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi::cpu {

const AttendKernels& attend_kernels(Isa isa) {
  return *[isa] { KIVI_RETURN_FOR_ISA(isa, table()) }();
}

}  // namespace kivi::cpu
#endif
