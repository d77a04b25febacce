// Norms, the mix with predecessors, the squared ReLU and the loss: what goes row by row.
#ifndef ROWS_H
#define ROWS_H
INLINE uint32_t drawn(uint32_t seed, uint32_t index) {  // a random number (Wellons' lowbias32)
  uint32_t x = index * 0x9e3779b1u + seed;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}
#endif

// scratch: 4 rows of float
void NAMED(normalise)(const void *arguments, int64_t number, char *scratch) {
  const struct normalise *a = arguments;
  const int64_t C = a->width, pieces = (a->length + a->chunk - 1) / a->chunk;
  const int64_t sequence = number / pieces * a->length;
  const struct part part = part_of(number % pieces, a->chunk, a->length);
  float *ring = (float *)scratch, *spare = ring + 3 * C;
  const uint32_t seed = a->seed, dropped = a->dropped;
  const float scale = a->scale, *restrict mix1 = a->mix, *restrict mix2 = mix1 ? mix1 + C : mix1;
  memset(ring, 0, 3 * C * sizeof *ring);
  // A part reads the two rows before it for itself.
  for (int64_t t = a->mix && part.first ? part.first - 2 : part.first; t < part.end; t++) {
    const int64_t row = sequence + t;
    const float *x = a->x + row * C;
    if (a->added) {
      const float *restrict old = x;
      const ELEMENT *restrict added = (const ELEMENT *)a->added + row * C;
      float *restrict sum = t < part.first ? spare : a->sum + row * C;
      if (dropped) {
        const uint32_t index = (uint32_t)(row * C);
#pragma omp simd
        for (int64_t c = 0; c < C; c++)
          sum[c] = old[c] + (drawn(seed, index + (uint32_t)c) < dropped ? 0.f : scale * WIDEN(added[c]));
      } else {
#pragma omp simd
        for (int64_t c = 0; c < C; c++) sum[c] = old[c] + WIDEN(added[c]);
      }
      x = sum;
    }
    float mean, spread;
    moments(x, C, &mean, &spread);
    float *restrict own = ring + t % 3 * C;
    const float *restrict last = ring + (t + 2) % 3 * C, *restrict before = ring + (t + 1) % 3 * C;
#pragma omp simd
    for (int64_t c = 0; c < C; c++) own[c] = (x[c] - mean) * spread;
    if (t < part.first) continue;
    a->mean[row] = mean;
    a->spread[row] = spread;
    ELEMENT *restrict out = (ELEMENT *)a->out + row * C;
    if (mix1) {
#pragma omp simd
      for (int64_t c = 0; c < C; c++)
        out[c] = NARROW(own[c] + mix1[c] * last[c] + mix2[c] * before[c]);
    } else {
#pragma omp simd
      for (int64_t c = 0; c < C; c++) out[c] = NARROW(own[c]);
    }
  }
}

