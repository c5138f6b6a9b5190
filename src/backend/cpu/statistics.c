/* Site statistics of the CPU backend: one pass over the site's activations. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "backend/cpu/cpu.h"

enum { FEATURE_BLOCK = 64 };

/* Room for the micro-batch's arrays in one block; the layout is fixed by B and H. */
static mo_status reserve_arrays(mo_cpu *cpu, int64_t B, int64_t H) {
  size_t cells = (size_t)(B * H), rows = (size_t)B;
  size_t bytes = cells * (sizeof(double) + 3 * sizeof(int32_t) + 2 * sizeof(float) + 1) +
                 rows * (2 * sizeof(double) + sizeof(float));
  if (bytes > cpu->statistics_bytes) {
    free(cpu->statistics_block);
    cpu->statistics_bytes = 0;
    cpu->statistics_block = mo_alloc(bytes, 1);
    if (!cpu->statistics_block) return MO_FAILED;
    cpu->statistics_bytes = bytes;
  }
  mo_site_statistics *s = &cpu->statistics;
  s->sum_abs = cpu->statistics_block;
  s->sum = s->sum_abs + cells;
  s->sum_squares = s->sum + rows;
  s->count = (int32_t *)(s->sum_squares + rows);
  s->positive = s->count + cells;
  s->position = s->positive + cells;
  s->min = (float *)(s->position + cells);
  s->max = s->min + cells;
  s->max_abs = s->max + cells;
  s->first = (uint8_t *)(s->max_abs + rows);
  s->n_sequences = B;
  return MO_OK;
}

/* Count one feature column of one sequence and mark its positions; x strides by H. */
static void scan_feature(const float *x, int64_t S, int64_t H, float threshold, uint64_t *words, mo_site_statistics *s,
                         int64_t cell) {
  int32_t count = 0, positive = 0, position = 0;
  float low = INFINITY, high = -INFINITY, top = 0;
  double sum_abs = 0;
  for (int64_t t = 0; t < S; t++) {
    float value = x[t * H], magnitude = fabsf(value);
    if (!(magnitude >= threshold)) continue;
    count++;
    positive += value > 0;
    low = value < low ? value : low;
    high = value > high ? value : high;
    if (magnitude > fabsf(top) || (magnitude == fabsf(top) && value > top)) {
      top = value;
      position = (int32_t)t;
    }
    sum_abs += magnitude;
    words[t / 64] |= (uint64_t)1 << t % 64;
  }
  s->count[cell] = count;
  s->positive[cell] = positive;
  s->min[cell] = low;
  s->max[cell] = high;
  s->sum_abs[cell] = sum_abs;
  s->position[cell] = position;
  s->first[cell] = fabsf(x[0]) >= threshold;
}

/* Sums over all values of one sequence: per token over h, then over tokens. row_counts [S]: outlier values of each token, or
 * NULL. */
static void sum_sequence(const float *x, int64_t S, int64_t H, float threshold, mo_site_statistics *s, int64_t b,
                         int32_t *row_counts) {
  double total = 0, squares = 0;
  float top = 0;
  for (int64_t t = 0; t < S; t++) {
    double row = 0, row_squares = 0;
    int32_t outliers = 0;
    for (int64_t h = 0; h < H; h++) {
      double value = x[t * H + h];
      row += value;
      row_squares += value * value;
      top = fabsf(x[t * H + h]) > top ? fabsf(x[t * H + h]) : top;
      outliers += fabsf(x[t * H + h]) >= threshold;
    }
    if (row_counts) row_counts[t] = outliers;
    total += row;
    squares += row_squares;
  }
  s->sum[b] = total;
  s->sum_squares[b] = squares;
  s->max_abs[b] = top;
}

/* Every outlier value, feature by feature within a sequence. */
static mo_status list_outliers(mo_cpu *cpu, const float *x, int64_t B, int64_t S, int64_t H, float threshold) {
  mo_site_statistics *s = &cpu->statistics;
  s->n_outliers = 0;
  for (int64_t cell = 0; cell < B * H; cell++) s->n_outliers += s->count[cell];
  if (s->n_outliers > cpu->outlier_capacity) {
    free(s->outliers);
    cpu->outlier_capacity = 0;
    s->outliers = mo_alloc((size_t)s->n_outliers, sizeof *s->outliers);
    if (!s->outliers) return MO_FAILED;
    cpu->outlier_capacity = s->n_outliers;
  }
  mo_outlier *next = s->outliers;
  for (int64_t cell = 0; cell < B * H; cell++) {
    if (!s->count[cell]) continue;
    const float *column = x + cell / H * S * H + cell % H;
    for (int64_t t = 0; t < S; t++)
      if (fabsf(column[t * H]) >= threshold) *next++ = (mo_outlier){(int32_t)(cell % H), column[t * H]};
  }
  return MO_OK;
}

mo_status cpu_site_statistics(mo_backend *backend, const void *x, int64_t B, int64_t S, int64_t H, float threshold,
                              uint64_t *positions, int64_t first_sequence, int32_t *row_counts) {
  mo_cpu *cpu = mo_cpu_of(backend);
  const float *values = x;
  int64_t words = (S + 63) / 64, blocks = (H + FEATURE_BLOCK - 1) / FEATURE_BLOCK;
  MO_TRY(reserve_arrays(cpu, B, H));
  mo_site_statistics *s = &cpu->statistics;
#pragma omp parallel num_threads(cpu->threads)
  {
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < B * blocks; task++) {
      int64_t b = task / blocks, end = (task % blocks + 1) * FEATURE_BLOCK;
      for (int64_t h = task % blocks * FEATURE_BLOCK; h < (end < H ? end : H); h++)
        scan_feature(values + b * S * H + h, S, H, threshold, positions + ((first_sequence + b) * H + h) * words, s,
                     b * H + h);
    }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < B; b++)
      sum_sequence(values + b * S * H, S, H, threshold, s, b, row_counts ? row_counts + b * S : NULL);
  }
  MO_TRY(list_outliers(cpu, values, B, S, H, threshold));
  s->rows = B * S;
  return MO_OK;
}

mo_status cpu_site_results(mo_backend *backend, mo_site_statistics *statistics) {
  *statistics = mo_cpu_of(backend)->statistics;
  return MO_OK;
}
