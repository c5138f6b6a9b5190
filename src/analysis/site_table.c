#include <math.h>
#include <stdlib.h>

#include "analysis/internal.h"

/* Features hit at each site, by any sequence: features [2L]. */
static mo_status count_features(const mo_analysis_shape *shape, const mo_totals *totals, int32_t *features) {
  int64_t words = mo_site_words(shape), of_sequence = shape->hidden * words;
  uint64_t *hit = mo_alloc((size_t)words, sizeof *hit);
  if (!hit) return MO_FAILED;
  for (int64_t h = 0; h < shape->hidden; h++) {
    const uint64_t *sites = totals->sequence_sites + h * words;
    for (int64_t w = 0; w < words; w++) hit[w] = 0;
    for (int64_t n = 0; n < shape->n_sequences; n++)
      for (int64_t w = 0; w < words; w++) hit[w] |= sites[n * of_sequence + w];
    for (int64_t place = 0; place < 2 * shape->n_layers; place++) features[place] += hit[place / 64] >> place % 64 & 1;
  }
  free(hit);
  return MO_OK;
}

/* Largest of a site's sequences; NaN if a sequence has it, as NumPy's max. */
static double largest(const double *values, int64_t n) {
  double max = values[0];
  for (int64_t i = 1; i < n; i++)
    if (isnan(values[i]) || values[i] > max) max = values[i];
  return max;
}

static mo_site_summary summarise_site(const mo_analysis_shape *shape, const mo_totals *totals, int64_t place) {
  int64_t n = shape->n_sequences, n_moments = 2 * shape->n_layers * n;
  double values = (double)(n * shape->length * shape->hidden), sum = 0, squares = 0;
  for (int64_t i = place * n; i < (place + 1) * n; i++) {
    sum += totals->moments[MO_SUM_VALUES * n_moments + i];
    squares += totals->moments[MO_SUM_SQUARES * n_moments + i];
  }
  double mean = sum / values, variance = squares / values - mean * mean;
  mo_site_summary site = {.layer = (int32_t)(place / 2),
                          .site = (int32_t)(place % 2),
                          .count = totals->site_count[place],
                          .max_abs = (float)largest(totals->moments + MO_MAX_ABS * n_moments + place * n, n),
                          .mean = mean,
                          .std = sqrt(variance < 0 ? 0 : variance)};
  return site;
}

mo_status mo_sites_build(mo_analysis *analysis, const mo_analysis_shape *shape, const mo_totals *totals) {
  analysis->sites = mo_alloc((size_t)(2 * shape->n_layers), sizeof *analysis->sites);
  if (!analysis->sites) return MO_FAILED;
  analysis->n_sites = 2 * shape->n_layers;
  int32_t *features = mo_alloc((size_t)analysis->n_sites, sizeof *features);
  mo_status status = features ? count_features(shape, totals, features) : MO_FAILED;
  for (int64_t place = 0; place < analysis->n_sites && status == MO_OK; place++) {
    analysis->sites[place] = summarise_site(shape, totals, place);
    analysis->sites[place].features_hit = features[place];
  }
  free(features);
  return status;
}
