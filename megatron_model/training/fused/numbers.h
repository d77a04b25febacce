// bfloat16 and exponentials, for single numbers (which the compiler makes into vectors) and vectors.
typedef uint16_t bfloat16;
typedef uint32_t __attribute__((may_alias)) two_numbers;  // bfloat16, in one register's lane

#if defined(__AVX512F__)
#include <immintrin.h>
#define WIDTH 16  // numbers of a vector
#define ROWS 8    // rows of an attention product that are kept in registers
#elif defined(__AVX__)
#define WIDTH 8
#define ROWS 4
#elif defined(__aarch64__)
#define WIDTH 4
#define ROWS 8
#else
#define WIDTH 4
#define ROWS 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t integers __attribute__((vector_size(4 * WIDTH)));

INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
INLINE float of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
INLINE float widen(bfloat16 x) { return of_bits((uint32_t)x << 16); }
INLINE bfloat16 narrow(float x) {  // to the nearest, ties to even; NaN stays NaN
  const uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (bfloat16)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// e^x = 2^n e^r; adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits. The
// polynomial is that of Cephes (Moshier 1992). Comparisons are such that NaN stays NaN.
#define LOG2_E 1.44269504f
#define ROUNDING 12582912.f
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define POLYNOMIAL(r)                                                                          \
  (((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) \
        * r + 1.6666665459e-1f) * r + 5.0000001201e-1f) * (r * r) + r + 1.f
INLINE float exponential(float x) {
  x = x < -87.f ? -87.f : x;
  x = x > 88.f ? 88.f : x;
  const float shifted = x * LOG2_E + ROUNDING, n = shifted - ROUNDING;
  const float r = (x - n * LN2_HIGH) - n * LN2_LOW;
  return (POLYNOMIAL(r)) * of_bits((bits_of(shifted) << 23) + 0x3f800000);
}

INLINE vector load(const float *x) {
  vector v;
  memcpy(&v, x, sizeof v);
  return v;
}
INLINE void store(float *x, vector v) { memcpy(x, &v, sizeof v); }
INLINE float sum_of(vector v) {
  float total = 0;
  for (int i = 0; i < WIDTH; i++) total += v[i];
  return total;
}
INLINE vector exponentials(vector x) {  // of numbers below 88
#ifdef __AVX512F__
  x = (vector)_mm512_max_ps(_mm512_set1_ps(-87.f), (__m512)x);
#else
  const integers low = x < -87.f;
  x = (vector)((~low & (integers)x) | (low & (integers)((vector){} - 87.f)));
#endif
  const vector shifted = x * LOG2_E + ROUNDING, n = shifted - ROUNDING;
  const vector r = (x - n * LN2_HIGH) - n * LN2_LOW;
  return (POLYNOMIAL(r)) * (vector)(((integers)shifted << 23) + 0x3f800000);
}

// Two bfloat16 in 32 bits, which AVX512-BF16 multiplies and adds by one instruction (that takes tiny
// numbers for zero). Elsewhere attention is computed in float32; these are for its tests.
#if defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define HAS_PAIRS 1
INLINE vector add_pairs(vector c, uint32_t a, vector b) {
  return (vector)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
}
INLINE void store_bfloat16(bfloat16 *out, vector v) {
  const __m256i narrowed = (__m256i)_mm512_cvtneps_pbh((__m512)v);
  memcpy(out, &narrowed, sizeof narrowed);
}
INLINE void store_pairs(two_numbers *out, vector upper, vector lower) {  // one of each
  const __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)upper));
  const __m512i b = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)lower));
  _mm512_storeu_si512(out, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
}
#else
#ifdef EMULATED_PAIRS
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif
INLINE vector add_pairs(vector c, uint32_t a, vector b) {
  const vector upper = (vector)((integers)b << 16), lower = (vector)((integers)b & (int32_t)0xffff0000);
  return c + of_bits(a << 16) * upper + of_bits(a & 0xffff0000) * lower;
}
INLINE void store_bfloat16(bfloat16 *out, vector v) {
  for (int i = 0; i < WIDTH; i++) out[i] = narrow(v[i]);
}
INLINE void store_pairs(two_numbers *out, vector upper, vector lower) {
  for (int i = 0; i < WIDTH; i++) out[i] = narrow(upper[i]) | (uint32_t)narrow(lower[i]) << 16;
}
#endif
