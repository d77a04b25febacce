/* Products with weights rounded to 8 bits: a quarter of the memory to read.
 *
 * GROUP weights of an output, of consecutive inputs, share a scale. What they are multiplied with is
 * rounded to 16 bits, each GROUP of a row by its own scale; the sums of a group are then whole numbers
 * and exact, in whatever order and by whatever instruction they are made.
 *
 * The weights of one input for TILE outputs lie together, those of the next input after them. Two
 * inputs at a time are taken: any two, so that inputs that are zero in all rows are not read.
 */
#define GROUP 128
#define TILE 64  /* a line of the processor's cache */

#if defined(__AVX512BW__)
#define BLOCK 32    /* outputs of which an input's weights are read at once */
#define AT_ONCE 8   /* rows whose sums stay in registers */
typedef int32_t sums __attribute__((vector_size(64)));
#elif defined(__AVX2__)
#define BLOCK 16
#define AT_ONCE 4
typedef int32_t sums __attribute__((vector_size(32)));
#else
#define BLOCK 8
#define AT_ONCE 4
typedef int32_t sums __attribute__((vector_size(16)));
typedef int8_t few __attribute__((vector_size(4)));
#endif
#define WIDTH (BLOCK / 2)
typedef float scaled __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

/* Where in its tile an output lies: `read_pairs` brings them into order. */
INLINE int64_t place_of(int64_t o) {
#if defined(__AVX512BW__)
    const int64_t eighth = o / 8 % 4;
    return eighth == 1 ? o + 8 : eighth == 2 ? o - 8 : o;
#else
    return o;
#endif
}

/* BLOCK outputs' weights of two inputs, widened to 16 bits and side by side. */
INLINE void read_pairs(const int8_t *first, const int8_t *second, sums *pairs) {
#if defined(__AVX512BW__)
    const __m256i a = _mm256_loadu_si256((const __m256i *)first);
    const __m256i b = _mm256_loadu_si256((const __m256i *)second);
    pairs[0] = (sums)_mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(a, b));
    pairs[1] = (sums)_mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(a, b));
#elif defined(__AVX2__)
    const __m128i a = _mm_loadu_si128((const __m128i *)first);
    const __m128i b = _mm_loadu_si128((const __m128i *)second);
    pairs[0] = (sums)_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
    pairs[1] = (sums)_mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b));
#else
    for (int v = 0; v < 2; v++) {
        few a, b;
        memcpy(&a, first + v * WIDTH, sizeof a);
        memcpy(&b, second + v * WIDTH, sizeof b);
        const sums upper = __builtin_convertvector(b, sums) << 16;
        pairs[v] = (__builtin_convertvector(a, sums) & 0xffff) | upper;
    }
#endif
}

/* c += both products of each pair with those of x. */
INLINE sums add_pairs(sums c, sums pairs, int32_t x) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (sums)_mm512_dpwssd_epi32((__m512i)c, (__m512i)pairs, _mm512_set1_epi32(x));
#elif defined(__AVX512BW__)
    return c + (sums)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi32(x));
#elif defined(__AVX2__)
    return c + (sums)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi32(x));
#elif defined(__SSE2__)
    return c + (sums)_mm_madd_epi16((__m128i)pairs, _mm_set1_epi32(x));
#else
    return c + ((pairs << 16) >> 16) * (int16_t)x + (pairs >> 16) * (x >> 16);
#endif
}

/* Rows of numbers, rounded: see `Rounded` in decode.c. */
INLINE int64_t groups_of(int64_t in) { return (in + GROUP - 1) / GROUP; }

/* Round weights w, that of output o and input i at w[o * by_output + i * by_input]. */
static void round_weights(const float *w, int64_t in, int64_t out, int64_t by_input,
                          int64_t by_output, int8_t *rounded, float *scales, int64_t tile) {
    const int64_t groups = groups_of(in), outputs = smaller(TILE, out - tile * TILE);
    for (int64_t g = 0; g < groups; g++) {
        const int64_t size = smaller(GROUP, in - g * GROUP);
        int8_t *to = rounded + (tile * in + g * GROUP) * TILE;
        float *scale = scales + (tile * groups + g) * TILE, inverse[TILE], block[TILE][GROUP];
        for (int64_t o = 0; o < outputs; o++) {
            const float *from = w + (tile * TILE + o) * by_output + g * GROUP * by_input;
            float highest = 0.0f, spoilt = 0.0f;
            for (int64_t i = 0; i < size; i++) block[o][i] = from[i * by_input];
            for (int64_t i = 0; i < size; i++) {
                const float value = fabsf(block[o][i]);
                highest = value > highest ? value : highest;
                spoilt += 0.0f * value;  /* NaN, if there is NaN or infinity */
            }
            scale[o] = highest / 127.0f + spoilt;
            inverse[o] = highest > 0.0f ? 127.0f / highest : 0.0f;
        }
        for (int64_t o = 0; o < outputs; o++) {
            const int64_t place = place_of(o);
            for (int64_t i = 0; i < size; i++) {
                float value = block[o][i] * inverse[o];
                to[i * TILE + place] = (int8_t)(int)(value + (value < 0.0f ? -0.5f : 0.5f));
            }
        }
    }
}

