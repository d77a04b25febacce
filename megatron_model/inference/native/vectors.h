/* Sixteen numbers at a time, in whatever registers the processor has; bfloat16; the exponential. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#define LANES 16
typedef float wide __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t wide_int __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t wide_bits __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t wide_halves __attribute__((vector_size(32), aligned(2), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint16_t bfloat16;
#define INLINE static inline __attribute__((always_inline))

INLINE wide load(const float *p) { return *(const wide *)p; }
INLINE void store(float *p, wide v) { *(wide *)p = v; }
INLINE wide load_bfloat16(const bfloat16 *p) {
    return (wide)(__builtin_convertvector(*(const wide_halves *)p, wide_bits) << 16);
}
/* To the nearest, ties to even; NaN stays NaN. */
INLINE bfloat16 to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (bfloat16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE wide choose(wide_int mask, wide yes, wide no) {
    return (wide)(((wide_int)yes & mask) | ((wide_int)no & ~mask));
}
INLINE wide larger(wide a, wide b) { return choose(a > b, a, b); }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE four quarter_sums(wide v) {
    four part[4];
    memcpy(part, &v, sizeof part);
    return (part[0] + part[1]) + (part[2] + part[3]);
}
INLINE float sum_of(wide v) {
    four q = quarter_sums(v);
    return (q[0] + q[1]) + (q[2] + q[3]);
}
INLINE float highest_of(wide v) {
    float highest = v[0];
    for (int lane = 1; lane < LANES; lane++) highest = v[lane] > highest ? v[lane] : highest;
    return highest;
}
INLINE float total_of(const float *x, int64_t count, float minus, int square) {
    wide sums = (wide){};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        wide value = load(x + i) - minus;
        if (square) value *= value;
        sums += value;
    }
    float total = sum_of(sums);
    for (; i < count; i++) total += square ? (x[i] - minus) * (x[i] - minus) : x[i] - minus;
    return total;
}

/* Adding it rounds a number below 2^22 to a whole one, which then stands in the low bits. */
#define ROUNDING 12582912.0f
INLINE wide_int to_whole(wide x) { return (wide_int)(x + ROUNDING) - 0x4b400000; }

/* exp(x) for x <= 0 to about 1e-7 (Cephes' polynomial). */
INLINE wide exponential(wide x) {
    const wide lowest = (wide){} - 87.0f;
    x = choose(x < lowest, lowest, x);  /* NaN stays NaN */
    wide shifted = x * 1.44269504088896341f + ROUNDING, n = shifted - ROUNDING;
    wide r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    wide y = (wide){} + 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * (wide)(((wide_int)shifted << 23) + 0x3f800000);
}
