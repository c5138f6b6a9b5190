/* One rank's sums. Everything is either an integer, a maximum, a bit, or a floating-point sum that belongs to one
 * sequence at one site and is made by one backend call: so no result depends on the order of the calls. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/internal.h"

/* Bytes of the arrays must not overflow anywhere below; sequences and features are int32 in the tables. */
static mo_status check_shape(const mo_analysis_shape *shape) {
  const int64_t limit = INT32_MAX;
  int64_t cells = 0, words = 0, routes = 0, values = 0;
  bool good = shape->n_layers > 0 && shape->n_layers <= limit / 2 && shape->n_sequences > 0 &&
              shape->n_sequences <= limit && shape->length > 0 && shape->length <= limit && shape->hidden > 0 &&
              shape->hidden <= limit && shape->n_experts >= 0 && shape->n_experts <= limit;
  good = good && !__builtin_mul_overflow(shape->n_sequences, shape->hidden, &cells) &&
         !__builtin_mul_overflow(cells, mo_position_words(shape) * 8, &words) &&
         !__builtin_mul_overflow(shape->n_layers * 8, shape->n_experts, &routes) &&
         !__builtin_mul_overflow(cells, shape->length, &values) &&
         !__builtin_mul_overflow(values, shape->n_layers * 2, &values);
  if (good) return MO_OK;
  return MO_FAIL(MO_INVALID,
                 "analysis of %lld layers, %lld sequences of %lld tokens, hidden size %lld, %lld experts is out of "
                 "range (analysis): choose a smaller batch",
                 (long long)shape->n_layers, (long long)shape->n_sequences, (long long)shape->length,
                 (long long)shape->hidden, (long long)shape->n_experts);
}

mo_status mo_accumulator_new(mo_accumulator **accumulator, const mo_analysis_shape *shape) {
  *accumulator = NULL;
  MO_TRY(check_shape(shape));
  mo_accumulator *made = mo_alloc(1, sizeof *made);
  if (!made) return MO_FAILED;
  made->shape = *shape;
  size_t n_sites = (size_t)(2 * shape->n_layers), n = (size_t)shape->n_sequences;
  made->sites = mo_alloc(n_sites, sizeof *made->sites);
  made->seen = mo_alloc(n_sites * n, sizeof *made->seen);
  made->moments = mo_alloc(MO_N_MOMENTS * n_sites * n, sizeof *made->moments);
  made->positions = mo_alloc(n * (size_t)shape->hidden * (size_t)mo_position_words(shape), sizeof *made->positions);
  made->routing = mo_alloc((size_t)(shape->n_layers * shape->n_experts), sizeof *made->routing);
  made->experts = mo_alloc((size_t)(shape->n_layers * mo_experts_of_layer(shape)), sizeof *made->experts);
  made->nll = mo_alloc(n * (size_t)(shape->length - 1), sizeof *made->nll);
  made->nll_seen = mo_alloc(n, sizeof *made->nll_seen);
  mo_status status = MO_FAILED;
  if (made->sites && made->seen && made->moments && made->positions && made->routing && made->experts && made->nll &&
      made->nll_seen)
    status = mo_order_new(&made->order, shape->hidden);
  if (status != MO_OK)
    mo_accumulator_free(made);
  else
    *accumulator = made;
  return status;
}

void mo_accumulator_free(mo_accumulator *accumulator) {
  if (!accumulator) return;
  if (accumulator->sites)
    for (int64_t i = 0; i < 2 * accumulator->shape.n_layers; i++) free(accumulator->sites[i].rows);
  free(accumulator->sites);
  free(accumulator->seen);
  free(accumulator->moments);
  free(accumulator->positions);
  free(accumulator->routing);
  free(accumulator->experts);
  free(accumulator->nll);
  free(accumulator->nll_seen);
  mo_order_free(accumulator->order);
  free(accumulator);
}

static mo_status check_layer_number(const mo_accumulator *accumulator, int64_t layer) {
  if (layer >= 0 && layer < accumulator->shape.n_layers) return MO_OK;
  return MO_FAIL(MO_FAILED, "layer %lld is not in 0..%lld (analysis): report this as a bug", (long long)layer,
                 (long long)accumulator->shape.n_layers - 1);
}

