/* Cached decoding on a CPU: the next characters of each stream in, the logits after the last out.
 *
 * The same arithmetic as `extend` of classic.py and modern.py. Either in float32, on the models' own
 * weights where they lie; or with copies of them rounded to 8 bits (int8.h), and with keys and values
 * kept in bfloat16: for large models, whose time is that of reading memory. A null pointer stands for a
 * part that an architecture does not have. Every stream is summed in the same order however many
 * there are, so that a text does not depend on what is written beside it.
 *
 * S streams, T new positions, N = S * T rows, C width, H heads, D = C / H, F feed-forward width,
 * V characters.
 */
#include "vectors.h"

#define TOGETHER 8  /* rows of numbers that are multiplied with weights at once */
#include "float32.h"
#include "int8.h"

#define NAMED(name) name##_float32
#define KEPT float
#define KEEP(x) (x)
#define LOAD load
#include "attention.h"
#undef NAMED
#undef KEPT
#undef KEEP
#undef LOAD
#define NAMED(name) name##_bfloat16
#define KEPT bfloat16
#define KEEP to_bfloat16
#define LOAD load_bfloat16
#include "attention.h"

typedef struct {
    const void *numbers;   /* float (out, in), or rounded */
    const float *scales;   /* null: not rounded */
    const float *bias;
} Matrix;

typedef struct {
    const float *norm1, *norm1_bias, *mix1, *norm2, *norm2_bias, *mix2;
    Matrix qkv, out, widen, narrow;  /* narrow is (F, C) in the modern architecture */
    void *keys, *values;             /* of all streams and heads: attention.h */
    float *before1;                  /* (S, 2, C): what mix1 adds, the last position but one first */
    float *before2;                  /* the same of mix2 */
} Layer;

typedef struct {
    int64_t layers, width, heads, ff, vocab, positions_kept, streams, threads, modern, rounded;
    const float *embedding, *positions, *gate, *slopes, *norm, *norm_bias, *head, *head_bias;
    float logit_cap;
    int64_t *previous;  /* (S): the character before, -1 at the beginning */
    float *x, *h, *normed, *qkv, *mixed, *wide_h;  /* scratch, a row a position */
    float *scores;      /* scratch: (S, H, positions_kept) */
    int32_t *values;    /* rows rounded to 16 bits, in pairs: (N, groups * GROUP / 2) */
    float *value_scales;  /* (N, groups) */
    uint16_t *lists;    /* which inputs are in them, times TILE: (N / TOGETHER, groups, GROUP) */
    int32_t *pairs;     /* and how many pairs: (N / TOGETHER, groups) */
    const Layer *layer;
} Model;

/* Normalise a row (C) to mean 0 and variance 1. */
INLINE void normalise(const float *x, const float *weight, const float *bias, float *y, int64_t c) {
    float mean = total_of(x, c, 0.0f, 0) / c;
    float scale = 1.0f / sqrtf(total_of(x, c, mean, 1) / c + 1e-5f);
    for (int64_t i = 0; i < c; i++) {
        float value = (x[i] - mean) * scale;
        y[i] = weight ? value * weight[i] + bias[i] : value;
    }
}

/* h (S, T, C) = x normalised, plus its two predecessors by mix (2, C), of which the last two are kept. */
static void normalise_and_mix(const Model *m, const float *weight, const float *bias,
                              const float *mix, float *before, int64_t count) {
    const int64_t c = m->width, rows = m->streams * count;
    float *plain = mix ? m->normed : m->h;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++)
        normalise(m->x + row * c, weight, bias, plain + row * c, c);
    if (!mix) return;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t t = row % count;
        const float *now = plain + row * c, *kept = before + row / count * 2 * c;
        const float *last = t > 0 ? now - c : kept + c;
        const float *last_but_one = t > 1 ? now - 2 * c : kept + t * c;
        for (int64_t i = 0; i < c; i++)
            m->h[row * c + i] = now[i] + mix[i] * last[i] + mix[c + i] * last_but_one[i];
    }
    /* Nothing reads them before the next step; threads meet many times until then. */
#pragma omp single nowait
    for (int64_t s = 0; s < m->streams; s++) {
        float *kept = before + s * 2 * c;
        const float *end = plain + (s + 1) * count * c;
        if (count == 1) memcpy(kept, kept + c, c * sizeof *kept);
        else memcpy(kept, end - 2 * c, c * sizeof *kept);
        memcpy(kept + c, end - c, c * sizeof *kept);
    }
}

INLINE void activate(float *x, int64_t count, int modern) {
    for (int64_t i = 0; i < count; i++) {
        if (modern) x[i] = x[i] > 0.0f ? x[i] * x[i] : 0.0f;
        else x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
    }
}

