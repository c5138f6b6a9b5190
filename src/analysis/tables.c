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

static bool sequence_qualifies(const mo_counts *counts, int64_t cell) {
  const mo_analysis_shape *shape = &counts->shape;
  int64_t sites = mo_count_sites(counts->sites + cell * counts->words, counts->words);
  return mo_qualifies(&shape->criteria, sites, 2 * shape->n_layers, counts->cells[cell].positions_hit, shape->length);
}

static mo_status build_sequence_features(mo_analysis *analysis, const mo_counts *counts) {
  const mo_analysis_shape *shape = &counts->shape;
  int64_t n = 0;
  for (int64_t i = 0; i < counts->n_cells; i++) n += sequence_qualifies(counts, i);
  mo_sequence_feature *rows = mo_alloc((size_t)n, sizeof *rows);
  if (!rows) return MO_FAILED;
  analysis->sequence_features = rows;
  analysis->n_sequence_features = n;
  for (int64_t h = 0; h < shape->hidden; h++)
    for (int64_t i = counts->first[h]; i < counts->first[h + 1]; i++) {
      if (!sequence_qualifies(counts, i)) continue;
      const mo_cell *cell = &counts->cells[i];
      int64_t sites = mo_count_sites(counts->sites + i * counts->words, counts->words);
      *rows++ = (mo_sequence_feature){
          .sequence = cell->sequence,
          .feature = (int32_t)h,
          .layer_percentage = (double)sites / (double)(2 * shape->n_layers),
          .seq_percentage = (double)cell->positions_hit / (double)shape->length,
          .max_magnitude = cell->max_magnitude,
          .total_occurrences = cell->occurrences,
          .sites_hit = (int32_t)sites,
          .positions_hit = cell->positions_hit,
      };
    }
  qsort(analysis->sequence_features, (size_t)n, sizeof *rows, sequence_feature_compare);
  return MO_OK;
}

/* One pooled row, its intervals NaN; all: outlier values of the model; hit: scratch [words]. */
static mo_feature pool(const mo_counts *counts, int64_t h, int64_t all, uint64_t *hit) {
  const mo_analysis_shape *shape = &counts->shape;
  int64_t n_positions = shape->n_sequences * shape->length, at_first = 0;
  bool known = true;
  mo_feature row = {.feature = (int32_t)h,
                    .layer_percentage_low = NAN,
                    .layer_percentage_high = NAN,
                    .block_percentage_low = NAN,
                    .block_percentage_high = NAN,
                    .seq_percentage_low = NAN,
                    .seq_percentage_high = NAN,
                    .qualifies_share = NAN,
                    .systematic_share = NAN};
  memset(hit, 0, (size_t)counts->words * sizeof *hit);
  for (int64_t i = counts->first[h]; i < counts->first[h + 1]; i++) {
    const mo_cell *cell = &counts->cells[i];
    for (int64_t w = 0; w < counts->words; w++) hit[w] |= counts->sites[i * counts->words + w];
    row.positions_hit += cell->positions_hit;
    row.total_occurrences += cell->occurrences;
    row.positive += cell->positive;
    known = known && cell->first >= 0;
    at_first += cell->first;
    row.sequences_qualified += sequence_qualifies(counts, i);
    if (cell->max_magnitude > row.max_magnitude) row.max_magnitude = cell->max_magnitude;
  }
  row.sites_hit = (int32_t)mo_count_sites(hit, counts->words);
  row.layers_hit = (int32_t)mo_count_layers(hit, counts->words);
  row.layer_percentage = (double)row.sites_hit / (double)(2 * shape->n_layers);
  row.block_percentage = (double)row.layers_hit / (double)shape->n_layers;
  row.seq_percentage = (double)row.positions_hit / (double)n_positions;
  row.negative = row.total_occurrences - row.positive;
  row.q1 = counts->quartiles[3 * h];
  row.median = counts->quartiles[3 * h + 1];
  row.q3 = counts->quartiles[3 * h + 2];
  row.share = (double)row.total_occurrences / (double)all;
  row.first_token_share = known ? (double)at_first / (double)row.total_occurrences : NAN;
  bool qualifies = mo_qualifies(&shape->criteria, row.sites_hit, 2 * shape->n_layers, row.positions_hit, n_positions);
  row.classification = mo_classify(&shape->criteria, qualifies, row.layers_hit, shape->n_layers);
  return row;
}

static mo_status build_features(mo_analysis *analysis, const mo_counts *counts) {
  int64_t n = 0, all = 0;
  for (int64_t h = 0; h < counts->shape.hidden; h++) n += counts->first[h + 1] > counts->first[h];
  for (int64_t i = 0; i < counts->n_cells; i++) all += counts->cells[i].occurrences;
  mo_feature *rows = mo_alloc((size_t)n, sizeof *rows);
  uint64_t *hit = mo_alloc((size_t)counts->words, sizeof *hit);
  analysis->features = rows;
  mo_status status = rows && hit ? MO_OK : MO_FAILED;
  if (status == MO_OK) {
    analysis->n_features = n;
    for (int64_t h = 0; h < counts->shape.hidden; h++)
      if (counts->first[h + 1] > counts->first[h]) *rows++ = pool(counts, h, all, hit);
    qsort(analysis->features, (size_t)n, sizeof *rows, feature_compare);
  }
  free(hit);
  return status;
}

static int double_compare(const void *left, const void *right) {
  double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

double mo_median(double *values, int64_t n) {
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
  summary->median_layer_percentage = mo_median(layers, n);
  summary->median_seq_percentage = mo_median(positions, n);
  free(fractions);
  return MO_OK;
}

static void clear_intervals(mo_summary *summary) {
  summary->outlier_features_low = summary->outlier_features_high = NAN;
  summary->systematic_features_low = summary->systematic_features_high = NAN;
  summary->mean_layer_percentage_low = summary->mean_layer_percentage_high = NAN;
  summary->median_layer_percentage_low = summary->median_layer_percentage_high = NAN;
  summary->mean_seq_percentage_low = summary->mean_seq_percentage_high = NAN;
  summary->median_seq_percentage_low = summary->median_seq_percentage_high = NAN;
}

mo_status mo_tables_build(mo_analysis *analysis, const mo_counts *counts) {
  MO_TRY(build_sequence_features(analysis, counts));
  MO_TRY(build_features(analysis, counts));
  clear_intervals(&analysis->summary);
  return build_summary(analysis);
}
