/* Which features qualify in each draw, and the intervals of what is counted and averaged over them.
 *
 * The sites that a draw hits are a subset of those of the sample, so draws hit too few, and differ less than samples
 * do. Each feature's draws are therefore moved to its own value and spread (docs/methods.md) before the criteria meet
 * them. */
#include <math.h>
#include <stdlib.h>

#include "analysis/bootstrap.h"

typedef struct {
  int64_t feature, row; /* row: of analysis->features */
  double sites, layers, positions;
  mo_union_moments moments;
  int64_t qualifies, systematic; /* draws in which it does */
} candidate;

enum { STATISTICS = 6, VALUES_PER_CANDIDATE = 2 };
typedef enum { COUNT, SYSTEMATIC, MEAN_LAYER, MEDIAN_LAYER, MEAN_SEQ, MEDIAN_SEQ } statistic;

typedef struct {
  const mo_counts *counts;
  mo_draws draws;
  mo_bench *benches;
  int n_benches;
  candidate *candidates; /* by rising feature */
  int64_t n_candidates;
  double union_scale, mean_scale;
  double *values;                 /* [n_candidates, 2, capacity]: layer and position fraction; NaN: does not qualify */
  bool *systematic;               /* [n_candidates, capacity] */
  double *lists;                  /* [threads, 2, n_candidates] */
  double *statistics[STATISTICS]; /* [all draws] */
} summary_draws;

static double spread(double observed, double draw, double mean, double scale) {
  return observed + scale * (draw - mean);
}

/* Could the feature qualify in any draw? */
static bool may_qualify(const summary_draws *s, const candidate *c) {
  const mo_analysis_shape *shape = &s->counts->shape;
  double most = 0, S = (double)shape->length, N = (double)shape->n_sequences;
  for (int64_t i = s->counts->first[c->feature]; i < s->counts->first[c->feature + 1]; i++)
    most = fmax(most, (double)s->counts->cells[i].positions_hit);
  double sites = spread(c->sites, c->sites, c->moments.sites, s->union_scale);
  double positions = spread(c->positions, most * N, c->positions, s->mean_scale);
  return sites / (double)(2 * shape->n_layers) >= shape->criteria.min_layer_fraction &&
         positions / (N * S) >= shape->criteria.min_position_fraction;
}

static int candidate_compare(const void *left, const void *right) {
  const candidate *a = left, *b = right;
  return (a->feature > b->feature) - (a->feature < b->feature);
}

static mo_status find_candidates(summary_draws *s, const mo_analysis *analysis, const mo_union_moments *moments) {
  s->candidates = mo_alloc((size_t)analysis->n_features, sizeof *s->candidates);
  if (!s->candidates) return MO_FAILED;
  for (int64_t f = 0; f < analysis->n_features; f++) {
    const mo_feature *row = &analysis->features[f];
    candidate c = {.feature = row->feature,
                   .row = f,
                   .sites = (double)row->sites_hit,
                   .layers = (double)row->layers_hit,
                   .positions = (double)row->positions_hit,
                   .moments = moments[f]};
    if (may_qualify(s, &c)) s->candidates[s->n_candidates++] = c;
  }
  qsort(s->candidates, (size_t)s->n_candidates, sizeof *s->candidates, candidate_compare);
  return MO_OK;
}

static mo_status allocate(summary_draws *s) {
  const mo_analysis_shape *shape = &s->counts->shape;
  MO_TRY(mo_draws_new(&s->draws, shape->n_sequences));
  MO_TRY(mo_benches_new(&s->benches, &s->n_benches, s->counts, s->draws.capacity));
  size_t n = (size_t)s->n_candidates, capacity = (size_t)s->draws.capacity;
  s->values = mo_alloc(n * VALUES_PER_CANDIDATE * capacity, sizeof *s->values);
  s->systematic = mo_alloc(n * capacity, sizeof *s->systematic);
  s->lists = mo_alloc((size_t)s->n_benches * VALUES_PER_CANDIDATE * n, sizeof *s->lists);
  if (!s->values || !s->systematic || !s->lists) return MO_FAILED;
  for (int k = 0; k < STATISTICS; k++)
    if (!(s->statistics[k] = mo_alloc((size_t)shape->bootstrap.draws, sizeof *s->statistics[k]))) return MO_FAILED;
  return MO_OK;
}

