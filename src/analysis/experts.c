/* What tokens bring to experts, and the largest output of each: integers, and a maximum whose ties are settled by place,
 * so that no order of micro-batches matters. */
#include <stdlib.h>
#include <string.h>

#include "analysis/internal.h"

/* Whether the largest output of a micro-batch replaces the one so far: the larger, then the earlier place. */
static bool replaces(const mo_expert_total *total, float output, int32_t sequence, int32_t position) {
  if (total->sequence == 0) return true;
  if (output != total->max_output) return output > total->max_output;
  return sequence < total->sequence || (sequence == total->sequence && position < total->position);
}

mo_status mo_accumulator_add_experts(mo_accumulator *accumulator, int64_t layer, int64_t first_sequence,
                                     const mo_expert_statistics *statistics) {
  const mo_analysis_shape *shape = &accumulator->shape;
  int64_t n = mo_experts_of_layer(shape), S = shape->length;
  if (layer < 0 || layer >= shape->n_layers || n == 0 || statistics->n != n - !shape->shared_expert)
    return MO_FAIL(MO_FAILED, "%lld experts of layer %lld of %lld (experts): report this as a bug",
                   (long long)statistics->n, (long long)layer, (long long)shape->n_layers);
  for (int64_t e = 0; e < statistics->n; e++) {
    const mo_expert_sums *sums = &statistics->experts[e];
    mo_expert_total *total = &accumulator->experts[layer * n + e];
    if (first_sequence < 0 || sums->max_row >= (shape->n_sequences - first_sequence) * S)
      return MO_FAIL(MO_FAILED, "row %d of the sequences %lld..%lld (expert %lld of layer %lld): report this as a bug",
                     sums->max_row, (long long)first_sequence, (long long)shape->n_sequences - 1, (long long)e,
                     (long long)layer);
    total->outlier_values += sums->outlier_values;
    total->outlier_tokens += sums->outlier_tokens;
    if (sums->max_row < 0) continue;
    int32_t sequence = (int32_t)(first_sequence + sums->max_row / S + 1), position = (int32_t)(sums->max_row % S);
    if (!replaces(total, sums->max_output, sequence, position)) continue;
    total->max_output = sums->max_output;
    total->sequence = sequence;
    total->position = position;
  }
  return MO_OK;
}

static mo_expert make_row(const mo_expert_total *total, int64_t layer, int64_t expert, bool shared, int64_t tokens) {
  bool any = total->sequence > 0;
  return (mo_expert){.layer = (int32_t)layer,
                     .expert = shared ? -1 : (int32_t)expert,
                     .shared = shared,
                     .tokens = tokens,
                     .outlier_values = total->outlier_values,
                     .outlier_tokens = total->outlier_tokens,
                     .max_output = total->max_output,
                     .max_sequence = total->sequence - 1,
                     .max_position = any ? total->position : -1,
                     .max_token = -1};
}

/* Layers that do not route have no rows. */
static mo_status make_rows(mo_analysis *analysis, const mo_analysis_shape *shape, const mo_expert_total *totals) {
  int64_t E = shape->n_experts, tokens = shape->n_sequences * shape->length;
  analysis->experts = mo_alloc((size_t)(shape->n_layers * (E + 1)), sizeof *analysis->experts);
  if (!analysis->experts) return MO_FAILED;
  for (int64_t layer = 0; layer < shape->n_layers; layer++) {
    const uint64_t *load = analysis->expert_tokens + layer * E;
    const mo_expert_total *of_layer = totals + layer * (E + 1);
    uint64_t routed = 0;
    for (int64_t e = 0; e < E; e++) routed += load[e];
    for (int64_t e = 0; e < E && routed; e++)
      analysis->experts[analysis->n_experts++] = make_row(&of_layer[e], layer, e, false, (int64_t)load[e]);
    if (routed && shape->shared_expert)
      analysis->experts[analysis->n_experts++] = make_row(&of_layer[E], layer, E, true, tokens);
  }
  return MO_OK;
}

/* An expert has an output if, and only if, it has a token. */
static mo_status check_rows(const mo_analysis *analysis) {
  for (int64_t i = 0; i < analysis->n_experts; i++) {
    const mo_expert *row = &analysis->experts[i];
    if ((row->tokens > 0) != (row->max_sequence >= 0) || row->outlier_tokens > row->tokens ||
        row->outlier_values < row->outlier_tokens)
      return MO_FAIL(MO_FAILED,
                     "%lld tokens, %lld with %lld outlier values, largest output of sequence %d (expert %d of layer "
                     "%d): report this as a bug",
                     (long long)row->tokens, (long long)row->outlier_tokens, (long long)row->outlier_values,
                     row->max_sequence, row->expert, row->layer);
  }
  return MO_OK;
}

mo_status mo_experts_reduce(mo_analysis *analysis, const mo_accumulator *accumulator, mo_comm *comm) {
  const mo_analysis_shape *shape = &accumulator->shape;
  size_t n = (size_t)(shape->n_layers * mo_experts_of_layer(shape));
  if (n == 0 || shape->n_experts == 0) return MO_OK;
  mo_expert_total *totals = mo_alloc(n, sizeof *totals);
  if (!totals) return MO_FAILED;
  memcpy(totals, accumulator->experts, n * sizeof *totals);
  mo_status status = mo_share_bits(comm, totals, n * sizeof *totals); /* a layer belongs to one rank */
  if (status == MO_OK && mo_comm_rank(comm) == 0) {
    status = make_rows(analysis, shape, totals);
    if (status == MO_OK) status = check_rows(analysis);
  }
  free(totals);
  return status;
}
