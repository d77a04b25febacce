// Muon before and after its iteration of matrix products; a part is one matrix.
void NAMED(momentum)(const void *arguments, int64_t number, char *scratch) {
  (void)scratch;
  const struct momentum *a = arguments;
  const int64_t size = a->size;
  const float *restrict gradient = a->gradient + number * size;
  float *restrict average = a->average + number * size;
  ELEMENT *restrict out = (ELEMENT *)a->out + number * size;
  const float keep = a->keep, take = a->factor * (1 - a->keep);
  double squares = 0;
  for (int64_t first = 0; first < size; first += 4096) {
    const int64_t end = first + 4096 < size ? first + 4096 : size;
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = first; i < end; i++) {
      const float g = gradient[i] * take;
      average[i] = average[i] * keep + g;
      out[i] = NARROW(g + average[i] * keep);
      part += WIDEN(out[i]) * WIDEN(out[i]);
    }
    squares += part;
  }
  const float norm = WIDEN(NARROW((float)sqrt(squares) + 1e-7f));
#pragma omp simd
  for (int64_t i = 0; i < size; i++) out[i] = NARROW(WIDEN(out[i]) / norm);
}

void NAMED(apply)(const void *arguments, int64_t number, char *scratch) {
  (void)scratch;
  const struct apply *a = arguments;
  const int64_t size = a->size;
  float *restrict weights = a->weights + number * size;
  const ELEMENT *restrict change = (const ELEMENT *)a->change + number * size;
  const float left = 1 - a->decay, rate = a->rate * a->sizes[number % a->kinds];
#pragma omp simd
  for (int64_t i = 0; i < size; i++) weights[i] = weights[i] * left - rate * WIDEN(change[i]);
}
