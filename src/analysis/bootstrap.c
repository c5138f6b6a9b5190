/* Intervals of features and perplexity. A thread works on one feature at a time, and what it computes does not depend
 * on the others: so results are the same on any number of threads. */
#include "analysis/bootstrap.h"

#include <math.h>
#include <stdlib.h>

#define GROUP_VALUES (INT64_C(1) << 22) /* t that are kept at a time, of at least one feature */

const char *mo_bootstrap_method(void) {
  return "sequences resampled with replacement; layer_percentage, block_percentage: Student's t with the draws' "
         "deviation times sqrt(ln 2 / ln(1 + 1/e)), and upwards room for an unseen site or layer; seq_percentage, "
         "perplexity (its logarithm): bootstrap-t; summary: percentiles of the draws' deviations from their mean, "
         "times "
         "Student's t over the normal quantile, numbers of features outwards to whole numbers";
}

typedef struct {
  mo_analysis *analysis;
  const mo_counts *counts;
  mo_draws draws;
  mo_bench *benches;
  int n_benches;
  double *missed;            /* [N + 1] */
  mo_union_moments *moments; /* [n_features] */
  double *t;                 /* [group, all draws] */
  int64_t group;
  double student;
} bootstrap;

/* Positions of one feature in one block of draws. */
static void look(bootstrap *b, int64_t f, int64_t first, double *t) {
  mo_bench *bench = &b->benches[mo_thread_number()];
  int64_t N = b->counts->shape.n_sequences, n = mo_bench_positions(bench, b->counts, b->analysis->features[f].feature);
  mo_draws_sum(&b->draws, bench->sequences, bench->values, n, bench->sum, bench->squares);
  mo_mean mean = mo_mean_of(bench->values, n, N);
  mo_studentise(&mean, N, bench->sum, bench->squares, b->draws.n, t + first);
}

/* Upwards there may also be sites that no sequence happened to hit: room for the deviation of one that one sequence
 * hits. */
static mo_interval union_interval(const bootstrap *b, int64_t hit, int64_t all, double deviation) {
  double half = b->student * deviation, missed = b->missed[1];
  double low = (double)hit - mo_union_scale() * half;
  double high = (double)hit + mo_union_scale() * (half + sqrt(missed * (1 - missed)));
  return (mo_interval){low > 0 ? low / (double)all : 0, high < (double)all ? high / (double)all : 1};
}

static void conclude(bootstrap *b, int64_t f, double *t) {
  const mo_analysis_shape *shape = &b->counts->shape;
  mo_feature *row = &b->analysis->features[f];
  mo_bench *bench = &b->benches[mo_thread_number()];
  double S = (double)shape->length;
  mo_union_moments moments = mo_union_moments_of(&bench->sets, b->counts, row->feature, b->missed);
  b->moments[f] = moments;
  mo_interval sites = union_interval(b, row->sites_hit, 2 * shape->n_layers, moments.sites_deviation);
  mo_interval layers = union_interval(b, row->layers_hit, shape->n_layers, moments.layers_deviation);
  row->layer_percentage_low = sites.low;
  row->layer_percentage_high = sites.high;
  row->block_percentage_low = layers.low;
  row->block_percentage_high = layers.high;
  int64_t n_values = mo_bench_positions(bench, b->counts, row->feature);
  mo_mean mean = mo_mean_of(bench->values, n_values, shape->n_sequences);
  mo_interval positions = mo_studentised_interval(&mean, t, shape->bootstrap.draws);
  row->seq_percentage_low = positions.low > 0 ? positions.low / S : 0;
  row->seq_percentage_high = positions.high < S ? positions.high / S : 1;
}

/* Features first..last-1 in all draws. */
static void run_group(bootstrap *b, int64_t first, int64_t last) {
  const mo_bootstrap *settings = &b->counts->shape.bootstrap;
  for (int64_t draw = 0; draw < settings->draws; draw += b->draws.capacity) {
    int64_t left = settings->draws - draw;
    mo_draws_make(&b->draws, settings, draw, left < b->draws.capacity ? left : b->draws.capacity);
#pragma omp parallel for schedule(dynamic)
    for (int64_t f = first; f < last; f++) look(b, f, draw, b->t + (f - first) * settings->draws);
  }
#pragma omp parallel for schedule(dynamic)
  for (int64_t f = first; f < last; f++) conclude(b, f, b->t + (f - first) * settings->draws);
}