static mo_status check_sequences(const mo_accumulator *accumulator, int64_t first, int64_t n, const char *what) {
  int64_t all = accumulator->shape.n_sequences;
  if (first >= 0 && n > 0 && n <= all && first <= all - n) return MO_OK;
  return MO_FAIL(MO_FAILED, "%lld sequences from %lld are not in 0..%lld (%s): report this as a bug", (long long)n,
                 (long long)first, (long long)all - 1, what);
}

static int row_compare(const void *left, const void *right) {
  const mo_site_row *a = left, *b = right;
  if (a->sequence != b->sequence) return a->sequence < b->sequence ? -1 : 1;
  return (a->feature > b->feature) - (a->feature < b->feature);
}

static mo_status append_row(mo_site_sums *site, const mo_site_row *row) {
  if (site->n_rows == site->capacity) {
    int64_t capacity = site->capacity ? 2 * site->capacity : 64;
    mo_site_row *rows = mo_realloc(site->rows, (size_t)capacity, sizeof *rows);
    if (!rows) return MO_FAILED;
    site->rows = rows;
    site->capacity = capacity;
  }
  if (site->n_rows > 0 && row_compare(&site->rows[site->n_rows - 1], row) > 0) site->unsorted = true;
  site->rows[site->n_rows++] = *row;
  return MO_OK;
}

/* The rows of sequence `b` of the micro-batch; adds its outlier values to *n_outliers. */
static mo_status add_rows(mo_site_sums *site, const mo_site_statistics *statistics, int64_t b, int64_t sequence,
                          const mo_analysis_shape *shape, int64_t *n_outliers) {
  for (int64_t h = 0; h < shape->hidden; h++) {
    int64_t i = b * shape->hidden + h;
    int32_t count = statistics->count[i], positive = statistics->positive[i];
    if (count == 0) continue;
    if (count < 0 || count > shape->length || positive < 0 || positive > count)
      return MO_FAIL(MO_FAILED,
                     "%d outlier values, %d positive, at %lld positions (sequence %lld, feature %lld): "
                     "report this as a bug",
                     count, positive, (long long)shape->length, (long long)sequence, (long long)h);
    if (statistics->position[i] < 0 || statistics->position[i] >= shape->length || statistics->first[i] > 1)
      return MO_FAIL(
          MO_FAILED, "position %d of %lld, %d at position 0 (sequence %lld, feature %lld): report this as a bug",
          statistics->position[i], (long long)shape->length, statistics->first[i], (long long)sequence, (long long)h);
    float low = statistics->min[i], high = statistics->max[i];
    mo_site_row row = {.sequence = (int32_t)sequence,
                       .feature = (int32_t)h,
                       .count = count,
                       .positive = positive,
                       .negative = count - positive,
                       .min = low,
                       .max = high,
                       .max_abs = fmaxf(fabsf(low), fabsf(high)),
                       .mean_abs = (float)(statistics->sum_abs[i] / (double)count),
                       .position = statistics->position[i],
                       .first = statistics->first[i]};
    MO_TRY(append_row(site, &row));
    *n_outliers += count;
  }
  return MO_OK;
}

