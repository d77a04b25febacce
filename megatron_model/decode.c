/* Cached decoding on a CPU: the next characters of each stream in, the logits after the last out.
 *
 * The same arithmetic as `extend` of classic.py and modern.py, in float32, on the models' own
 * weights (nothing is copied). A null pointer stands for a part that an architecture
 * does not have. Every stream is summed in the same order however many there are, so that a text
 * does not depend on what is written beside it.
 *
 * S streams, T new positions, N = S * T rows, C width, H heads, D = C / H, F feed-forward width,
 * V characters.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
typedef float wide __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t wide_int __attribute__((vector_size(64), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#define ROWS 2        /* rows of a matrix taken together */
#define FOUR 4
#define AHEAD 8       /* how many rows ahead memory is asked for */
#define TOGETHER 8    /* streams taken together: ROWS * TOGETHER sums stay in registers */

typedef struct {
    const float *norm1, *norm1_bias, *mix1, *qkv, *qkv_bias, *out, *out_bias;
    const float *norm2, *norm2_bias, *mix2, *widen, *widen_bias, *narrow, *narrow_bias;
    float *keys;      /* (S, H, D, block) */
    float *values;    /* (S, H, block, D) */
    float *before1;   /* (S, 2, C): what mix1 adds, the last position but one first */
    float *before2;   /* the same of mix2 */
} Layer;

typedef struct {
    int64_t layers, width, heads, ff, vocab, block, streams, threads, modern;
    const float *embedding, *positions, *gate, *slopes, *norm, *norm_bias, *head, *head_bias;
    float logit_cap;
    int64_t *previous;  /* (S): the character before, -1 at the beginning */
    float *x, *h, *qkv, *mixed, *wide_h, *scores;  /* scratch, a row a position: scores (S, H, block) */
    const Layer *layer;
} Model;

INLINE wide load(const float *p) { return *(const wide *)p; }
INLINE void store(float *p, wide v) { *(wide *)p = v; }

INLINE four quarter_sums(wide v) {
    four part[4];
    memcpy(part, &v, sizeof part);
    return (part[0] + part[1]) + (part[2] + part[3]);
}

INLINE float sum_of(wide v) {
    four q = quarter_sums(v);
    return (q[0] + q[1]) + (q[2] + q[3]);
}

/* exp(x) for x <= 0 to about 1e-7 (Cephes' polynomial). */
INLINE wide exponential(wide x) {
    const wide lowest = (wide){} - 87.0f;
    wide_int below = x < lowest;
    x = (wide)(((wide_int)x & ~below) | ((wide_int)lowest & below));
    wide scaled = x * 1.44269504088896341f - 0.5f;
    wide_int whole = __builtin_convertvector(scaled, wide_int);
    wide n = __builtin_convertvector(whole, wide);
    wide r = x - n * 0.693359375f + n * 2.12194440e-4f;
    wide y = (wide){} + 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * (wide)((whole + 127) << 23);
}

/* y[n][o] for ROWS rows from `o` and `count` streams; rows past the end are not stored. */
INLINE void rows_kernel(const float *w, const float *bias, const float *x, float *y, int64_t in,
                        int64_t out, int64_t o, const int count) {
    wide sums[ROWS][TOGETHER];
    float tails[ROWS][TOGETHER];
    const float *row[ROWS];
    for (int r = 0; r < ROWS; r++) {
        row[r] = w + (o + r < out ? o + r : out - 1) * in;
        for (int n = 0; n < count; n++) { sums[r][n] = (wide){}; tails[r][n] = 0.0f; }
    }
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) {
        wide weight[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            weight[r] = load(row[r] + i);
            /* Rows are too short for the processor to guess what comes after them. */
            __builtin_prefetch(row[r] + i + AHEAD * in, 0, 2);
        }
#pragma GCC unroll 8
        for (int n = 0; n < count; n++) {
            wide value = load(x + n * in + i);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) sums[r][n] += weight[r] * value;
        }
    }
    for (; i < in; i++)
        for (int n = 0; n < count; n++)
            for (int r = 0; r < ROWS; r++) tails[r][n] += row[r][i] * x[n * in + i];
