/* All ranks' sums. Only integer sums, maxima and or-ed bits cross ranks: a float or double that one rank alone knows is
 * or-ed as bits with the zeros of the others, so that no rounding depends on how the layers are dealt to ranks. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/internal.h"

static void totals_free(mo_totals *totals) {
  free(totals->sequence_sites);
  free(totals->sequence_count);
  free(totals->sequence_positive);
  free(totals->sequence_first);
  free(totals->sequence_max);
  free(totals->sequence_positions);
  free(totals->site_count);
  free(totals->moments);
  free(totals->quartiles);
}

static mo_status totals_new(mo_totals *totals, const mo_analysis_shape *shape, bool root) {
  size_t n_sites = (size_t)(2 * shape->n_layers), n = (size_t)shape->n_sequences, hidden = (size_t)shape->hidden;
  *totals = (mo_totals){
      .sequence_sites = mo_alloc(n * hidden * (size_t)mo_site_words(shape), sizeof *totals->sequence_sites),
      .sequence_count = mo_alloc(n * hidden, sizeof *totals->sequence_count),
      .sequence_positive = mo_alloc(n * hidden, sizeof *totals->sequence_positive),
      .sequence_first = mo_alloc(n * hidden, sizeof *totals->sequence_first),
      .sequence_max = mo_alloc(n * hidden, sizeof *totals->sequence_max),
      .sequence_positions = mo_alloc(root ? n * hidden : 0, sizeof *totals->sequence_positions),
      .site_count = mo_alloc(n_sites, sizeof *totals->site_count),
      .moments = mo_alloc(MO_N_MOMENTS * n_sites * n, sizeof *totals->moments),
      .quartiles = mo_alloc(root ? 3 * hidden : 0, sizeof *totals->quartiles),
  };
  if (totals->sequence_sites && totals->sequence_count && totals->sequence_positive && totals->sequence_first &&
      totals->sequence_max && totals->sequence_positions && totals->site_count && totals->moments && totals->quartiles)
    return MO_OK;
  totals_free(totals);
  return MO_FAILED;
}

/* This rank's rows. */
static void sum_rows(mo_totals *totals, const mo_accumulator *accumulator) {
  int64_t hidden = accumulator->shape.hidden, words = mo_site_words(&accumulator->shape);
  for (int64_t place = 0; place < 2 * accumulator->shape.n_layers; place++) {
    const mo_site_sums *site = &accumulator->sites[place];
    for (int64_t r = 0; r < site->n_rows; r++) {
      const mo_site_row *row = &site->rows[r];
      int64_t i = row->sequence * hidden + row->feature;
      totals->sequence_sites[i * words + place / 64] |= UINT64_C(1) << place % 64;
      totals->sequence_count[i] += row->count;
      totals->sequence_positive[i] += row->positive;
      totals->sequence_first[i] += row->first;
      if (row->max_abs > totals->sequence_max[i]) totals->sequence_max[i] = row->max_abs;
      totals->site_count[place] += row->count;
    }
  }
}

mo_status mo_share_bits(mo_comm *comm, void *data, size_t bytes) {
  size_t n_words = (bytes + 7) / 8;
  uint64_t *words = mo_alloc(n_words, sizeof *words);
  if (!words) return MO_FAILED;
  memcpy(words, data, bytes);
  mo_status status = mo_comm_allreduce(comm, words, n_words, MO_OR_U64);
  if (status == MO_OK) memcpy(data, words, bytes);
  free(words);
  return status;
}

/* Every sequence once at every site, every site N*S token rows, over all ranks; the same answer on every rank. */
static mo_status check_complete(const mo_accumulator *accumulator, mo_comm *comm) {
  int64_t n_sites = 2 * accumulator->shape.n_layers, n = accumulator->shape.n_sequences;
  int64_t n_seen = n_sites * n;
  int64_t *seen = mo_alloc((size_t)(n_seen + n_sites), sizeof *seen);
  if (!seen) return MO_FAILED;
  memcpy(seen, accumulator->seen, (size_t)n_seen * sizeof *seen);
  for (int64_t i = 0; i < n_sites; i++) seen[n_seen + i] = accumulator->sites[i].rows_seen;
  mo_status status = mo_comm_allreduce(comm, seen, (size_t)(n_seen + n_sites), MO_SUM_I64);
  for (int64_t i = 0; i < n_seen && status == MO_OK; i++)
    if (seen[i] != 1)
      status =
          MO_FAIL(MO_FAILED, "sequence %lld was seen %lld times (layer %lld %s): report this as a bug",
                  (long long)(i % n), (long long)seen[i], (long long)(i / n / 2), mo_site_name((mo_site)(i / n % 2)));
  for (int64_t i = 0; i < n_sites && status == MO_OK; i++)
    if (seen[n_seen + i] != n * accumulator->shape.length)
      status = MO_FAIL(MO_FAILED,
                       "%lld token rows seen instead of %lld (layer %lld %s): tokens were lost or repeated, "
                       "report this as a bug",
                       (long long)seen[n_seen + i], (long long)(n * accumulator->shape.length), (long long)(i / 2),
                       mo_site_name((mo_site)(i % 2)));
  free(seen);
  return status;
}