#define CASE(n) \
    case n: group_kernel(w, scales, list, pairs, x, per_row, x_scales, groups, sums, n, \
                         n <= AT_ONCE / 2 ? 2 : 1); break;

/* y (N, out) = x (N, in) times rounded weights, plus bias; `add`: plus what y is. */
static void rounded_product(const Model *m, const Matrix *matrix, float *from, float *y, int64_t in,
                            int64_t out, int64_t rows, int add, int active) {
    const int64_t groups = groups_of(in), per_row = groups * (GROUP / 2);
    const int64_t blocks = (rows + TOGETHER - 1) / TOGETHER;
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < blocks * groups; unit++) {
        const int64_t first = unit / groups * TOGETHER, g = unit % groups;
        const int64_t size = smaller(GROUP, in - g * GROUP), count = smaller(TOGETHER, rows - first);
        float *x = from + first * in + g * GROUP;
        for (int64_t s = 0; s < count && active; s++) activate(x + s * in, size, m->modern);
        round_rows(x, in, size, count, groups, m->values + first * per_row + g * (GROUP / 2),
                   m->value_scales + first * groups + g, m->lists + unit * GROUP, m->pairs + unit);
    }
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < (out + TILE - 1) / TILE; tile++) {
        const int64_t outputs = smaller(TILE, out - tile * TILE);
        for (int64_t first = 0; first < rows; first += AT_ONCE) {
            const int64_t count = smaller(AT_ONCE, rows - first);
            float sums[AT_ONCE * TILE] = {0};
            for (int64_t g = 0; g < groups; g++) {
                const int64_t unit = first / TOGETHER * groups + g, pairs = m->pairs[unit];
                const int8_t *w = (const int8_t *)matrix->numbers + (tile * in + g * GROUP) * TILE;
                const float *scales = matrix->scales + (tile * groups + g) * TILE;
                const uint16_t *list = m->lists + unit * GROUP;
                const int32_t *x = m->values + first * per_row + g * (GROUP / 2);
                const float *x_scales = m->value_scales + first * groups + g;
                switch (count) {
                    CASE(1) CASE(2) CASE(3) CASE(4)
#if AT_ONCE > 4
                    CASE(5) CASE(6) CASE(7) CASE(8)
#endif
                }
            }
            for (int64_t n = 0; n < count; n++) {
                float *to = y + (first + n) * out + tile * TILE;
                for (int64_t o = 0; o < outputs; o++)
                    to[o] = sums[n * TILE + o] + (add ? to[o] : 0.0f) +
                            (matrix->bias ? matrix->bias[tile * TILE + o] : 0.0f);
            }
        }
    }
}

static void product(const Model *m, const Matrix *matrix, float *x, float *y, int64_t in,
                    int64_t out, int64_t rows, int add) {
    if (matrix->scales) rounded_product(m, matrix, x, y, in, out, rows, add, 0);
    else rows_product(matrix->numbers, matrix->bias, x, y, in, out, rows, add);
}

/* x += what the feed-forward layer makes of wide_h, to which its activation comes first. */
static void narrow(const Model *m, const Matrix *matrix, int64_t rows) {
    float *h = m->wide_h;
    if (matrix->scales) {
        rounded_product(m, matrix, h, m->x, m->ff, m->width, rows, 1, 1);
        return;
    }
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows * m->ff; row += LANES)
        activate(h + row, smaller(LANES, rows * m->ff - row), m->modern);
    if (m->modern) columns_product(matrix->numbers, h, m->x, m->ff, m->width, rows, m->threads);
    else rows_product(matrix->numbers, matrix->bias, h, m->x, m->ff, m->width, rows, 1);
}

INLINE void root_mean_square(float *x, int64_t depth, float factor) {
    float scale = factor / sqrtf(total_of(x, depth, 0.0f, 1) / depth + 1e-6f);
    for (int64_t i = 0; i < depth; i++) x[i] *= scale;
}