#pragma GCC unroll 8
    for (int n = 0; n < count; n++)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
            if (o + r < out)
                y[n * out + o + r] = sum_of(sums[r][n]) + tails[r][n] + (bias ? bias[o + r] : 0.0f);
}

/* y (S, out) = x (S, in) times w (out, in) transposed, plus bias. */
static void rows_product(const float *w, const float *bias, const float *x, float *y, int64_t in,
                         int64_t out, int64_t streams) {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < (out + ROWS - 1) / ROWS; block++) {
        int64_t o = block * ROWS, s = 0;
        for (; s + TOGETHER <= streams; s += TOGETHER)
            rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, TOGETHER);
        switch (streams - s) {
            case 7: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, 7); break;
            case 6: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, 6); break;
            case 5: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, 5); break;
            case 4: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, 4); break;
            case 3: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, 3); break;
            case 2: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, 2); break;
            case 1: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, 1); break;
        }
    }
}

/* y[s][from:to] += the sum of FOUR rows of w, each times its number of x[s]. */
INLINE void add_rows(const float *w, const float *x, float *y, int64_t in, int64_t out,
                     const int64_t rows[FOUR], int64_t from, int64_t to, int64_t streams) {
    int64_t o = from;
    for (; o + LANES <= to; o += LANES) {
        wide row[FOUR];
        for (int r = 0; r < FOUR; r++) row[r] = load(w + rows[r] * out + o);
        for (int64_t s = 0; s < streams; s++) {
            wide sum = load(y + s * out + o);
            for (int r = 0; r < FOUR; r++) sum += x[s * in + rows[r]] * row[r];
            store(y + s * out + o, sum);
        }
    }
    for (; o < to; o++)
        for (int64_t s = 0; s < streams; s++)
            for (int r = 0; r < FOUR; r++)
                y[s * out + o] += x[s * in + rows[r]] * w[rows[r] * out + o];
}

/* y (S, out) = x (S, in) times w (in, out). A row whose numbers x are all zero is not even read:
 * behind a squared ReLU that is many of them. */
static void columns_product(const float *w, const float *x, float *y, int64_t in, int64_t out,
                            int64_t streams, int64_t strips) {
    int64_t width = (out + strips - 1) / strips;
    for (; streams > TOGETHER; streams -= TOGETHER, x += TOGETHER * in, y += TOGETHER * out)
        columns_product(w, x, y, in, out, TOGETHER, strips);
#pragma omp for schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t from = strip * width, to = from + width < out ? from + width : out;
        for (int64_t s = 0; s < streams && from < to; s++)
            memset(y + s * out + from, 0, (to - from) * sizeof(float));
        int64_t rows[FOUR], found = 0;
        for (int64_t i = 0; i < in; i++) {
            int used = 0;
            for (int64_t s = 0; s < streams; s++) used |= x[s * in + i] != 0.0f;
            if (!used) continue;
            rows[found++] = i;
            if (found == FOUR) {
                add_rows(w, x, y, in, out, rows, from, to, streams);
                found = 0;
            }
        }
        for (int64_t r = 0; r < found; r++)
            for (int64_t s = 0; s < streams; s++)
                for (int64_t o = from; o < to; o++)
                    y[s * out + o] += x[s * in + rows[r]] * w[rows[r] * out + o];
    }
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

static float highest_of(const float *x, int64_t count) {
    wide best = (wide){} + x[0];
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        wide value = load(x + i);
        wide_int more = value > best;
        best = (wide)(((wide_int)value & more) | ((wide_int)best & ~more));
    }
    float highest = x[0];
    for (int lane = 0; lane < LANES; lane++) highest = best[lane] > highest ? best[lane] : highest;
    for (; i < count; i++) highest = x[i] > highest ? x[i] : highest;
    return highest;
}