static mo_status sum_ranks(mo_totals *totals, mo_accumulator *accumulator, mo_comm *comm) {
  const mo_analysis_shape *shape = &accumulator->shape;
  size_t n_sites = (size_t)(2 * shape->n_layers), n = (size_t)shape->n_sequences, hidden = (size_t)shape->hidden;
  size_t moment_bytes = MO_N_MOMENTS * n_sites * n * sizeof *totals->moments;
  memcpy(totals->moments, accumulator->moments, moment_bytes);
  MO_TRY(mo_share_bits(comm, totals->moments, moment_bytes));
  MO_TRY(mo_comm_allreduce(comm, totals->sequence_sites, n * hidden * (size_t)mo_site_words(shape), MO_OR_U64));
  MO_TRY(mo_comm_allreduce(comm, totals->sequence_count, n * hidden, MO_SUM_I64));
  MO_TRY(mo_comm_allreduce(comm, totals->sequence_positive, n * hidden, MO_SUM_I64));
  MO_TRY(mo_comm_allreduce(comm, totals->sequence_first, n * hidden, MO_SUM_I64));
  MO_TRY(mo_comm_allreduce(comm, totals->sequence_max, n * hidden, MO_MAX_F32));
  MO_TRY(mo_comm_allreduce(comm, totals->site_count, n_sites, MO_SUM_I64));
  size_t n_words = n * hidden * (size_t)mo_position_words(shape);
  MO_TRY(mo_comm_allreduce(comm, accumulator->positions, n_words, MO_OR_U64));
  return mo_order_quartiles(accumulator->order, comm, totals->quartiles);
}

/* Rank 0: count the bits of each (sequence, feature), and check them against its outlier values. */
static mo_status count_positions(mo_totals *totals, const mo_accumulator *accumulator) {
  const mo_analysis_shape *shape = &accumulator->shape;
  int64_t n_words = mo_position_words(shape);
  uint64_t spare = shape->length % 64 ? ~UINT64_C(0) << shape->length % 64 : 0; /* bits of no position, last word */
  for (int64_t i = 0; i < shape->n_sequences * shape->hidden; i++) {
    const uint64_t *words = accumulator->positions + i * n_words;
    int32_t hit = 0;
    for (int64_t w = 0; w < n_words; w++) hit += __builtin_popcountll(words[w]);
    int64_t count = totals->sequence_count[i];
    int64_t sites = mo_count_sites(totals->sequence_sites + i * mo_site_words(shape), mo_site_words(shape));
    if (hit > count || count > (int64_t)hit * sites || words[n_words - 1] & spare)
      return MO_FAIL(MO_FAILED,
                     "%d positions hit by %lld outlier values at %lld sites (sequence %lld, feature %lld): "
                     "report this as a bug",
                     hit, (long long)count, (long long)sites, (long long)(i / shape->hidden),
                     (long long)(i % shape->hidden));
    totals->sequence_positions[i] = hit;
  }
  return MO_OK;
}

