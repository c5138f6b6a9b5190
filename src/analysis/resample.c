/* Draws of sequences with replacement, and intervals of what is made of them. Efron & Tibshirani 1993, An Introduction
 * to the Bootstrap; docs/methods.md. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/internal.h"
#include "moe_outliers/random.h"

#define NORMAL_QUANTILE 1.959963984540054 /* of MO_BOOTSTRAP_LEVEL, two-sided */

enum {
  CAPACITY = 512,        /* draws at a time */
  MANY_SEQUENCES = 4096, /* from which it is fewer, to bound memory */
  SERIES_LIMIT = 1000,   /* degrees of freedom; beyond, an expansion is as good */
};

mo_status mo_draws_new(mo_draws *draws, int64_t n_sequences) {
  int64_t capacity = CAPACITY;
  for (int64_t n = n_sequences; n > MANY_SEQUENCES && capacity > MO_TILE; n /= 2) capacity /= 2;
  *draws = (mo_draws){.n_sequences = n_sequences, .n_chunks = (n_sequences + 7) / 8, .capacity = capacity};
  draws->weight = mo_alloc((size_t)(n_sequences * capacity), sizeof *draws->weight);
  draws->drawn = mo_alloc((size_t)(draws->n_chunks * capacity), sizeof *draws->drawn);
  if (draws->weight && draws->drawn) return MO_OK;
  mo_draws_free(draws);
  return MO_FAILED;
}

void mo_draws_free(mo_draws *draws) {
  free(draws->weight);
  free(draws->drawn);
  *draws = (mo_draws){0};
}

void mo_draws_make(mo_draws *draws, const mo_bootstrap *bootstrap, int64_t first, int64_t n) {
  const uint64_t step = UINT64_C(0x9e3779b97f4a7c15), N = (uint64_t)draws->n_sequences;
  uint64_t key = mo_mix64((uint64_t)bootstrap->seed);
  draws->n = n;
  memset(draws->weight, 0, (size_t)(draws->n_sequences * draws->capacity) * sizeof *draws->weight);
  memset(draws->drawn, 0, (size_t)(draws->n_chunks * draws->capacity) * sizeof *draws->drawn);
  for (int64_t d = 0; d < n; d++) {
    uint64_t number = (uint64_t)(first + d) * N;
    for (uint64_t i = 0; i < N; i++) {
      uint64_t random = mo_mix64(key + (number + i) * step);
      int64_t sequence = (int64_t)((random >> 32) * N >> 32);
      draws->weight[sequence * draws->capacity + d] += 1;
      draws->drawn[sequence / 8 * draws->capacity + d] |= (uint8_t)(1u << sequence % 8);
    }
  }
}

void mo_draws_sum(const mo_draws *draws, const int32_t *sequences, const double *values, int64_t n, double *sum,
                  double *squares) {
  for (int64_t base = 0; base < draws->n; base += MO_TILE) {
    double s[MO_TILE] = {0};
    for (int64_t i = 0; i < n; i++) {
      const double *weight = draws->weight + sequences[i] * draws->capacity + base;
      for (int d = 0; d < MO_TILE; d++) s[d] += weight[d] * values[i];
    }
    memcpy(sum + base, s, sizeof s);
    if (!squares) continue;
    double q[MO_TILE] = {0};
    for (int64_t i = 0; i < n; i++) {
      const double *weight = draws->weight + sequences[i] * draws->capacity + base;
      const double x2 = values[i] * values[i];
      for (int d = 0; d < MO_TILE; d++) q[d] += weight[d] * x2;
    }
    memcpy(squares + base, q, sizeof q);
  }
}

static void swap(double *a, double *b) {
  double x = *a;
  *a = *b;
  *b = x;
}