/* Normalise each row of x (S, C) to mean 0 and variance 1, into y. */
static void normalise(const float *x, const float *weight, const float *bias, float *y, int64_t c,
                      int64_t streams) {
    for (int64_t s = 0; s < streams; s++) {
        const float *from = x + s * c;
        float mean = total_of(from, c, 0.0f, 0) / c;
        float scale = 1.0f / sqrtf(total_of(from, c, mean, 1) / c + 1e-5f);
        for (int64_t i = 0; i < c; i++) {
            float value = (from[i] - mean) * scale;
            y[s * c + i] = weight ? value * weight[i] + bias[i] : value;
        }
    }
}

/* Add to h (S, T, C) its two predecessors by mix (2, C), and remember the last two. */
static void mix_in(float *h, const float *mix, float *before, int64_t c, int64_t streams,
                   int64_t count) {
    for (int64_t row = 0; row < streams * count; row++) {
        float *now = h + row * c, *last_but_one = before + row / count * 2 * c;
        float *last = last_but_one + c;
        for (int64_t i = 0; i < c; i++) {
            float plain = now[i];
            now[i] += mix[i] * last[i] + mix[c + i] * last_but_one[i];
            last_but_one[i] = last[i];
            last[i] = plain;
        }
    }
}

static void add(float *x, const float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] += y[i];
}

static void root_mean_square(float *x, int64_t depth, float factor) {
    float scale = factor / sqrtf(total_of(x, depth, 0.0f, 1) / depth + 1e-6f);
    for (int64_t i = 0; i < depth; i++) x[i] *= scale;
}

/* One head of one stream: keep its key and value, and mix what it attends to into `mixed` (D). */
static void attend(const Model *m, float *query, float *key, const float *value, float *keys,
                   float *values, float *scores, float slope, float *mixed, int64_t position) {
    int64_t depth = m->width / m->heads, length = position + 1, padded = m->block;
    float factor = 1.0f / sqrtf((float)depth);
    if (m->modern) {
        root_mean_square(query, depth, 1.0f);
        root_mean_square(key, depth, 1.0f);
    }
    for (int64_t d = 0; d < depth; d++) keys[d * padded + position] = key[d];
    memcpy(values + position * depth, value, depth * sizeof(float));
    for (int64_t t = 0; t < length; t++) scores[t] = -slope * (float)(position - t);
    for (int64_t d = 0; d < depth; d++) {
        float q = query[d] * factor;
        const float *row = keys + d * padded;
        int64_t t = 0;
        for (; t + LANES <= length; t += LANES)
            store(scores + t, load(scores + t) + q * load(row + t));
        for (; t < length; t++) scores[t] += q * row[t];
    }
    float highest = highest_of(scores, length);
    for (int64_t t = 0; t < length; t += LANES) {
        wide part = (wide){} - 87.0f;
        size_t bytes = (length - t < LANES ? length - t : LANES) * sizeof(float);
        memcpy(&part, scores + t, bytes);
        part = exponential(part - highest);
        memcpy(scores + t, &part, bytes);
    }
    float total = total_of(scores, length, 0.0f, 0);
    memset(mixed, 0, depth * sizeof(float));
    for (int64_t t = 0; t < length; t++) {
        const float *row = values + t * depth;
        for (int64_t d = 0; d < depth; d++) mixed[d] += scores[t] * row[d];
    }
    for (int64_t d = 0; d < depth; d++) mixed[d] /= total;
}

