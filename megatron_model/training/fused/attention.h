// Causal attention of one head, forward and back, without the upper triangle.
//
// Queries and keys are normalised, so that scores lie within sqrt(D) and exponentials need no
// maximum; each step of distance costs `slope`. What is too far away to count is left out: `reach`.
// Products are made of units of 32 bits: a float, or two bfloat16 that are multiplied and added by
// one instruction (PAIRS). A tile of TILE x TILE weights is all that is kept of them going back.
#ifndef ATTENTION_H
#define ATTENTION_H
#define TILE 128
#define COLUMNS (2 * WIDTH)  // of a product that are kept in registers
#define TILE_STRIDE (TILE + 16)  // strides of powers of two fall into the same cache sets

INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE void *grab(char **at, int64_t bytes) {
  void *memory = *at;
  *at += rounded_up(bytes, 64);
  return memory;
}
// Distance from which a weight is below e^-20 of the row's largest.
INLINE int64_t reach_of(float slope, int64_t depth, int64_t length) {
  const float reach = slope > 0 ? (2 * sqrtf((float)depth) + 20) / slope + ROWS : (float)length;
  return reach < (float)length ? (int64_t)reach : length;
}
#endif

#if PAIRS
#define UNIT two_numbers
#define DEPTH 2  // numbers in a unit
#else
#define UNIT float
#define DEPTH 1
#endif

// c (ROWS, 2 vectors) = sum over p < n of a (ROWS, n) * b (n, COLUMNS), strides in units
INLINE void NAMED(product)(const UNIT *a, int64_t row, int64_t column, const UNIT *b, int64_t stride,
                           int64_t n, vector *c) {
#pragma GCC unroll 16
  for (int i = 0; i < 2 * ROWS; i++) c[i] = (vector){};
  for (int64_t p = 0; p < n; p++) {
    const vector b0 = load((const float *)(b + p * stride));
    const vector b1 = load((const float *)(b + p * stride + WIDTH));
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
#if PAIRS
      c[2 * r] = add_pairs(c[2 * r], a[r * row + p * column], b0);
      c[2 * r + 1] = add_pairs(c[2 * r + 1], a[r * row + p * column], b1);
#else
      c[2 * r] += a[r * row + p * column] * b0;
      c[2 * r + 1] += a[r * row + p * column] * b1;
#endif
    }
  }
}

INLINE void NAMED(store_operands)(OPERAND *out, vector v) {
#if PAIRS
  store_bfloat16(out, v);
#else
  store(out, v);
#endif
}

// A row of one head times `factor`, with zeros up to `padded`.
static void NAMED(operands)(OPERAND *restrict out, const ELEMENT *restrict x, int64_t depth,
                            int64_t padded, float factor) {
#pragma omp simd
  for (int64_t d = 0; d < depth; d++)
#if PAIRS
    out[d] = narrow(WIDEN(x[d]) * factor);
#else
    out[d] = WIDEN(x[d]) * factor;
#endif
  memset(out + depth, 0, (padded - depth) * sizeof *out);
}

static float NAMED(root_mean_square)(const ELEMENT *restrict x, int64_t depth) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t d = 0; d < depth; d++) squares += WIDEN(x[d]) * WIDEN(x[d]);
  return 1 / sqrtf(squares / depth + 1e-6f);
}

// The gradient of x from that of x * root * scale.
static void NAMED(root_mean_square_back)(const ELEMENT *restrict x, const float *restrict gradient,
                                         int64_t depth, float root, float scale,
                                         ELEMENT *restrict out) {
  float along = 0;
#pragma omp simd reduction(+ : along)
  for (int64_t d = 0; d < depth; d++) along += WIDEN(x[d]) * gradient[d];
  along *= root * root / depth;
#pragma omp simd
  for (int64_t d = 0; d < depth; d++) out[d] = NARROW(root * scale * (gradient[d] - WIDEN(x[d]) * along));
}

// (length, units) becomes (units, length)
static void NAMED(turned)(const OPERAND *x, int64_t length, int64_t stride, int64_t units, UNIT *out) {
  const UNIT *in = (const UNIT *)x;
  for (int64_t d = 0; d < units; d += 16)
    for (int64_t t = 0; t < length; t++)
      for (int64_t i = d; i < smaller(d + 16, units); i++) out[i * stride + t] = in[t * units + i];
}