mo_status mo_accumulator_add(mo_accumulator *accumulator, int64_t layer, mo_site site, int64_t first_sequence,
                             const mo_site_statistics *statistics) {
  const mo_analysis_shape *shape = &accumulator->shape;
  int64_t n_moments = 2 * shape->n_layers * shape->n_sequences, n_outliers = 0;
  MO_TRY(check_layer_number(accumulator, layer));
  MO_TRY(check_sequences(accumulator, first_sequence, statistics->n_sequences, mo_site_name(site)));
  int64_t place = 2 * layer + (site == MO_SITE_LN_MLP);
  mo_site_sums *sums = &accumulator->sites[place];
  for (int64_t b = 0; b < statistics->n_sequences; b++) {
    int64_t sequence = first_sequence + b, i = place * shape->n_sequences + sequence;
    if (accumulator->seen[i]++)
      return MO_FAIL(MO_FAILED, "sequence %lld was added twice (layer %lld %s): report this as a bug",
                     (long long)sequence, (long long)layer, mo_site_name(site));
    MO_TRY(add_rows(sums, statistics, b, sequence, shape, &n_outliers));
    accumulator->moments[MO_SUM_VALUES * n_moments + i] = statistics->sum[b];
    accumulator->moments[MO_SUM_SQUARES * n_moments + i] = statistics->sum_squares[b];
    accumulator->moments[MO_MAX_ABS * n_moments + i] = (double)statistics->max_abs[b];
  }
  if (n_outliers != statistics->n_outliers)
    return MO_FAIL(MO_FAILED, "%lld outlier values listed, %lld counted (layer %lld %s): report this as a bug",
                   (long long)statistics->n_outliers, (long long)n_outliers, (long long)layer, mo_site_name(site));
  MO_TRY(mo_order_add(accumulator->order, statistics->outliers, statistics->n_outliers));
  sums->rows_seen += statistics->rows;
  return MO_OK;
}

void mo_accumulator_add_positions(mo_accumulator *accumulator, int64_t first_sequence, int64_t n_sequences,
                                  const uint64_t *words) {
  const mo_analysis_shape *shape = &accumulator->shape;
  if (check_sequences(accumulator, first_sequence, n_sequences, "positions") != MO_OK) {
    accumulator->fault = MO_FAILED;
    return;
  }
  int64_t of_one = shape->hidden * mo_position_words(shape), n = n_sequences * of_one;
  uint64_t *positions = accumulator->positions + first_sequence * of_one;
  for (int64_t i = 0; i < n; i++) positions[i] |= words[i];
}

void mo_accumulator_add_routing(mo_accumulator *accumulator, int64_t layer, const int64_t *counts) {
  if (check_layer_number(accumulator, layer) != MO_OK) {
    accumulator->fault = MO_FAILED;
    return;
  }
  int64_t n_experts = accumulator->shape.n_experts;
  for (int64_t e = 0; e < n_experts; e++) accumulator->routing[layer * n_experts + e] += counts[e];
}

void mo_accumulator_add_nll(mo_accumulator *accumulator, int64_t first_sequence, int64_t n_sequences,
                            const float *nll) {
  int64_t columns = accumulator->shape.length - 1;
  if (check_sequences(accumulator, first_sequence, n_sequences, "nll") != MO_OK) {
    accumulator->fault = MO_FAILED;
    return;
  }
  for (int64_t b = 0; b < n_sequences; b++) accumulator->nll_seen[first_sequence + b]++;
  if (columns > 0)
    memcpy(accumulator->nll + first_sequence * columns, nll, (size_t)(n_sequences * columns) * sizeof *nll);
}

mo_status mo_accumulator_check_layer(const mo_accumulator *accumulator, int64_t layer) {
  MO_TRY(check_layer_number(accumulator, layer));
  int64_t expected = accumulator->shape.n_sequences * accumulator->shape.length;
  for (int site = MO_SITE_LN_ATTN; site <= MO_SITE_LN_MLP; site++) {
    int64_t rows = accumulator->sites[2 * layer + site].rows_seen;
    if (rows != expected)
      return MO_FAIL(MO_FAILED,
                     "%lld token rows seen instead of %lld (layer %lld %s): tokens were lost or repeated, "
                     "report this as a bug",
                     (long long)rows, (long long)expected, (long long)layer, mo_site_name((mo_site)site));
  }
  return MO_OK;
}

mo_status mo_accumulator_site_rows(mo_accumulator *accumulator, int64_t layer, mo_site site, const mo_site_row **rows,
                                   int64_t *n_rows) {
  MO_TRY(check_layer_number(accumulator, layer));
  mo_site_sums *sums = &accumulator->sites[2 * layer + (site == MO_SITE_LN_MLP)];
  if (sums->unsorted) qsort(sums->rows, (size_t)sums->n_rows, sizeof *sums->rows, row_compare);
  sums->unsorted = false;
  *rows = sums->rows;
  *n_rows = sums->n_rows;
  return MO_OK;
}
