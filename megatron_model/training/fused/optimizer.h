// AdamW, without decay.
struct adamw {
  int64_t count, chunk;
  float *weights;
  const float *gradient;
  float *first, *second;
  float factor, rate, beta1, beta2, correction1, correction2;
};

void adamw(const void *arguments, int64_t number, char *scratch) {
  (void)scratch;
  const struct adamw *a = arguments;
  const struct part part = part_of(number, a->chunk, a->count);
  float *restrict w = a->weights, *restrict m = a->first, *restrict v = a->second;
  const float *restrict gradient = a->gradient;
  const float b1 = a->beta1, b2 = a->beta2, factor = a->factor, rate = a->rate;
  const float c1 = a->correction1, c2 = a->correction2;
#pragma omp simd
  for (int64_t i = part.first; i < part.end; i++) {
    const float g = gradient[i] * factor;
    m[i] = m[i] * b1 + g * (1 - b1);
    v[i] = v[i] * b2 + g * g * (1 - b2);
    w[i] -= rate * (m[i] / c1) / (sqrtf(v[i] / c2) + 1e-10f);
  }
}