static void attention(const Model *m, const Layer *layer, int64_t position, int64_t count) {
    int64_t heads = m->heads, depth = m->width / heads, cached = m->block * depth;
#pragma omp for schedule(static)
    for (int64_t one = 0; one < m->streams * heads; one++) {
        int64_t head = one % heads;
        /* One after the other, so that none sees a later one. */
        for (int64_t t = 0; t < count; t++) {
            int64_t row = one / heads * count + t;
            float *query = m->qkv + row * 3 * m->width + head * depth;
            float *key = query + m->width;
            attend(m, query, key, key + m->width, layer->keys + one * cached,
                   layer->values + one * cached, m->scores + one * m->block,
                   m->slopes ? m->slopes[head] : 0.0f, m->mixed + row * m->width + head * depth,
                   position + t);
        }
    }
}

static void activate(const Model *m, int64_t count) {
    float *h = m->wide_h;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        if (m->modern) h[i] = h[i] > 0.0f ? h[i] * h[i] : 0.0f;
        else h[i] = 0.5f * h[i] * (1.0f + erff(h[i] * 0.70710678f));
    }
}

static void embed(const Model *m, const int64_t *tokens, int64_t position, int64_t count) {
    int64_t c = m->width;
    for (int64_t row = 0; row < m->streams * count; row++) {
        float *x = m->x + row * c;
        memcpy(x, m->embedding + tokens[row] * c, c * sizeof(float));
        if (m->positions) add(x, m->positions + (position + row % count) * c, c);
        if (!m->gate) continue;
        int64_t *previous = m->previous + row / count;
        if (*previous >= 0) {
            const float *before = m->embedding + *previous * c;
            for (int64_t i = 0; i < c; i++) x[i] += m->gate[i] * before[i];
        }
        *previous = tokens[row];
        normalise(x, NULL, NULL, x, c, 1);
    }
}

static void run_layer(const Model *m, const Layer *layer, int64_t position, int64_t count) {
    int64_t c = m->width, streams = m->streams, rows = streams * count;
#pragma omp single
    {
        normalise(m->x, layer->norm1, layer->norm1_bias, m->h, c, rows);
        if (layer->mix1) mix_in(m->h, layer->mix1, layer->before1, c, streams, count);
    }
    rows_product(layer->qkv, layer->qkv_bias, m->h, m->qkv, c, 3 * c, rows);
    attention(m, layer, position, count);
    rows_product(layer->out, layer->out_bias, m->mixed, m->h, c, c, rows);
#pragma omp single
    {
        add(m->x, m->h, rows * c);
        normalise(m->x, layer->norm2, layer->norm2_bias, m->h, c, rows);
        if (layer->mix2) mix_in(m->h, layer->mix2, layer->before2, c, streams, count);
    }
    rows_product(layer->widen, layer->widen_bias, m->h, m->wide_h, c, m->ff, rows);
    activate(m, rows * m->ff);
    if (m->modern) columns_product(layer->narrow, m->wide_h, m->h, m->ff, c, rows, m->threads);
    else rows_product(layer->narrow, layer->narrow_bias, m->wide_h, m->h, m->ff, c, rows);
#pragma omp single
    add(m->x, m->h, rows * c);
}

/* Read tokens (S, T) from `position` on, counted from the beginning of the cache; write the logits
 * (S, V) after the last. */
void megatron_decode(const Model *m, const int64_t *tokens, int64_t position, int64_t count,
                     float *logits) {
#pragma omp parallel num_threads(m->threads) if (m->threads > 1)
    {
#pragma omp single
        embed(m, tokens, position, count);
        for (int64_t l = 0; l < m->layers; l++) run_layer(m, m->layer + l, position, count);
#pragma omp single
        for (int64_t s = 0; s < m->streams; s++)
            normalise(m->x + ((s + 1) * count - 1) * m->width, m->norm, m->norm_bias,
                      m->h + s * m->width, m->width, 1);
        rows_product(m->head, m->head_bias, m->h, logits, m->width, m->vocab, m->streams);
    }
    if (m->logit_cap > 0.0f)
        for (int64_t i = 0; i < m->streams * m->vocab; i++)
            logits[i] = m->logit_cap * tanhf(logits[i] / m->logit_cap);
}
