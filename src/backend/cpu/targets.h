// Which instruction sets Highway compiles the kernels for, and how one of them is picked. Comes before Highway's
// headers in every kernel file:
//
//   #include "backend/cpu/targets.h"
//   #undef HWY_TARGET_INCLUDE
//   #define HWY_TARGET_INCLUDE "backend/cpu/this_file.cc"
//   #include <hwy/foreach_target.h>
//   #include <hwy/highway.h>
#ifndef KIVI_BACKEND_CPU_TARGETS_H_
#define KIVI_BACKEND_CPU_TARGETS_H_

// Every target costs compile time and tests. On x86-64 what is left is AVX3 (avx512), AVX2 and the baseline (portable);
// elsewhere the baseline alone.
// The address sanitizer makes each of them minutes, and AVX2 shows it the same code.
#if defined(__SANITIZE_ADDRESS__)
#define KIVI_DISABLED_AVX3 HWY_AVX3
#else
#define KIVI_DISABLED_AVX3 0
#endif
#define HWY_DISABLED_TARGETS                                                                                   \
  (KIVI_DISABLED_AVX3 | HWY_AVX3_DL | HWY_SSE4 | HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | \
   HWY_SCALAR)

// Highway takes one-lane vectors for the baseline where g++ is older than 12.3, for a bug in 16-bit MulHigh. No kernel
// has a MulHigh, and the portable kernels are tested like the others: take the 128-bit ones.
#define HWY_BROKEN_EMU128 0

#include <hwy/detect_targets.h>

#include "backend/cpu/isa.h"

#if HWY_TARGETS & HWY_AVX3
#define KIVI_CASE_AVX512(function) \
  case ::kivi::cpu::Isa::kAvx512:  \
    return N_AVX3::function;
#else
#define KIVI_CASE_AVX512(function)
#endif
#if HWY_TARGETS & HWY_AVX2
#define KIVI_CASE_AVX2(function) \
  case ::kivi::cpu::Isa::kAvx2:  \
    return N_AVX2::function;
#else
#define KIVI_CASE_AVX2(function)
#endif

// Returns the `function` (or object) of the namespace that was compiled for `isa`; under HWY_ONCE only.
#define KIVI_RETURN_FOR_ISA(isa, function)  \
  switch (isa) {                            \
    KIVI_CASE_AVX512(function)              \
    KIVI_CASE_AVX2(function)                \
    default:                                \
      return HWY_STATIC_DISPATCH(function); \
  }

#endif  // KIVI_BACKEND_CPU_TARGETS_H_
