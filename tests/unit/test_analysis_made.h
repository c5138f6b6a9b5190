/* What the bootstrap tests share: tables of site and position rows made up cell by cell, and their analysis. */
#ifndef TEST_ANALYSIS_MADE_H
#define TEST_ANALYSIS_MADE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moe_outliers/analysis.h"
#include "moe_outliers/random.h"

#define UNUSED __attribute__((unused))

static UNUSED void assert_ok(mo_status status) {
  if (status != MO_OK) fail_msg("status %d: %s", status, mo_error_message());
}

/* One error line that contains `text`; forget it. */
static UNUSED void assert_error(mo_status status, const char *text) {
  assert_int_equal(status, MO_INVALID);
  if (!strstr(mo_error_message(), text)) fail_msg("'%s' is not in the error '%s'", text, mo_error_message());
  mo_error_clear();
}

static UNUSED double unit(uint64_t *state) { return (double)(mo_mix64((*state)++) >> 11) * 0x1p-53; }

static UNUSED double normal(uint64_t *state) {
  double u = unit(state), v = unit(state);
  return sqrt(-2 * log(1 - u)) * cos(2 * M_PI * v);
}

typedef struct {
  mo_analysis_shape shape;
  bool *hit;      /* [N, H, 2L] */
  int *positions; /* [N, H], 0 where no site is hit */
} made;

static UNUSED made made_new(int64_t L, int64_t N, int64_t S, int64_t H, int64_t draws) {
  made m = {.shape = {.n_layers = L,
                      .n_sequences = N,
                      .length = S,
                      .hidden = H,
                      .criteria = {6.0, 0.25, 0.06, 1.0},
                      .bootstrap = {draws, 3}}};
  m.hit = calloc((size_t)(N * H * 2 * L), sizeof *m.hit);
  m.positions = calloc((size_t)(N * H), sizeof *m.positions);
  assert_true(m.hit && m.positions);
  return m;
}

static UNUSED void made_free(made *m) {
  free(m->hit);
  free(m->positions);
}

static UNUSED bool *hit_at(const made *m, int64_t n, int64_t h, int64_t site) {
  return &m->hit[(n * m->shape.hidden + h) * 2 * m->shape.n_layers + site];
}

/* As many outlier values as positions at each site that is hit. */
static UNUSED mo_counts *counts_of(const made *m) {
  int64_t N = m->shape.n_sequences, H = m->shape.hidden, n = 0;
  mo_position_row *rows = calloc((size_t)(N * H), sizeof *rows);
  mo_site_row *site_rows = calloc((size_t)(N * H), sizeof *site_rows);
  assert_true(rows && site_rows);
  for (int64_t i = 0; i < N * H; i++)
    if (m->positions[i]) rows[n++] = (mo_position_row){(int32_t)(i / H), (int32_t)(i % H), m->positions[i]};
  mo_counts *counts;
  assert_ok(mo_counts_new(&counts, &m->shape, "made", rows, n));
  for (int64_t site = 0; site < 2 * m->shape.n_layers; site++) {
    n = 0;
    for (int64_t i = 0; i < N * H; i++)
      if (*hit_at(m, i / H, i % H, site))
        site_rows[n++] = (mo_site_row){.sequence = (int32_t)(i / H),
                                       .feature = (int32_t)(i % H),
                                       .count = m->positions[i],
                                       .positive = m->positions[i],
                                       .max_abs = 7.0f};
    assert_ok(mo_counts_add_site(counts, site / 2, (mo_site)(site % 2), site_rows, n));
  }
  free(rows);
  free(site_rows);
  return counts;
}

static UNUSED mo_analysis analyse_made(const made *m, const float *nll) {
  mo_analysis analysis;
  mo_counts *counts = counts_of(m);
  assert_ok(mo_counts_analyse(&analysis, counts, nll));
  mo_counts_free(counts);
  return analysis;
}

static UNUSED const mo_feature *row_of(const mo_analysis *analysis, int32_t feature) {
  for (int64_t i = 0; i < analysis->n_features; i++)
    if (analysis->features[i].feature == feature) return &analysis->features[i];
  return NULL;
}

#endif
