/* What the analysis tests share: a dense tensor of activations, a stand-in for the backend that reduces it, and the
 * statistics recomputed from it by plain loops over all values. Included by one test program at a time. */
#ifndef TEST_ANALYSIS_REFERENCE_H
#define TEST_ANALYSIS_REFERENCE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moe_outliers/analysis.h"

#define UNUSED __attribute__((unused))

/* --- activations --- */

typedef struct {
  mo_analysis_shape shape;
  int64_t L, N, S, H;
  float *x; /* [2L, N, S, H] */
} dense;

static UNUSED dense dense_new(int64_t L, int64_t N, int64_t S, int64_t H) {
  dense d = {{L, N, S, H, 0, {6.0, 0.25, 0.06, 1.0}, {0, 0}, false, false}, L, N, S, H, NULL};
  d.x = calloc((size_t)(2 * L * N * S * H), sizeof *d.x);
  assert_non_null(d.x);
  return d;
}

static UNUSED float *at(const dense *d, int64_t place, int64_t n, int64_t s, int64_t h) {
  return &d->x[((place * d->N + n) * d->S + s) * d->H + h];
}

/* xorshift64*, seeded by each test */
static UNUSED uint64_t random_bits(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C(2685821657736338717);
}

static UNUSED double random_unit(uint64_t *state) { return (double)(random_bits(state) >> 11) * 0x1p-53; }

/* Multiples of 1/4, so that many are 6 exactly; feature h is large with a chance of its own at each site. */
static UNUSED void fill_random(dense *d, uint64_t seed) {
  uint64_t state = seed;
  for (int64_t place = 0; place < 2 * d->L; place++)
    for (int64_t h = 0; h < d->H; h++) {
      double chance = random_unit(&state) < 0.5 ? 0 : random_unit(&state) * random_unit(&state);
      for (int64_t n = 0; n < d->N; n++)
        for (int64_t s = 0; s < d->S; s++) {
          double scale = random_unit(&state) < chance ? 12 : 5.9;
          *at(d, place, n, s, h) = (float)(trunc((random_unit(&state) * 2 - 1) * scale * 4) / 4);
        }
    }
}

/* --- stand-in for the backend --- */

static UNUSED bool is_outlier(const dense *d, float x) { return fabs((double)x) >= d->shape.criteria.threshold; }

typedef struct {
  mo_site_statistics s;
} reduced;

static UNUSED void reduced_free(reduced *r) {
  void *owned[] = {r->s.count,   r->s.positive, r->s.min,         r->s.max,      r->s.sum_abs, r->s.sum,
                   r->s.max_abs, r->s.outliers, r->s.sum_squares, r->s.position, r->s.first};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}

static UNUSED void reduce_value(mo_site_statistics *r, const dense *d, int64_t b, int64_t s, int64_t h, float x) {
  int64_t i = b * d->H + h;
  r->sum[b] += (double)x;
  r->sum_squares[b] += (double)x * (double)x;
  if (fabsf(x) > r->max_abs[b]) r->max_abs[b] = fabsf(x);
  if (!is_outlier(d, x)) return;
  if (r->count[i] == 0 || x < r->min[i]) r->min[i] = x;
  if (r->count[i] == 0 || x > r->max[i]) r->max[i] = x;
  r->count[i]++;
  r->first[i] |= s == 0;
  r->positive[i] += x > 0;
  r->sum_abs[i] += fabs((double)x);
  r->outliers[r->n_outliers++] = (mo_outlier){(int32_t)h, x};
}

/* Position of the largest magnitude; of equal ones a positive one, then the first. */
static UNUSED int64_t top_position(const dense *d, int64_t place, int64_t n, int64_t h) {
  int64_t top = 0;
  for (int64_t s = 1; s < d->S; s++) {
    float x = *at(d, place, n, s, h), best = *at(d, place, n, top, h);
    if (fabsf(x) > fabsf(best) || (fabsf(x) == fabsf(best) && x > best)) top = s;
  }
  return top;
}

static UNUSED reduced reduce_batch(const dense *d, int64_t place, int64_t first, int64_t B) {
  size_t cells = (size_t)(B * d->H), b_size = (size_t)B;
  reduced r = {.s = {.n_sequences = B,
                     .rows = B * d->S,
                     .count = calloc(cells, sizeof(int32_t)),
                     .positive = calloc(cells, sizeof(int32_t)),
                     .min = malloc(cells * sizeof(float)),
                     .max = malloc(cells * sizeof(float)),
                     .sum_abs = calloc(cells, sizeof(double)),
                     .position = calloc(cells, sizeof(int32_t)),
                     .first = calloc(cells, 1),
                     .sum = calloc(b_size, sizeof(double)),
                     .sum_squares = calloc(b_size, sizeof(double)),
                     .max_abs = calloc(b_size, sizeof(float)),
                     .outliers = malloc(cells * (size_t)d->S * sizeof(mo_outlier))}};
  memset(r.s.min, 0xff, cells * sizeof(float)); /* NaN: undefined where the count is 0 */
  memset(r.s.max, 0xff, cells * sizeof(float));
  for (int64_t b = 0; b < B; b++)
    for (int64_t s = 0; s < d->S; s++)
      for (int64_t h = 0; h < d->H; h++) reduce_value(&r.s, d, b, s, h, *at(d, place, first + b, s, h));
  for (int64_t b = 0; b < B; b++)
    for (int64_t h = 0; h < d->H; h++) r.s.position[b * d->H + h] = (int32_t)top_position(d, place, first + b, h);
  return r;
}