/* Round GROUP numbers of each of `count` rows, `stride` apart: all the numbers of a unit. */
static void round_rows(const float *x, int64_t stride, int64_t size, int64_t count, int64_t groups,
                       int32_t *values, float *scales, uint16_t *list, int32_t *pairs) {
    int16_t numbers[TOGETHER][GROUP];
    wide_int any[GROUP / LANES] = {0};
    for (int64_t s = 0; s < count; s++) {
        float row[GROUP] = {0};
        memcpy(row, x + s * stride, size * sizeof *row);
        wide highest = (wide){}, spoilt = (wide){};
        for (int64_t i = 0; i < GROUP; i += LANES) {
            const wide value = load(row + i);
            highest = larger(larger(value, -value), highest);
            spoilt += 0.0f * value;
        }
        const float most = highest_of(highest);
        scales[s * groups] = most / 32767.0f + sum_of(spoilt);
        const float inverse = most > 0.0f ? 32767.0f / most : 0.0f;
        for (int64_t i = 0; i < GROUP; i += LANES) {
            const wide_int whole = to_whole(load(row + i) * inverse);
            any[i / LANES] |= whole;
            for (int64_t lane = 0; lane < LANES; lane++) numbers[s][i + lane] = (int16_t)whole[lane];
        }
    }
    int64_t found = 0;
    int index[GROUP];
    for (int64_t i = 0; i < size; i++) {
        index[found] = (int)i;
        found += any[i / LANES][i % LANES] != 0;
    }
    const int64_t per_row = groups * (GROUP / 2);
    if (found > size * 7 / 8) {  /* as they are */
        for (int64_t i = 0; i < size; i++) list[i] = (uint16_t)(i * TILE);
        if (size % 2) list[size] = 0;  /* an odd one's neighbour is zero */
        for (int64_t s = 0; s < count; s++)
            memcpy(values + s * per_row, numbers[s], (size + 1) / 2 * sizeof *values);
        *pairs = (int32_t)((size + 1) / 2);
        return;
    }
    for (int64_t k = 0; k < found; k++) list[k] = (uint16_t)(index[k] * TILE);
    if (found % 2) list[found] = 0;
    *pairs = (int32_t)((found + 1) / 2);
    for (int64_t s = 0; s < count; s++)
        for (int64_t k = 0; k < found; k += 2) {
            const uint16_t first = (uint16_t)numbers[s][index[k]];
            const uint16_t second = k + 1 < found ? (uint16_t)numbers[s][index[k + 1]] : 0;
            values[s * per_row + k / 2] = (int32_t)(first | (uint32_t)second << 16);
        }
}

/* Add to y (count, TILE) what a group's weights and numbers amount to. */
INLINE void group_kernel(const int8_t *w, const float *scales, const uint16_t *list, int64_t pairs,
                         const int32_t *x, int64_t per_row, const float *x_scales, int64_t groups,
                         float *y, const int count, const int blocks) {
    for (int64_t o = 0; o < TILE; o += blocks * BLOCK) {
        sums c[AT_ONCE][4];
#pragma GCC unroll 8
        for (int n = 0; n < count; n++)
#pragma GCC unroll 4
            for (int v = 0; v < 2 * blocks; v++) c[n][v] = (sums){};
        for (int64_t k = 0; k < pairs; k++) {
            const int8_t *first = w + list[2 * k] + o, *second = w + list[2 * k + 1] + o;
            sums weights[4];
#pragma GCC unroll 2
            for (int b = 0; b < blocks; b++)
                read_pairs(first + b * BLOCK, second + b * BLOCK, weights + 2 * b);
#pragma GCC unroll 8
            for (int n = 0; n < count; n++)
#pragma GCC unroll 4
                for (int v = 0; v < 2 * blocks; v++)
                    c[n][v] = add_pairs(c[n][v], weights[v], x[n * per_row + k]);
        }
#pragma GCC unroll 8
        for (int n = 0; n < count; n++)
#pragma GCC unroll 4
            for (int v = 0; v < 2 * blocks; v++) {
                scaled *to = (scaled *)(y + n * TILE + o + v * WIDTH);
                const scaled scale = *(const scaled *)(scales + o + v * WIDTH);
                *to += __builtin_convertvector(c[n][v], scaled) * (scale * x_scales[n * groups]);
            }
    }
}