/* Reorder so that values[k] is where sorting would put it, none before it larger, none behind it smaller. */
static void select_value(double *values, int64_t n, int64_t k) {
  int64_t low = 0, high = n - 1;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (values[middle] < values[low]) swap(&values[middle], &values[low]);
    if (values[high] < values[low]) swap(&values[high], &values[low]);
    if (values[high] < values[middle]) swap(&values[high], &values[middle]);
    double pivot = values[middle];
    int64_t i = low, j = high;
    while (i <= j) {
      while (values[i] < pivot) i++;
      while (values[j] > pivot) j--;
      if (i > j) break;
      swap(&values[i++], &values[j--]);
    }
    if (k <= j)
      high = j;
    else if (k >= i)
      low = i;
    else
      return;
  }
}

double mo_quantile(double *values, int64_t n, double q) {
  double place = (double)(n - 1) * q, below = floor(place), t = place - below;
  int64_t k = (int64_t)below;
  select_value(values, n, k);
  double a = values[k];
  if (t == 0 || k + 1 == n) return a;
  double b = values[k + 1];
  for (int64_t i = k + 2; i < n; i++) b = values[i] < b ? values[i] : b;
  return t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
}

/* P(|T| <= t): the finite series of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4. */
static double student_inside(double t, int64_t degrees) {
  double theta = atan(t / sqrt((double)degrees)), sine = sin(theta), cosine = cos(theta), square = cosine * cosine;
  bool odd = degrees % 2;
  if (degrees == 1) return theta * M_2_PI;
  double term = odd ? cosine : 1, sum = term;
  for (int64_t k = odd ? 3 : 2; k < degrees; k += 2) {
    term *= square * (double)(k - 1) / (double)k;
    sum += term;
  }
  return odd ? M_2_PI * (theta + sine * sum) : sine * sum;
}

double mo_student(int64_t degrees) {
  const double z = NORMAL_QUANTILE, z3 = z * z * z, z5 = z3 * z * z, n = (double)degrees;
  if (degrees > SERIES_LIMIT) return z + (z3 + z) / (4 * n) + (5 * z5 + 16 * z3 + 3 * z) / (96 * n * n);
  double low = 1, high = 16;
  for (int i = 0; i < 60; i++) {
    double middle = (low + high) / 2;
    if (student_inside(middle, degrees) < MO_BOOTSTRAP_LEVEL)
      low = middle;
    else
      high = middle;
  }
  return (low + high) / 2;
}

mo_mean mo_mean_of(const double *values, int64_t n_values, int64_t n) {
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < n_values; i++) sum += values[i];
  double mean = sum / (double)n;
  for (int64_t i = 0; i < n_values; i++) squares += (values[i] - mean) * (values[i] - mean);
  squares += (double)(n - n_values) * mean * mean;
  return (mo_mean){mean, sqrt(squares / (double)(n - 1) / (double)n)};
}

void mo_studentise(const mo_mean *mean, int64_t n_sequences, const double *sum, const double *squares, int64_t n,
                   double *t) {
  const double N = (double)n_sequences, least = mean->error / 4; /* a draw may hold equal values only */
  for (int64_t d = 0; d < n; d++) {
    double own = sum[d] / N, variance = (squares[d] - sum[d] * own) / (N - 1);
    double error = variance > 0 ? sqrt(variance / N) : 0;
    t[d] = mean->error > 0 ? (own - mean->mean) / (error > least ? error : least) : 0;
  }
}

mo_interval mo_studentised_interval(const mo_mean *mean, double *t, int64_t n) {
  const double tail = (1 - MO_BOOTSTRAP_LEVEL) / 2;
  double high = mo_quantile(t, n, 1 - tail), low = mo_quantile(t, n, tail);
  return (mo_interval){mean->mean - high * mean->error, mean->mean - low * mean->error};
}

mo_interval mo_whole_interval(double low, double high, double most) {
  const double slack = 0.05;
  low = floor(low + slack);
  high = ceil(high - slack);
  return (mo_interval){low > 0 ? low : 0, high > most ? most : high > 0 ? high : 0};
}

double mo_union_scale(void) { return sqrt(log(2.0) / log1p(exp(-1.0))); }