/* The bitmap of the layers first_layer, first_layer + step, ... */
static UNUSED uint64_t *bitmap_of(const dense *d, int64_t first_layer, int64_t step) {
  int64_t W = (d->S + 63) / 64;
  uint64_t *words = calloc((size_t)(d->N * d->H * W), sizeof *words);
  assert_non_null(words);
  for (int64_t place = 0; place < 2 * d->L; place++) {
    if (place / 2 < first_layer || (place / 2 - first_layer) % step) continue;
    for (int64_t n = 0; n < d->N; n++)
      for (int64_t s = 0; s < d->S; s++)
        for (int64_t h = 0; h < d->H; h++)
          if (is_outlier(d, *at(d, place, n, s, h))) words[(n * d->H + h) * W + s / 64] |= UINT64_C(1) << s % 64;
  }
  return words;
}

/* Add site `place` in micro-batches of at most B sequences, the last first if backwards. */
static UNUSED void add_site(mo_accumulator *accumulator, const dense *d, int64_t place, int64_t B, bool backwards) {
  int64_t n_batches = (d->N + B - 1) / B;
  for (int64_t i = 0; i < n_batches; i++) {
    int64_t first = (backwards ? n_batches - 1 - i : i) * B, count = first + B > d->N ? d->N - first : B;
    reduced r = reduce_batch(d, place, first, count);
    assert_int_equal(mo_accumulator_add(accumulator, place / 2, (mo_site)(place % 2), first, &r.s), MO_OK);
    reduced_free(&r);
  }
}

/* This rank's accumulator: layers are dealt to ranks round robin. */
static UNUSED mo_accumulator *accumulate(const dense *d, mo_comm *comm, int64_t B, bool backwards) {
  int rank = mo_comm_rank(comm), size = mo_comm_size(comm);
  mo_accumulator *accumulator;
  assert_int_equal(mo_accumulator_new(&accumulator, &d->shape), MO_OK);
  for (int64_t layer = rank; layer < d->L; layer += size) {
    add_site(accumulator, d, 2 * layer, B, backwards);
    add_site(accumulator, d, 2 * layer + 1, B, backwards);
    assert_int_equal(mo_accumulator_check_layer(accumulator, layer), MO_OK);
  }
  uint64_t *words = bitmap_of(d, rank, size);
  mo_accumulator_add_positions(accumulator, 0, d->shape.n_sequences, words);
  free(words);
  return accumulator;
}

static UNUSED mo_analysis analyse(const dense *d, mo_comm *comm, int64_t B, bool backwards) {
  mo_accumulator *accumulator = accumulate(d, comm, B, backwards);
  mo_analysis analysis;
  mo_status status = mo_analysis_reduce(&analysis, accumulator, comm);
  mo_accumulator_free(accumulator);
  assert_int_equal(status, MO_OK);
  return analysis;
}

/* --- recomputation --- */

typedef struct {
  int64_t sites, layers, positions, count, positive;
  float max_abs;
  float *values; /* [count], sorted; caller frees */
} feature_hits;

static UNUSED int float_compare(const void *left, const void *right) {
  float a = *(const float *)left, b = *(const float *)right;
  return (a > b) - (a < b);
}

static UNUSED bool place_hit(const dense *d, int64_t place, int64_t n0, int64_t n1, int64_t h) {
  for (int64_t n = n0; n < n1; n++)
    for (int64_t s = 0; s < d->S; s++)
      if (is_outlier(d, *at(d, place, n, s, h))) return true;
  return false;
}

/* Hits of feature h in sequences n0..n1-1. */
static UNUSED feature_hits hits_of(const dense *d, int64_t n0, int64_t n1, int64_t h) {
  feature_hits hits = {0};
  hits.values = malloc((size_t)(2 * d->L * (n1 - n0) * d->S) * sizeof(float));
  for (int64_t layer = 0; layer < d->L; layer++) {
    int attn = place_hit(d, 2 * layer, n0, n1, h), mlp = place_hit(d, 2 * layer + 1, n0, n1, h);
    hits.sites += attn + mlp;
    hits.layers += attn || mlp;
  }
  for (int64_t n = n0; n < n1; n++)
    for (int64_t s = 0; s < d->S; s++) {
      bool hit = false;
      for (int64_t place = 0; place < 2 * d->L; place++) {
        float x = *at(d, place, n, s, h);
        if (!is_outlier(d, x)) continue;
        hit = true;
        hits.positive += x > 0;
        hits.max_abs = fmaxf(hits.max_abs, fabsf(x));
        hits.values[hits.count++] = x;
      }
      hits.positions += hit;
    }
  if (hits.count) qsort(hits.values, (size_t)hits.count, sizeof(float), float_compare);
  return hits;
}

/* Linear interpolation on the sorted array, as numpy.quantile does it. */
static UNUSED float quantile_of(const float *values, int64_t n, double q) {
  double place = (double)(n - 1) * q, low = floor(place), t = place - low;
  double a = (double)values[(int64_t)low], b = t > 0 ? (double)values[(int64_t)low + 1] : a;
  if (a == b || t == 0) return (float)a;
  return (float)(t < 0.5 ? a + (b - a) * t : b - (b - a) * (1 - t));
}

/* Equal, or both NaN. */
static UNUSED bool same(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

#define assert_same(a, b) assert_true(same((double)(a), (double)(b)))
#define assert_close(a, b, tolerance) assert_true(fabs((double)(a) - (double)(b)) <= (tolerance))

#endif
