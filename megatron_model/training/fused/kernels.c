// What lies between the matrix products of a training step of the modern transformer.
//
// Shapes are arguments, so that this is compiled once on a machine. Every kernel is a function of
// its arguments (a struct of its name, which library.py reads here), the number of a part of its
// work, and some memory of its own (scratch). Parts don't depend on the number of threads, and what
// they add up is added up in one order: the result is the same to the last bit for any number.
//
// Vectors are those of GCC and clang, as wide as the processor's; the compiler makes the simple
// loops into vectors by itself. Numbers that the products read are bfloat16 or float32: rows.h,
// attention.h and muon.h are read once for each.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"

typedef void kernel(const void *arguments, int64_t part, char *scratch);
typedef void runner(void (*work)(void *), void *data, unsigned threads, unsigned flags);

struct job {
  kernel *body;
  const void *arguments;
  int64_t parts, next, workers, scratch_bytes;
  char *scratch;
};

static void work(void *data) {
  struct job *job = data;
  int64_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), part;
  while ((part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->parts)
    job->body(job->arguments, part, job->scratch + worker * job->scratch_bytes);
}

// Do all parts, by so many threads of the OpenMP runtime that torch has loaded (`run` is its
// GOMP_parallel), or by this one alone. Each has scratch_bytes of scratch.
void megatron_each(runner *run, int64_t threads, kernel *body, const void *arguments, int64_t parts,
                   char *scratch, int64_t scratch_bytes) {
  struct job job = {body, arguments, parts, 0, 0, scratch_bytes, scratch};
  if (!run || threads < 2 || parts < 2) work(&job);
  else run(work, &job, (unsigned)threads, 0);
}

// Mean and 1 / standard deviation of a row.
static inline void moments(const float *restrict x, int64_t n, float *mean, float *spread) {
  float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t c = 0; c < n; c++) total += x[c];
  const float m = total / n;
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < n; c++) squares += (x[c] - m) * (x[c] - m);
  *mean = m;
  *spread = 1 / sqrtf(squares / n + 1e-5f);
}

struct part {
  int64_t first, end;
};
static inline struct part part_of(int64_t number, int64_t chunk, int64_t count) {
  const int64_t first = number * chunk;
  return (struct part){first, first + chunk < count ? first + chunk : count};
}

#include "embedding.h"
#include "optimizer.h"

#define NAMED_(name, type) name##_##type
#define NAMED2_(name, type) NAMED_(name, type)
#define NAMED(name) NAMED2_(name, TYPE)

// What normalise adds to the sum that runs through the layers, and what it makes of it.
struct normalise {
  int64_t length, width, chunk;
  const float *x;                           // (B, T, C)
  const void *added;                        // (B, T, C), or NULL: nothing is added
  float *sum;                               // (B, T, C), x + added
  const float *mix;                         // (2, C), or NULL: nothing is mixed in
  void *out;                                // (B, T, C)
  float *mean, *spread;                     // (B, T)
  uint32_t seed, dropped;                   // of 2^32 numbers of `added` so many are dropped
  float scale;                              // of the others
};
struct normalise_back {
  int64_t rows, length, width, chunk;
  const void *gradient;                     // of `out` above
  const float *x, *mix, *mean, *spread;
  float *sum;                               // gradient of the sum; added to
  void *added;                              // gradient of `added`
  float *mixes;                             // (parts, 2, C): what each part adds to that of `mix`
  uint32_t seed, dropped;
  float scale;
  int32_t last;                             // nothing comes after: `sum` has no old value
};
struct add_parts {                          // out (groups, n): the sums over the pieces
  int64_t pieces, count;
  const float *values;                      // (groups, pieces, n)
  float *out;
};
struct square {                             // out = max(0, x)^2
  int64_t count, chunk;
  const void *x;
  void *out;
};
struct square_back {                        // gradient becomes that of x
  int64_t count, chunk;
  const void *x;
  void *gradient;
};
struct cross_entropy {
  int64_t rows, chunk, vocabulary;
  void *logits;                             // (B * T, V); replaced by their gradient, unless it is 0
  const int64_t *targets;
  float *losses;                            // (B * T)
  float cap, factor;                        // of the gradient; 0: none is wanted
};
struct attend {
  int64_t length, heads, depth;
  const void *projected;                    // (B, T, 3, H, D)
  const float *slopes;                      // (H)
  void *mixed;                              // (B, T, H, D)
  float *totals;                            // (B, H, T)
};
struct attend_back {
  int64_t length, heads, depth;
  const void *projected;
  const float *slopes;
  const void *mixed;
  const float *totals;
  const void *gradient;                     // of `mixed`
  void *out;                                // of `projected`
};
struct momentum {
  int64_t size;
  const float *gradient;
  float *average;
  void *out;                                // each matrix divided by its norm
  float factor, keep;
};
struct apply {
  int64_t size, kinds;
  float *weights;
  const void *change;
  const float *sizes;                       // (kinds) of the change, by the place in a layer
  float rate, decay;
};

void add_parts(const void *arguments, int64_t number, char *scratch) {
  (void)scratch;
  const struct add_parts *a = arguments;
  float *restrict out = a->out + number * a->count;
  memset(out, 0, a->count * sizeof *out);
  for (int64_t p = 0; p < a->pieces; p++) {
    const float *restrict in = a->values + (number * a->pieces + p) * a->count;
#pragma omp simd
    for (int64_t i = 0; i < a->count; i++) out[i] += in[i];
  }
}

#define TYPE float32
#define ELEMENT float
#define WIDEN(x) (x)
#define NARROW(x) (x)
#define OPERAND float
#define PAIRS 0
#include "rows.h"
#include "attention.h"
#include "muon.h"
#undef TYPE
#undef ELEMENT
#undef WIDEN
#undef NARROW
#undef OPERAND
#undef PAIRS

#define TYPE bfloat16
#define ELEMENT bfloat16
#define WIDEN(x) widen(x)
#define NARROW(x) narrow(x)
#if HAS_PAIRS
#define OPERAND bfloat16
#define PAIRS 1
#else
#define OPERAND float  // attention is computed in float32, which loses nothing
#define PAIRS 0
#endif
#include "rows.h"
#include "attention.h"
#include "muon.h"
