/* Products with weights in float32, where they lie. */
#define ROWS 2        /* rows of a matrix taken together */
#define FOUR 4
#define AHEAD 8       /* how many rows ahead memory is asked for */

/* y[n][o] for ROWS rows from `o` and `count` streams; rows past the end are not stored. */
INLINE void rows_kernel(const float *w, const float *bias, const float *x, float *y, int64_t in,
                        int64_t out, int64_t o, int add, const int count) {
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
                y[n * out + o + r] = sum_of(sums[r][n]) + tails[r][n] +
                                     (bias ? bias[o + r] : 0.0f) + (add ? y[n * out + o + r] : 0.0f);
}

/* y (S, out) = x (S, in) times w (out, in) transposed, plus bias; `add`: plus what y is. */
static void rows_product(const float *w, const float *bias, const float *x, float *y, int64_t in,
                         int64_t out, int64_t streams, int add) {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < (out + ROWS - 1) / ROWS; block++) {
        int64_t o = block * ROWS, s = 0;
        for (; s + TOGETHER <= streams; s += TOGETHER)
            rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, add, TOGETHER);
        switch (streams - s) {
            case 7: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, add, 7); break;
            case 6: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, add, 6); break;
            case 5: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, add, 5); break;
            case 4: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, add, 4); break;
            case 3: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, add, 3); break;
            case 2: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, add, 2); break;
            case 1: rows_kernel(w, bias, x + s * in, y + s * out, in, out, o, add, 1); break;
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

/* y (S, out) += x (S, in) times w (in, out). A row whose numbers x are all zero is not even read:
 * behind a squared ReLU that is many of them. */
static void columns_product(const float *w, const float *x, float *y, int64_t in, int64_t out,
                            int64_t streams, int64_t strips) {
    int64_t width = (out + strips - 1) / strips;
    for (; streams > TOGETHER; streams -= TOGETHER, x += TOGETHER * in, y += TOGETHER * out)
        columns_product(w, x, y, in, out, TOGETHER, strips);
#pragma omp for schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t from = strip * width, to = from + width < out ? from + width : out;
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