// scratch: 4 rows of float
void NAMED(normalise_back)(const void *arguments, int64_t number, char *scratch) {
  const struct normalise_back *a = arguments;
  const struct part part = part_of(number, a->chunk, a->rows);
  const int64_t C = a->width;
  float *restrict n = (float *)scratch, *restrict g = n + C, *zeros = n + 2 * C;
  const float *restrict mix1 = a->mix ? a->mix : zeros, *restrict mix2 = a->mix ? a->mix + C : zeros;
  float *restrict mixed1 = a->mixes + number * 2 * C, *restrict mixed2 = mixed1 + C;
  const uint32_t seed = a->seed, dropped = a->dropped;
  const float scale = a->scale;
  memset(zeros, 0, C * sizeof *zeros);
  if (a->mix) memset(mixed1, 0, 2 * C * sizeof *mixed1);
  for (int64_t row = part.first; row < part.end; row++) {
    const int64_t left = a->length - 1 - row % a->length;
    const float *restrict x = a->x + row * C, mean = a->mean[row], spread = a->spread[row];
    const ELEMENT *restrict d0 = (const ELEMENT *)a->gradient + row * C;
    const ELEMENT *restrict d1 = left > 0 ? d0 + C : (const ELEMENT *)zeros;
    const ELEMENT *restrict d2 = left > 1 ? d0 + 2 * C : (const ELEMENT *)zeros;
    float total = 0, along = 0;
    if (a->mix) {
#pragma omp simd reduction(+ : total, along)
      for (int64_t c = 0; c < C; c++) {
        const float e1 = WIDEN(d1[c]), e2 = WIDEN(d2[c]);
        n[c] = (x[c] - mean) * spread;
        g[c] = WIDEN(d0[c]) + mix1[c] * e1 + mix2[c] * e2;
        mixed1[c] += e1 * n[c];
        mixed2[c] += e2 * n[c];
        total += g[c];
        along += g[c] * n[c];
      }
    } else {
#pragma omp simd reduction(+ : total, along)
      for (int64_t c = 0; c < C; c++) {
        n[c] = (x[c] - mean) * spread;
        g[c] = WIDEN(d0[c]);
        total += g[c];
        along += g[c] * n[c];
      }
    }
    total /= C, along /= C;
    float *restrict sum = a->sum + row * C;
    ELEMENT *restrict added = (ELEMENT *)a->added + row * C;
    if (a->last) memset(sum, 0, C * sizeof *sum);
    if (dropped) {
      const uint32_t index = (uint32_t)(row * C);
#pragma omp simd
      for (int64_t c = 0; c < C; c++) {
        sum[c] += (g[c] - total - n[c] * along) * spread;
        added[c] = NARROW(drawn(seed, index + (uint32_t)c) < dropped ? 0.f : scale * sum[c]);
      }
    } else {
#pragma omp simd
      for (int64_t c = 0; c < C; c++) {
        sum[c] += (g[c] - total - n[c] * along) * spread;
        added[c] = NARROW(sum[c]);
      }
    }
  }
}

void NAMED(square)(const void *arguments, int64_t number, char *scratch) {
  (void)scratch;
  const struct square *a = arguments;
  const struct part part = part_of(number, a->chunk, a->count);
  const ELEMENT *restrict x = a->x;
  ELEMENT *restrict out = a->out;
#pragma omp simd
  for (int64_t i = part.first; i < part.end; i++) {
    const float v = WIDEN(x[i]) < 0.f ? 0.f : WIDEN(x[i]);
    out[i] = NARROW(v * v);
  }
}

void NAMED(square_back)(const void *arguments, int64_t number, char *scratch) {
  (void)scratch;
  const struct square_back *a = arguments;
  const struct part part = part_of(number, a->chunk, a->count);
  const ELEMENT *restrict x = a->x;
  ELEMENT *restrict gradient = a->gradient;
#pragma omp simd
  for (int64_t i = part.first; i < part.end; i++) {
    const float v = WIDEN(x[i]) < 0.f ? 0.f : WIDEN(x[i]);
    gradient[i] = NARROW(2 * v * WIDEN(gradient[i]));
  }
}

// Of logits capped as cap * tanh(x / cap): exponentials cannot overflow. scratch: 2 V floats
void NAMED(cross_entropy)(const void *arguments, int64_t number, char *scratch) {
  const struct cross_entropy *a = arguments;
  const struct part part = part_of(number, a->chunk, a->rows);
  const int64_t V = a->vocabulary;
  const float cap = a->cap, factor = a->factor;
  float *restrict tanhs = (float *)scratch, *restrict weights = tanhs + V;
  for (int64_t row = part.first; row < part.end; row++) {
    ELEMENT *restrict x = (ELEMENT *)a->logits + row * V;
    const int64_t target = a->targets[row];
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < V; c++) {
      const float t = 1 - 2 / (1 + exponential(WIDEN(x[c]) * (2 / cap)));
      tanhs[c] = t;
      weights[c] = exponential(t * cap);
      total += weights[c];
    }
    a->losses[row] = logf(total) - cap * tanhs[target];
    if (factor == 0) continue;
    const float each = factor / total, t = tanhs[target];
    const float own = (weights[target] / total - 1) * factor * (1 - t * t);
#pragma omp simd
    for (int64_t c = 0; c < V; c++) x[c] = NARROW(weights[c] * each * (1 - tanhs[c] * tanhs[c]));
    x[target] = NARROW(own);
  }
}
