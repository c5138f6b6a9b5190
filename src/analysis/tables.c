#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/internal.h"

static int sequence_feature_compare(const void *left, const void *right) {
  const mo_sequence_feature *a = left, *b = right;
  if (a->sequence != b->sequence) return a->sequence < b->sequence ? -1 : 1;
  if (a->max_magnitude != b->max_magnitude) return a->max_magnitude > b->max_magnitude ? -1 : 1;
  return (a->feature > b->feature) - (a->feature < b->feature);
}

static int feature_compare(const void *left, const void *right) {
  const mo_feature *a = left, *b = right;
  if (a->max_magnitude != b->max_magnitude) return a->max_magnitude > b->max_magnitude ? -1 : 1;
  return (a->feature > b->feature) - (a->feature < b->feature);
}

static bool sequence_qualifies(const mo_analysis_shape *shape, const mo_totals *totals, int64_t i) {
  return totals->sequence_count[i] > 0 && mo_qualifies(&shape->criteria, totals->sequence_sites[i], 2 * shape->n_layers,
                                                       totals->sequence_positions[i], shape->length);
}

static mo_status build_sequence_features(mo_analysis *analysis, const mo_analysis_shape *shape,
                                         const mo_totals *totals) {
  int64_t cells = shape->n_sequences * shape->hidden, n = 0;
  for (int64_t i = 0; i < cells; i++) n += sequence_qualifies(shape, totals, i);
  mo_sequence_feature *rows = mo_alloc((size_t)n, sizeof *rows);
  if (!rows) return MO_FAILED;
  analysis->sequence_features = rows;
  analysis->n_sequence_features = n;
  for (int64_t i = 0; i < cells; i++) {
    if (!sequence_qualifies(shape, totals, i)) continue;
    *rows++ = (mo_sequence_feature){
        .sequence = (int32_t)(i / shape->hidden),
        .feature = (int32_t)(i % shape->hidden),
        .layer_percentage = (double)totals->sequence_sites[i] / (double)(2 * shape->n_layers),
        .seq_percentage = (double)totals->sequence_positions[i] / (double)shape->length,
        .max_magnitude = totals->sequence_max[i],
        .total_occurrences = totals->sequence_count[i],
        .sites_hit = totals->sequence_sites[i],
        .positions_hit = totals->sequence_positions[i],
    };
  }
  qsort(analysis->sequence_features, (size_t)n, sizeof *rows, sequence_feature_compare);
  return MO_OK;
}

/* One pooled row; all: outlier values of the model. */
static mo_feature pool(const mo_analysis_shape *shape, const mo_totals *totals, int64_t h, int64_t all) {
  int64_t hit_words = (shape->hidden + 63) / 64, n_positions = shape->n_sequences * shape->length;
  mo_feature row = {.feature = (int32_t)h};
  for (int64_t layer = 0; layer < shape->n_layers; layer++) {
    const uint64_t *words = totals->site_hit + 2 * layer * hit_words + h / 64;
    int attn = words[0] >> h % 64 & 1, mlp = words[hit_words] >> h % 64 & 1;
    row.sites_hit += attn + mlp;
    row.layers_hit += attn | mlp;
  }
  for (int64_t i = h; i < shape->n_sequences * shape->hidden; i += shape->hidden) {
    row.positions_hit += totals->sequence_positions[i];
    row.total_occurrences += totals->sequence_count[i];
    row.sequences_qualified += sequence_qualifies(shape, totals, i);
    if (totals->sequence_max[i] > row.max_magnitude) row.max_magnitude = totals->sequence_max[i];
  }
  row.layer_percentage = (double)row.sites_hit / (double)(2 * shape->n_layers);
  row.block_percentage = (double)row.layers_hit / (double)shape->n_layers;
  row.seq_percentage = (double)row.positions_hit / (double)n_positions;
  row.positive = totals->positive[h];
  row.negative = totals->negative[h];
  row.q1 = totals->quartiles[3 * h];
  row.median = totals->quartiles[3 * h + 1];
  row.q3 = totals->quartiles[3 * h + 2];
  row.share = (double)row.total_occurrences / (double)all;
  bool qualifies = mo_qualifies(&shape->criteria, row.sites_hit, 2 * shape->n_layers, row.positions_hit, n_positions);
  row.classification = mo_classify(&shape->criteria, qualifies, row.layers_hit, shape->n_layers);
  return row;
}