// Units along the rows instead of along the columns; for single floats that is the same.
static UNIT *NAMED(paired)(OPERAND *restrict x, int64_t length, int64_t width, char **at) {
#if PAIRS
  UNIT *restrict out = grab(at, length * width * sizeof *x);
  for (int64_t t = 0; t < length; t += 2) {
    const OPERAND *restrict a = x + t * width, *restrict b = a + width;
#pragma omp simd
    for (int64_t c = 0; c < width; c++) out[t / 2 * width + c] = a[c] | (UNIT)b[c] << 16;
  }
  return out;
#else
  (void)length, (void)width, (void)at;
  return x;
#endif
}

// e^(score - slope * distance) of rows i.. and columns j.., zero above the diagonal
INLINE void NAMED(weigh)(vector *c, int64_t i, int64_t j, float slope, vector ramp, integers lanes) {
#pragma GCC unroll 16
  for (int x = 0; x < 2 * ROWS; x++) {
    const int64_t below = i + x / 2 - (j + x % 2 * WIDTH);  // columns that come before the row
    c[x] = exponentials(c[x] + (ramp - slope * (float)below));
    if (below < WIDTH - 1) c[x] = (vector)((integers)c[x] & (lanes <= (int32_t)below));
  }
}

// Bytes for one head; enough for both ways.
int64_t NAMED(attention_scratch)(int64_t length, int64_t depth) {
  const int64_t rows = rounded_up(length, 32), width = rounded_up(depth, COLUMNS);
  const int64_t panels = 7 * (rows + 16) * width * (int64_t)sizeof(OPERAND) + 3 * rows * width * 4;
  return panels + ROWS * (rows + 16 + TILE_STRIDE) * 4 + 2 * TILE * TILE_STRIDE * 4 + 16 * rows + 4096;
}

void NAMED(attend)(const void *arguments, int64_t number, char *scratch) {
  const struct attend *a = arguments;
  const int64_t T = a->length, H = a->heads, D = a->depth, C = H * D, head = number % H;
  const int64_t rows = rounded_up(T, 32), width = rounded_up(D, COLUMNS), units = width / DEPTH;
  const int64_t first = number / H * T, stride = rows + 16, size = rows * width;
  OPERAND *q = grab(&scratch, size * sizeof *q), *k = grab(&scratch, size * sizeof *q);
  OPERAND *v = grab(&scratch, size * sizeof *q), *weights = grab(&scratch, ROWS * stride * sizeof *q);
  const ELEMENT *in = (const ELEMENT *)a->projected + first * 3 * C + head * D;
  for (int64_t t = 0; t < T; t++, in += 3 * C) {
    const float scale = 1 / sqrtf((float)D);
    NAMED(operands)(q + t * width, in, D, width, NAMED(root_mean_square)(in, D) * scale);
    NAMED(operands)(k + t * width, in + C, D, width, NAMED(root_mean_square)(in + C, D));
    NAMED(operands)(v + t * width, in + 2 * C, D, width, 1);
  }
  memset(q + T * width, 0, (rows - T) * width * sizeof *q);
  memset(k + T * width, 0, (rows - T) * width * sizeof *q);
  memset(v + T * width, 0, (rows - T) * width * sizeof *q);
  UNIT *keys = grab(&scratch, units * stride * sizeof *keys);
  NAMED(turned)(k, rows, stride, units, keys);
  const UNIT *values = NAMED(paired)(v, rows, width, &scratch);
  const float slope = a->slopes[head];
  const int64_t reach = reach_of(slope, D, T);
  integers lanes;
  vector ramp, c[2 * ROWS];
  for (int i = 0; i < WIDTH; i++) lanes[i] = i, ramp[i] = slope * i;
  for (int64_t i = 0; i < T; i += ROWS) {
    const int64_t begin = larger(0, i - reach) / COLUMNS * COLUMNS;
    vector totals[ROWS] = {0};
    for (int64_t j = begin; j < i + ROWS; j += COLUMNS) {
      NAMED(product)((UNIT *)(q + i * width), units, 1, keys + j, stride, units, c);
      NAMED(weigh)(c, i, j, slope, ramp, lanes);
#pragma GCC unroll 16
      for (int x = 0; x < 2 * ROWS; x++) {
        totals[x / 2] += c[x];
        NAMED(store_operands)(weights + x / 2 * stride + j + x % 2 * WIDTH, c[x]);
      }
    }
    for (int64_t d = 0; d < width; d += COLUMNS) {
      NAMED(product)((UNIT *)weights + begin / DEPTH, stride / DEPTH, 1,
                     values + begin / DEPTH * width + d, width, (i + ROWS - begin) / DEPTH, c);
      for (int64_t r = 0; r < ROWS && i + r < T; r++) {
        const float total = sum_of(totals[r]);
        ELEMENT *out = (ELEMENT *)a->mixed + (first + i + r) * C + head * D + d;
        float row[COLUMNS];
        store(row, c[2 * r] / total);
        store(row + WIDTH, c[2 * r + 1] / total);
        for (int64_t e = 0; e < smaller(COLUMNS, D - d); e++) out[e] = NARROW(row[e]);
        a->totals[number * T + i + r] = total;
      }
    }
  }
}