/* One candidate in one block of draws. */
static void look(summary_draws *s, int64_t i) {
  const mo_analysis_shape *shape = &s->counts->shape;
  const mo_criteria *criteria = &shape->criteria;
  candidate *c = &s->candidates[i];
  mo_bench *bench = &s->benches[mo_thread_number()];
  double *layer_values = s->values + VALUES_PER_CANDIDATE * i * s->draws.capacity;
  double *position_values = layer_values + s->draws.capacity;
  double L = (double)shape->n_layers, positions = (double)(shape->n_sequences * shape->length);
  mo_unions_make(&bench->unions, s->counts, c->feature);
  mo_unions_count(&bench->unions, &s->draws, bench->sites, bench->layers);
  int64_t n = mo_bench_positions(bench, s->counts, c->feature);
  mo_draws_sum(&s->draws, bench->sequences, bench->values, n, bench->sum, NULL);
  for (int64_t d = 0; d < s->draws.n; d++) {
    double layer = spread(c->sites, bench->sites[d], c->moments.sites, s->union_scale) / (2 * L);
    double block = spread(c->layers, bench->layers[d], c->moments.layers, s->union_scale) / L;
    double position = spread(c->positions, bench->sum[d], c->positions, s->mean_scale) / positions;
    bool qualifies = layer >= criteria->min_layer_fraction && position >= criteria->min_position_fraction;
    bool systematic = qualifies && block >= criteria->systematic_fraction;
    layer_values[d] = qualifies ? layer : NAN;
    position_values[d] = position;
    s->systematic[i * s->draws.capacity + d] = systematic;
    c->qualifies += qualifies;
    c->systematic += systematic;
  }
}

/* All candidates in draw `d` of the block. */
static void summarise(summary_draws *s, int64_t first, int64_t d) {
  double *layers = s->lists + VALUES_PER_CANDIDATE * mo_thread_number() * s->n_candidates;
  double *positions = layers + s->n_candidates, layer_sum = 0, position_sum = 0;
  int64_t n = 0, systematic = 0;
  for (int64_t i = 0; i < s->n_candidates; i++) {
    const double *values = s->values + VALUES_PER_CANDIDATE * i * s->draws.capacity;
    if (isnan(values[d])) continue;
    systematic += s->systematic[i * s->draws.capacity + d];
    layer_sum += layers[n] = values[d];
    position_sum += positions[n++] = values[s->draws.capacity + d];
  }
  int64_t draw = first + d;
  s->statistics[COUNT][draw] = (double)n;
  s->statistics[SYSTEMATIC][draw] = (double)systematic;
  s->statistics[MEAN_LAYER][draw] = n ? layer_sum / (double)n : NAN;
  s->statistics[MEAN_SEQ][draw] = n ? position_sum / (double)n : NAN;
  s->statistics[MEDIAN_LAYER][draw] = n ? mo_quantile(layers, n, 0.5) : NAN;
  s->statistics[MEDIAN_SEQ][draw] = n ? mo_quantile(positions, n, 0.5) : NAN;
}

static void run_draws(summary_draws *s) {
  const mo_bootstrap *settings = &s->counts->shape.bootstrap;
  for (int64_t first = 0; first < settings->draws; first += s->draws.capacity) {
    int64_t left = settings->draws - first;
    mo_draws_make(&s->draws, settings, first, left < s->draws.capacity ? left : s->draws.capacity);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < s->n_candidates; i++) look(s, i);
#pragma omp parallel for
    for (int64_t d = 0; d < s->draws.n; d++) summarise(s, first, d);
  }
}