static mo_status build_features(mo_analysis *analysis, const mo_analysis_shape *shape, const mo_totals *totals) {
  int64_t n = 0, all = 0;
  for (int64_t h = 0; h < shape->hidden; h++) {
    n += totals->positive[h] + totals->negative[h] > 0;
    all += totals->positive[h] + totals->negative[h];
  }
  mo_feature *rows = mo_alloc((size_t)n, sizeof *rows);
  if (!rows) return MO_FAILED;
  analysis->features = rows;
  analysis->n_features = n;
  for (int64_t h = 0; h < shape->hidden; h++)
    if (totals->positive[h] + totals->negative[h] > 0) *rows++ = pool(shape, totals, h, all);
  qsort(analysis->features, (size_t)n, sizeof *rows, feature_compare);
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
  int64_t n = shape->n_sequences, n_moments = 2 * shape->n_layers * n, hit_words = (shape->hidden + 63) / 64;
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
  for (int64_t w = 0; w < hit_words; w++)
    site.features_hit += __builtin_popcountll(totals->site_hit[place * hit_words + w]);
  return site;
}

static mo_status build_sites(mo_analysis *analysis, const mo_analysis_shape *shape, const mo_totals *totals) {
  analysis->sites = mo_alloc((size_t)(2 * shape->n_layers), sizeof *analysis->sites);
  if (!analysis->sites) return MO_FAILED;
  analysis->n_sites = 2 * shape->n_layers;
  for (int64_t place = 0; place < analysis->n_sites; place++)
    analysis->sites[place] = summarise_site(shape, totals, place);
  return MO_OK;
}

static int double_compare(const void *left, const void *right) {
  double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

/* Sorts the values. */
static double median_of(double *values, int64_t n) {
  if (n == 0) return NAN;
  qsort(values, (size_t)n, sizeof *values, double_compare);
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static mo_status build_summary(mo_analysis *analysis) {
  mo_summary *summary = &analysis->summary;
  double *fractions = mo_alloc((size_t)(2 * analysis->n_features), sizeof *fractions);
  if (!fractions) return MO_FAILED;
  double *layers = fractions, *positions = fractions + analysis->n_features, layer_sum = 0, position_sum = 0;
  int64_t n = 0;
  for (int64_t i = 0; i < analysis->n_features; i++) {
    const mo_feature *row = &analysis->features[i];
    if (row->classification > summary->classification) summary->classification = row->classification;
    if (row->classification == MO_NONE) continue;
    if (row->classification == MO_SYSTEMATIC) summary->systematic_features++;
    layer_sum += layers[n] = row->layer_percentage;
    position_sum += positions[n] = row->seq_percentage;
    n++;
  }
  summary->outlier_features = n;
  summary->features_hit = analysis->n_features;
  summary->sequence_rows = analysis->n_sequence_features;
  summary->mean_layer_percentage = n ? layer_sum / (double)n : NAN;
  summary->mean_seq_percentage = n ? position_sum / (double)n : NAN;
  summary->median_layer_percentage = median_of(layers, n);
  summary->median_seq_percentage = median_of(positions, n);
  free(fractions);
  return MO_OK;
}

mo_status mo_tables_build(mo_analysis *analysis, const mo_analysis_shape *shape, const mo_totals *totals) {
  MO_TRY(build_sequence_features(analysis, shape, totals));
  MO_TRY(build_features(analysis, shape, totals));
  MO_TRY(build_sites(analysis, shape, totals));
  return build_summary(analysis);
}