INLINE void NAMED(add_product)(float *out, int64_t width, const vector *c) {
#pragma GCC unroll 16
  for (int x = 0; x < 2 * ROWS; x++) {
    float *at = out + x / 2 * width + x % 2 * WIDTH;
    store(at, load(at) + c[x]);
  }
}

void NAMED(attend_back)(const void *arguments, int64_t number, char *scratch) {
  const struct attend_back *a = arguments;
  const int64_t T = a->length, H = a->heads, D = a->depth, C = H * D, head = number % H;
  const int64_t rows = rounded_up(T, 32), width = rounded_up(D, COLUMNS), units = width / DEPTH;
  const int64_t first = number / H * T, stride = rows + 16, size = rows * width;
  const float scale = 1 / sqrtf((float)D), slope = a->slopes[head];
  OPERAND *q = grab(&scratch, size * sizeof *q), *k = grab(&scratch, size * sizeof *q);
  OPERAND *v = grab(&scratch, size * sizeof *q), *g = grab(&scratch, size * sizeof *q);
  float *dq = grab(&scratch, size * 4), *dk = grab(&scratch, size * 4), *dv = grab(&scratch, size * 4);
  float *q_root = grab(&scratch, rows * 4), *k_root = grab(&scratch, rows * 4);
  float *along = grab(&scratch, rows * 4);
  const ELEMENT *in = (const ELEMENT *)a->projected + first * 3 * C + head * D;
  const ELEMENT *mixed = (const ELEMENT *)a->mixed + first * C + head * D;
  const ELEMENT *gradient = (const ELEMENT *)a->gradient + first * C + head * D;
  for (int64_t t = 0; t < T; t++) {
    const ELEMENT *x = in + t * 3 * C, *restrict m = mixed + t * C, *restrict e = gradient + t * C;
    const float part = 1 / a->totals[number * T + t];
    float sum = 0;
    q_root[t] = NAMED(root_mean_square)(x, D);
    k_root[t] = NAMED(root_mean_square)(x + C, D);
    NAMED(operands)(q + t * width, x, D, width, q_root[t] * scale);
    NAMED(operands)(k + t * width, x + C, D, width, k_root[t]);
    NAMED(operands)(v + t * width, x + 2 * C, D, width, 1);
    NAMED(operands)(g + t * width, e, D, width, part);
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < D; d++) sum += WIDEN(m[d]) * WIDEN(e[d]);
    along[t] = sum * part;
  }
  for (int64_t t = T; t < rows; t++) along[t] = 0;
  memset(q + T * width, 0, (rows - T) * width * sizeof *q);
  memset(k + T * width, 0, (rows - T) * width * sizeof *q);
  memset(v + T * width, 0, (rows - T) * width * sizeof *q);
  memset(g + T * width, 0, (rows - T) * width * sizeof *q);
  memset(dq, 0, size * 4), memset(dk, 0, size * 4), memset(dv, 0, size * 4);
  UNIT *keys = grab(&scratch, units * stride * 4), *values = grab(&scratch, units * stride * 4);
  NAMED(turned)(k, rows, stride, units, keys);
  NAMED(turned)(v, rows, stride, units, values);
  const UNIT *q_pairs = NAMED(paired)(q, rows, width, &scratch);
  const UNIT *k_pairs = NAMED(paired)(k, rows, width, &scratch);
  const UNIT *g_pairs = NAMED(paired)(g, rows, width, &scratch);
  UNIT *weights = grab(&scratch, TILE / DEPTH * TILE_STRIDE * 4);
  UNIT *changes = grab(&scratch, TILE / DEPTH * TILE_STRIDE * 4);