/* Deviations of the draws from their mean, put at the observed value, which a skewed distribution could leave outside;
 * draws in which no feature qualifies have none. */
static mo_interval centred(double observed, double *values, int64_t n_draws, double scale) {
  const double tail = (1 - MO_BOOTSTRAP_LEVEL) / 2;
  double sum = 0;
  int64_t n = 0;
  for (int64_t d = 0; d < n_draws; d++)
    if (!isnan(values[d])) values[n++] = values[d];
  if (n == 0 || isnan(observed)) return (mo_interval){NAN, NAN};
  const double any = values[0]; /* equal values shall have that mean exactly */
  for (int64_t d = 0; d < n; d++) sum += values[d] - any;
  double mean = any + sum / (double)n, high = mo_quantile(values, n, 1 - tail), low = mo_quantile(values, n, tail);
  return (mo_interval){observed + scale * fmin(low - mean, 0), observed + scale * fmax(high - mean, 0)};
}

static void conclude(summary_draws *s, mo_analysis *analysis) {
  const mo_analysis_shape *shape = &s->counts->shape;
  mo_summary *summary = &analysis->summary;
  int64_t n = shape->bootstrap.draws;
  double scale = mo_student(shape->n_sequences - 1) / mo_student(INT32_MAX);
  struct {
    statistic kind;
    double observed, *low, *high;
  } of[] = {
      {COUNT, (double)summary->outlier_features, &summary->outlier_features_low, &summary->outlier_features_high},
      {SYSTEMATIC, (double)summary->systematic_features, &summary->systematic_features_low,
       &summary->systematic_features_high},
      {MEAN_LAYER, summary->mean_layer_percentage, &summary->mean_layer_percentage_low,
       &summary->mean_layer_percentage_high},
      {MEDIAN_LAYER, summary->median_layer_percentage, &summary->median_layer_percentage_low,
       &summary->median_layer_percentage_high},
      {MEAN_SEQ, summary->mean_seq_percentage, &summary->mean_seq_percentage_low, &summary->mean_seq_percentage_high},
      {MEDIAN_SEQ, summary->median_seq_percentage, &summary->median_seq_percentage_low,
       &summary->median_seq_percentage_high}};
  for (int k = 0; k < STATISTICS; k++) {
    mo_interval i = centred(of[k].observed, s->statistics[of[k].kind], n, scale);
    bool counts = of[k].kind == COUNT || of[k].kind == SYSTEMATIC;
    if (counts) i = mo_whole_interval(i.low, i.high, (double)shape->hidden);
    *of[k].low = !counts && i.low < 0 ? 0 : i.low;
    *of[k].high = !counts && i.high > 1 ? 1 : i.high;
  }
  for (int64_t f = 0; f < analysis->n_features; f++)
    analysis->features[f].qualifies_share = analysis->features[f].systematic_share = 0;
  for (int64_t i = 0; i < s->n_candidates; i++) {
    const candidate *c = &s->candidates[i];
    analysis->features[c->row].qualifies_share = (double)c->qualifies / (double)n;
    analysis->features[c->row].systematic_share = (double)c->systematic / (double)n;
  }
}

mo_status mo_bootstrap_summary(mo_analysis *analysis, const mo_counts *counts, const mo_union_moments *moments) {
  double N = (double)counts->shape.n_sequences;
  summary_draws s = {.counts = counts, .union_scale = mo_union_scale(), .mean_scale = sqrt(N / (N - 1))};
  mo_status status = find_candidates(&s, analysis, moments);
  if (status == MO_OK) status = allocate(&s);
  if (status == MO_OK) {
    run_draws(&s);
    conclude(&s, analysis);
  }
  mo_draws_free(&s.draws);
  mo_benches_free(s.benches, s.n_benches);
  free(s.candidates);
  free(s.values);
  free(s.systematic);
  free(s.lists);
  for (int k = 0; k < STATISTICS; k++) free(s.statistics[k]);
  return status;
}
