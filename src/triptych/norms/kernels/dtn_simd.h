/* Vectors of VL floats in GNU C, so that one source serves AVX-512, AVX2, SSE and NEON. */
#ifndef DTN_SIMD_H
#define DTN_SIMD_H

#include <math.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

/* What fits the registers. BLOCK: rows of a product, 2 vectors each; WIDE_BLOCK: with 4 vectors;
   CORNER: rows and columns of a table of sums. */
#if defined(__AVX512F__)
#define VL 16
#define BLOCK 4
#define WIDE_BLOCK 4
#define CORNER 5
#elif defined(__AVX__)
#define VL 8
#define BLOCK 6
#define WIDE_BLOCK 2
#define CORNER 3
#else
#define VL 4
#define BLOCK 6
#define WIDE_BLOCK 2
#define CORNER 3
#endif

#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(VL * 4)));
typedef float VecAnywhere __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int VecBits __attribute__((vector_size(VL * 4)));

INLINE Vec zero(void) { return (Vec){0}; }
INLINE Vec load(const float *p) { return *(const VecAnywhere *)p; }
INLINE void store(float *p, Vec v) { *(VecAnywhere *)p = v; }

/* Asks for `count` floats that will be read, or written, soon. */
INLINE void fetch(const float *p, int count) {
  for (int i = 0; i < count; i += 16) __builtin_prefetch(p + i);
}
INLINE void fetch_to_write(const float *p, int count) {
  for (int i = 0; i < count; i += 16) __builtin_prefetch(p + i, 1);
}

/* The first n floats of p, 0 beyond; and back. */
INLINE Vec load_part(const float *p, int n) {
  if (n >= VL) return load(p);
  Vec v = zero();
  memcpy(&v, p, (size_t)n * sizeof(float));
  return v;
}

INLINE void store_part(float *p, Vec v, int n) {
  if (n >= VL)
    store(p, v);
  else
    memcpy(p, &v, (size_t)n * sizeof(float));
}

INLINE Vec first_of(Vec v, int n) {
  if (n >= VL) return v;
  Vec kept = zero();
  memcpy(&kept, &v, (size_t)n * sizeof(float));
  return kept;
}

INLINE float sum_of(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0;
  for (int lane = 0; lane < VL; lane++) total += v[lane];
  return total;
#endif
}

/* max(v, 0), but NaN stays NaN. */
INLINE Vec at_least_zero(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps(_mm512_setzero_ps(), (__m512)v); /* of two the second, if unordered */
#else
  VecBits negative = v < zero();
  return (Vec)(~negative & (VecBits)v);
#endif
}

/* v where test is not negative, else 0. */
INLINE Vec unless_negative(Vec test, Vec v) {
#if defined(__AVX512F__)
  __mmask16 kept = _mm512_cmp_ps_mask((__m512)test, _mm512_setzero_ps(), _CMP_NLT_UQ);
  return (Vec)_mm512_maskz_mov_ps(kept, (__m512)v);
#else
  VecBits negative = test < zero();
  return (Vec)(~negative & (VecBits)v);
#endif
}

/* 1/sqrt(v) to float32 rounding: an estimate and one Newton step where the machine has one. */
INLINE Vec inverse_root(Vec v) {
#if defined(__AVX512F__)
  Vec estimate = (Vec)_mm512_rsqrt14_ps((__m512)v);
  return estimate * (1.5f - 0.5f * v * estimate * estimate);
#elif defined(__AVX__)
  Vec root = (Vec)_mm256_sqrt_ps((__m256)v);
  return 1.0f / root;
#else
  Vec out;
  for (int lane = 0; lane < VL; lane++) out[lane] = 1.0f / sqrtf(v[lane]);
  return out;
#endif
}

#endif