static void attention(const Model *m, const Layer *layer, int64_t position, int64_t count) {
    const int64_t heads = m->heads, depth = m->width / heads;
    const int64_t keys_size = m->positions_kept * depth;
    const int64_t values_size = m->positions_kept * rounded_up(depth, LANES);
    const float factor = 1.0f / sqrtf((float)depth);
#pragma omp for schedule(static)
    for (int64_t one = 0; one < m->streams * heads; one++) {
        const int64_t head = one % heads;
        const float slope = m->slopes ? m->slopes[head] : 0.0f;
        /* From there on, what normalised queries and keys weigh is below e^-20 of the nearest. */
        const float reach = slope > 0.0f ? (2.0f / factor + 20.0f) / slope : 0.0f;
        /* One after the other, so that none sees a later one. */
        for (int64_t t = 0; t < count; t++) {
            const int64_t row = one / heads * count + t, now = position + t;
            const int64_t from = slope > 0.0f && (float)now > reach ? now - (int64_t)reach : 0;
            float *query = m->qkv + row * 3 * m->width + head * depth;
            float *key = query + m->width, *value = key + m->width;
            float *mixed = m->mixed + row * m->width + head * depth;
            float *scores = m->scores + one * m->positions_kept;
            if (m->modern) {
                root_mean_square(query, depth, factor);
                root_mean_square(key, depth, 1.0f);
            } else {
                for (int64_t d = 0; d < depth; d++) query[d] *= factor;
            }
            if (m->rounded)
                attend_bfloat16(query, key, value, (bfloat16 *)layer->keys + one * keys_size,
                                (bfloat16 *)layer->values + one * values_size, scores, slope, mixed,
                                depth, now, from);
            else
                attend_float32(query, key, value, (float *)layer->keys + one * keys_size,
                               (float *)layer->values + one * values_size, scores, slope, mixed,
                               depth, now, from);
        }
    }
}

static void embed(const Model *m, const int64_t *tokens, int64_t position, int64_t count) {
    const int64_t c = m->width;
#pragma omp for schedule(static)
    for (int64_t s = 0; s < m->streams; s++)
        for (int64_t t = 0; t < count; t++) {
            const int64_t token = tokens[s * count + t];
            float *x = m->x + (s * count + t) * c;
            memcpy(x, m->embedding + token * c, c * sizeof(float));
            if (m->positions)
                for (int64_t i = 0; i < c; i++) x[i] += m->positions[(position + t) * c + i];
            if (!m->gate) continue;
            if (m->previous[s] >= 0) {
                const float *before = m->embedding + m->previous[s] * c;
                for (int64_t i = 0; i < c; i++) x[i] += m->gate[i] * before[i];
            }
            m->previous[s] = token;
            normalise(x, NULL, NULL, x, c);
        }
}

static void run_layer(const Model *m, const Layer *layer, int64_t position, int64_t count) {
    const int64_t c = m->width, rows = m->streams * count;
    normalise_and_mix(m, layer->norm1, layer->norm1_bias, layer->mix1, layer->before1, count);
    product(m, &layer->qkv, m->h, m->qkv, c, 3 * c, rows, 0);
    attention(m, layer, position, count);
    product(m, &layer->out, m->mixed, m->x, c, c, rows, 1);
    normalise_and_mix(m, layer->norm2, layer->norm2_bias, layer->mix2, layer->before2, count);
    product(m, &layer->widen, m->h, m->wide_h, c, m->ff, rows, 0);
    narrow(m, &layer->narrow, rows);
}

/* How large its structs are to the compiler: who fills them in must mean the same. */
int64_t megatron_model_size(void) { return sizeof(Model); }
int64_t megatron_layer_size(void) { return sizeof(Layer); }

/* Read tokens (S, T) from `position` on, counted from the beginning of the cache; write the logits
 * (S, V) after the last. */
void megatron_decode(const Model *m, const int64_t *tokens, int64_t position, int64_t count,
                     float *logits) {
#pragma omp parallel num_threads(m->threads) if (m->threads > 1)
    {
        embed(m, tokens, position, count);
        for (int64_t l = 0; l < m->layers; l++) run_layer(m, m->layer + l, position, count);
#pragma omp for schedule(static)
        for (int64_t s = 0; s < m->streams; s++)
            normalise(m->x + ((s + 1) * count - 1) * m->width, m->norm, m->norm_bias,
                      m->h + s * m->width, m->width);
        rows_product(m->head, m->head_bias, m->h, logits, m->width, m->vocab, m->streams, 0);
    }
    if (m->logit_cap > 0.0f)
        for (int64_t i = 0; i < m->streams * m->vocab; i++)
            logits[i] = m->logit_cap * tanhf(logits[i] / m->logit_cap);
}

/* Round a matrix to 8 bits: the weight of output o and input i is w[o * by_output + i * by_input].
 * `rounded` (out rounded up to TILE, in), scales (the same, in GROUPs). */
void megatron_round(const float *w, int64_t in, int64_t out, int64_t by_input, int64_t by_output,
                    int8_t *rounded, float *scales, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t tile = 0; tile < (out + TILE - 1) / TILE; tile++)
        round_weights(w, in, out, by_input, by_output, rounded, scales, tile);
}