#if PAIRS
  OPERAND *change_rows = grab(&scratch, ROWS * TILE_STRIDE * sizeof *q);
#endif
  const int64_t reach = reach_of(slope, D, T);
  integers lanes;
  vector ramp, c[2 * ROWS], e[2 * ROWS];
  for (int i = 0; i < WIDTH; i++) lanes[i] = i, ramp[i] = slope * i;
  for (int64_t i0 = 0; i0 < T; i0 += TILE) {
    const int64_t i_end = smaller(i0 + TILE, rounded_up(T, ROWS));
    for (int64_t j0 = larger(0, i0 - reach) / TILE * TILE; j0 <= i0; j0 += TILE) {
      for (int64_t i = i0; i < i_end; i += ROWS) {
        const int64_t begin = larger(j0, larger(0, i - reach) / COLUMNS * COLUMNS);
        const int64_t end = smaller(j0 + TILE, i + ROWS);
#if !PAIRS
        UNIT *change_rows = changes + (i - i0) * TILE_STRIDE;
#endif
        for (int64_t j = begin; j < end; j += COLUMNS) {
          NAMED(product)((UNIT *)(q + i * width), units, 1, keys + j, stride, units, e);
          NAMED(weigh)(e, i, j, slope, ramp, lanes);
          NAMED(product)((UNIT *)(g + i * width), units, 1, values + j, stride, units, c);
#pragma GCC unroll 16
          for (int x = 0; x < 2 * ROWS; x++) {
            c[x] = e[x] * (c[x] - along[i + x / 2]);
            NAMED(store_operands)(change_rows + x / 2 * TILE_STRIDE + j - j0 + x % 2 * WIDTH, c[x]);
          }
#pragma GCC unroll 16
          for (int x = 0; x < 2 * ROWS / DEPTH; x++) {
            const int64_t at = ((i - i0) / DEPTH + x / 2) * TILE_STRIDE + j - j0 + x % 2 * WIDTH;
#if PAIRS
            const int upper = x / 2 * 4 + x % 2;
            store_pairs(weights + at, e[upper], e[upper + 2]);
            store_pairs(changes + at, c[upper], c[upper + 2]);
#else
            store(weights + at, e[x]);
#endif
          }
        }
        for (int64_t d = 0; d < width && begin < end; d += COLUMNS) {
          NAMED(product)((UNIT *)change_rows + (begin - j0) / DEPTH, TILE_STRIDE / DEPTH, 1,
                         k_pairs + begin / DEPTH * width + d, width, (end - begin) / DEPTH, c);
          NAMED(add_product)(dq + i * width + d, width, c);
        }
      }
      for (int64_t j = j0; j < smaller(j0 + TILE, rounded_up(T, ROWS)); j += ROWS) {
        const int64_t begin = larger(i0, j), end = smaller(i_end, (j + reach) / ROWS * ROWS + ROWS);
        const int64_t at = (begin - i0) / DEPTH * TILE_STRIDE + j - j0;
        for (int64_t d = 0; d < width && begin < end; d += COLUMNS) {
          NAMED(product)(changes + at, 1, TILE_STRIDE, q_pairs + begin / DEPTH * width + d, width,
                         (end - begin) / DEPTH, c);
          NAMED(add_product)(dk + j * width + d, width, c);
          NAMED(product)(weights + at, 1, TILE_STRIDE, g_pairs + begin / DEPTH * width + d, width,
                         (end - begin) / DEPTH, c);
          NAMED(add_product)(dv + j * width + d, width, c);
        }
      }
    }
  }
  for (int64_t t = 0; t < T; t++) {
    const ELEMENT *x = in + t * 3 * C;
    ELEMENT *restrict out = (ELEMENT *)a->out + (first + t) * 3 * C + head * D;
    NAMED(root_mean_square_back)(x, dq + t * width, D, q_root[t], scale, out);
    NAMED(root_mean_square_back)(x + C, dk + t * width, D, k_root[t], 1, out + C);
    const float *restrict row = dv + t * width;
#pragma omp simd
    for (int64_t d = 0; d < D; d++) out[2 * C + d] = NARROW(row[d]);
  }
}

#undef UNIT
#undef DEPTH