static mo_status run_features(bootstrap *b) {
  int64_t n = b->analysis->n_features, draws = b->counts->shape.bootstrap.draws;
  b->group = GROUP_VALUES / draws < 1 ? 1 : GROUP_VALUES / draws;
  if (b->group > n) b->group = n;
  b->student = mo_student(b->counts->shape.n_sequences - 1);
  b->moments = mo_alloc((size_t)n, sizeof *b->moments);
  b->t = mo_alloc((size_t)(b->group * draws), sizeof *b->t);
  if (!b->moments || !b->t) return MO_FAILED;
  MO_TRY(mo_miss_table(&b->missed, b->counts->shape.n_sequences));
  MO_TRY(mo_draws_new(&b->draws, b->counts->shape.n_sequences));
  MO_TRY(mo_benches_new(&b->benches, &b->n_benches, b->counts, b->draws.capacity));
  for (int64_t first = 0; first < n; first += b->group)
    run_group(b, first, first + b->group < n ? first + b->group : n);
  return MO_OK;
}

/* Mean loss of each sequence, less the mean of all: the draws' sums of squares lose no digits then. */
static double centre_losses(const mo_analysis_shape *shape, const float *nll, double *losses, int32_t *sequences) {
  int64_t N = shape->n_sequences, columns = shape->length - 1;
  double mean = 0;
  for (int64_t i = 0; i < N; i++) {
    double sum = 0;
    for (int64_t s = 0; s < columns; s++) sum += (double)nll[i * columns + s];
    sequences[i] = (int32_t)i;
    mean += losses[i] = sum / (double)columns;
  }
  mean /= (double)N;
  for (int64_t i = 0; i < N; i++) losses[i] -= mean;
  return mean;
}

static mo_status run_perplexity(mo_analysis *analysis, const mo_analysis_shape *shape, const float *nll) {
  int64_t N = shape->n_sequences, n = shape->bootstrap.draws;
  mo_draws draws = {0};
  mo_status status = MO_FAILED;
  double *losses = mo_alloc((size_t)N, sizeof *losses), *t = mo_alloc((size_t)n, sizeof *t);
  double *sums = NULL;
  int32_t *sequences = mo_alloc((size_t)N, sizeof *sequences);
  if (!losses || !t || !sequences) goto done;
  MO_TRY_TO(done, mo_draws_new(&draws, N));
  sums = mo_alloc((size_t)(2 * draws.capacity), sizeof *sums);
  MO_TRY_TO(done, sums ? MO_OK : MO_FAILED);
  double centre = centre_losses(shape, nll, losses, sequences);
  mo_mean mean = mo_mean_of(losses, N, N);
  for (int64_t first = 0; first < n; first += draws.capacity) {
    mo_draws_make(&draws, &shape->bootstrap, first, n - first < draws.capacity ? n - first : draws.capacity);
    mo_draws_sum(&draws, sequences, losses, N, sums, sums + draws.capacity);
    mo_studentise(&mean, N, sums, sums + draws.capacity, draws.n, t + first);
  }
  mo_interval interval = mo_studentised_interval(&mean, t, n);
  analysis->perplexity_low = exp(centre + interval.low);
  analysis->perplexity_high = exp(centre + interval.high);
done:
  mo_draws_free(&draws);
  free(losses);
  free(sums);
  free(t);
  free(sequences);
  return status;
}

mo_status mo_bootstrap_run(mo_analysis *analysis, const mo_counts *counts, const float *nll) {
  const mo_analysis_shape *shape = &counts->shape;
  if (shape->n_sequences < 2 || shape->bootstrap.draws < 1) return MO_OK;
  bootstrap b = {.analysis = analysis, .counts = counts};
  mo_status status = run_features(&b);
  if (status == MO_OK) status = mo_bootstrap_summary(analysis, counts, b.moments);
  if (status == MO_OK && nll && shape->length > 1) status = run_perplexity(analysis, shape, nll);
  mo_draws_free(&b.draws);
  mo_benches_free(b.benches, b.n_benches);
  free(b.missed);
  free(b.moments);
  free(b.t);
  return status;
}