static mo_status reduce_nll(mo_analysis *analysis, const mo_accumulator *accumulator, mo_comm *comm) {
  int64_t n = accumulator->shape.n_sequences, count = n * (accumulator->shape.length - 1), all = 0;
  mo_status status = MO_FAILED;
  float *nll = mo_alloc((size_t)count, sizeof *nll);
  int64_t *seen = mo_alloc((size_t)n, sizeof *seen);
  if (!nll || !seen) goto done;
  memcpy(seen, accumulator->nll_seen, (size_t)n * sizeof *seen);
  MO_TRY_TO(done, mo_comm_allreduce(comm, seen, (size_t)n, MO_SUM_I64));
  for (int64_t i = 0; i < n; i++) all += seen[i];
  for (int64_t i = 0; i < n && all > 0 && status == MO_OK; i++)
    if (seen[i] != 1)
      status = MO_FAIL(MO_FAILED, "next-token losses of sequence %lld were seen %lld times (nll): report this as a bug",
                       (long long)i, (long long)seen[i]);
  if (status != MO_OK || all == 0) goto done;
  memcpy(nll, accumulator->nll, (size_t)count * sizeof *nll);
  MO_TRY_TO(done, mo_share_bits(comm, nll, (size_t)count * sizeof *nll));
  if (mo_comm_rank(comm) == 0) {
    analysis->nll = nll;
    nll = NULL;
  }
done:
  free(nll);
  free(seen);
  return status;
}

static mo_status reduce_routing(mo_analysis *analysis, const mo_accumulator *accumulator, mo_comm *comm) {
  size_t n = (size_t)(accumulator->shape.n_layers * accumulator->shape.n_experts);
  if (n == 0) return MO_OK;
  int64_t *counts = mo_alloc(n, sizeof *counts);
  if (!counts) return MO_FAILED;
  memcpy(counts, accumulator->routing, n * sizeof *counts);
  mo_status status = mo_comm_allreduce(comm, counts, n, MO_SUM_I64);
  if (status == MO_OK && mo_comm_rank(comm) == 0) {
    analysis->expert_tokens = (uint64_t *)counts; /* the same bits: no count is negative */
    return MO_OK;
  }
  free(counts);
  return status;
}

static const mo_analysis NOTHING = {.perplexity = NAN, .perplexity_low = NAN, .perplexity_high = NAN};

/* Rank 0, which has the positions, losses and expert counts in *analysis already. */
static mo_status make_tables(mo_analysis *analysis, const mo_accumulator *accumulator, mo_totals *totals) {
  const mo_analysis_shape *shape = &accumulator->shape;
  mo_counts *counts = NULL;
  mo_analysis tables;
  MO_TRY(count_positions(totals, accumulator));
  MO_TRY(mo_sites_build(analysis, shape, totals));
  MO_TRY(mo_counts_of_totals(&counts, analysis, shape, totals));
  mo_status status = mo_counts_analyse(&tables, counts, analysis->nll);
  mo_counts_free(counts);
  MO_TRY(status);
  tables.positions = analysis->positions;
  tables.n_positions = analysis->n_positions;
  tables.sites = analysis->sites;
  tables.n_sites = analysis->n_sites;
  tables.nll = analysis->nll;
  tables.expert_tokens = analysis->expert_tokens;
  tables.experts = analysis->experts;
  tables.n_experts = analysis->n_experts;
  *analysis = tables;
  return MO_OK;
}

mo_status mo_analysis_reduce(mo_analysis *analysis, mo_accumulator *accumulator, mo_comm *comm) {
  *analysis = NOTHING;
  MO_TRY(accumulator->fault);
  bool root = mo_comm_rank(comm) == 0;
  mo_totals totals;
  MO_TRY(totals_new(&totals, &accumulator->shape, root));
  mo_status status;
  MO_TRY_TO(done, check_complete(accumulator, comm));
  sum_rows(&totals, accumulator);
  MO_TRY_TO(done, sum_ranks(&totals, accumulator, comm));
  MO_TRY_TO(done, reduce_nll(analysis, accumulator, comm));
  MO_TRY_TO(done, reduce_routing(analysis, accumulator, comm));
  MO_TRY_TO(done, mo_experts_reduce(analysis, accumulator, comm));
  if (root) status = make_tables(analysis, accumulator, &totals);
  mo_status gathered = mo_top_values_gather(analysis, accumulator, comm, status == MO_OK);
  if (status == MO_OK) status = gathered;
done:
  totals_free(&totals);
  if (status != MO_OK) mo_analysis_free(analysis);
  return status;
}

void mo_analysis_free(mo_analysis *analysis) {
  if (!analysis) return;
  free(analysis->positions);
  free(analysis->sequence_features);
  free(analysis->features);
  free(analysis->sites);
  free(analysis->top_values);
  free(analysis->nll);
  free(analysis->expert_tokens);
  free(analysis->experts);
  *analysis = NOTHING;
}
