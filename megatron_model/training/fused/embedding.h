// x = norm(e_t + gate * e_{t-1}); the id V stands for a blank, whose embedding is all zeros.
struct embed {
  int64_t rows, length, width, vocabulary, chunk;
  const int64_t *tokens;                    // (B, T)
  const float *table, *gate;                // (V, C), (C)
  float *x, *spread;                        // (B, T, C), (B, T)
};
struct embed_back {                         // the gradient of x becomes that of what is normalised
  int64_t rows, width, chunk;
  const float *x, *spread;
  float *gradient;
};
struct embed_back_table {                   // a part of the columns
  int64_t rows, length, width, vocabulary, chunk;
  const int64_t *tokens;
  const float *table, *gate, *gradient;
  float *tables, *gates;                    // gradients of table and gate
};

void embed(const void *arguments, int64_t number, char *scratch) {
  const struct embed *a = arguments;
  const struct part part = part_of(number, a->chunk, a->rows);
  const int64_t C = a->width, V = a->vocabulary;
  float *zeros = (float *)scratch;
  memset(zeros, 0, C * sizeof *zeros);
  for (int64_t row = part.first; row < part.end; row++) {
    const int64_t own = a->tokens[row], before = row % a->length ? a->tokens[row - 1] : V;
    const float *restrict e = own < V ? a->table + own * C : zeros;
    const float *restrict p = before < V ? a->table + before * C : zeros, *restrict gate = a->gate;
    float *restrict x = a->x + row * C, mean, spread;
#pragma omp simd
    for (int64_t c = 0; c < C; c++) x[c] = e[c] + gate[c] * p[c];
    moments(x, C, &mean, &spread);
    a->spread[row] = spread;
#pragma omp simd
    for (int64_t c = 0; c < C; c++) x[c] = (x[c] - mean) * spread;
  }
}

void embed_back(const void *arguments, int64_t number, char *scratch) {
  (void)scratch;
  const struct embed_back *a = arguments;
  const struct part part = part_of(number, a->chunk, a->rows);
  const int64_t C = a->width;
  for (int64_t row = part.first; row < part.end; row++) {
    const float *restrict n = a->x + row * C, spread = a->spread[row];
    float *restrict g = a->gradient + row * C, mean = 0, along = 0;
#pragma omp simd reduction(+ : mean, along)
    for (int64_t c = 0; c < C; c++) mean += g[c], along += g[c] * n[c];
    mean /= C, along /= C;
#pragma omp simd
    for (int64_t c = 0; c < C; c++) g[c] = spread * (g[c] - mean - n[c] * along);
  }
}

void embed_back_table(const void *arguments, int64_t number, char *scratch) {
  (void)scratch;
  const struct embed_back_table *a = arguments;
  const struct part part = part_of(number, a->chunk, a->width);
  const int64_t C = a->width, V = a->vocabulary, first = part.first, count = part.end - first;
  const float *restrict gate = a->gate + first;
  float *restrict gates = a->gates + first;
  for (int64_t v = 0; v < V; v++) memset(a->tables + v * C + first, 0, count * sizeof *gates);
  memset(gates, 0, count * sizeof *gates);
  for (int64_t row = 0; row < a->rows; row++) {
    const int64_t own = a->tokens[row];
    if (own >= V) continue;
    const float *restrict g = a->gradient + row * C + first, *restrict later = g + C;
    const float *restrict e = a->table + own * C + first;
    float *restrict t = a->tables + own * C + first;
    if (row % a->length + 1 < a->length) {
#pragma omp simd
      for (int64_t c = 0; c < count; c++) t[c] += g[c] + gate[c] * later[c], gates[c] += later[c] * e[c];
    } else {
#pragma omp simd
      for (int64_t c = 0; c < count; c++) t[c] += g[c];
    }
  }
}
