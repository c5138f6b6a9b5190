/* One rank's loop: for each of its blocks, for each micro-batch: receive, compute the block's stages, send.
 *
 * The residual stream of all sequences stays in backend memory; weights come through the streamer, a block's stages are held
 * until the last micro-batch has passed them. Rows come and go through the transport, which overlaps them with compute. */
#include "pipeline/engine.h"

#include <stdlib.h>
#include <string.h>

#include "pipeline/transport.h"

typedef struct {
  const mo_engine_job *job;
  const mo_backend_table *op;
  mo_streamer *streamer;
  mo_workspace *workspace;
  void *x; /* [N, S, H] residual stream */
  mo_transport *transport;
  mo_transport_rows *rows;          /* [n_micro] parts of x */
  uint64_t *positions;              /* backend memory [N, H, ceil(S/64)] */
  float *site_host, *nll;           /* host [B, S, H] for stored activations; [B, S-1] */
  const mo_stage_weights **weights; /* [n_stages] of the current block */
  mo_progress progress;
  int64_t micro; /* the micro-batch under way */
} engine;

static int64_t first_sequence(const mo_plan *plan, int64_t micro) { return micro * plan->micro_batch; }

static int64_t batch_of(const mo_plan *plan, int64_t micro) {
  int64_t left = plan->n_sequences - first_sequence(plan, micro);
  return left < plan->micro_batch ? left : plan->micro_batch;
}

static int64_t values_of(const engine *e, int64_t sequences) {
  return sequences * e->job->plan->length * e->job->spec->hidden;
}

static bool is_stored(const mo_config *config, int64_t layer) {
  if (config->output.all_activations) return true;
  for (int64_t i = 0; i < config->output.n_activations; i++)
    if (config->output.activations[i] == layer) return true;
  return false;
}

static mo_status poll_peers(void *context) { return mo_comm_poll(context); }

/* --- observer: what the layer tells --- */

static mo_status on_site(void *context, int64_t layer, mo_site site, const void *x) {
  engine *e = context;
  const mo_plan *plan = e->job->plan;
  int64_t B = batch_of(plan, e->micro), first = first_sequence(plan, e->micro);
  mo_site_statistics statistics;
  MO_TRY(e->op->site_statistics(e->job->backend, x, B, plan->length, e->job->spec->hidden,
                                (float)e->job->config->analysis.threshold, e->positions, first, &statistics));
  MO_TRY(mo_accumulator_add(e->job->accumulator, layer, site, first, &statistics));
  if (is_stored(e->job->config, layer)) {
    MO_TRY(e->op->read_activations(e->job->backend, x, values_of(e, B), e->site_host));
    MO_TRY(mo_results_write_activations(e->job->results, layer, site, first, B, e->site_host));
  }
  return mo_comm_poll(e->job->comm);
}

static mo_status on_routing(void *context, int64_t layer, const int64_t *counts) {
  engine *e = context;
  mo_accumulator_add_routing(e->job->accumulator, layer, counts);
  return mo_comm_poll(e->job->comm);
}

/* --- compute --- */

static mo_status compute_stage(engine *e, int64_t stage, const mo_stage_weights *weights) {
  const mo_plan *plan = e->job->plan;
  int64_t B = batch_of(plan, e->micro), first = first_sequence(plan, e->micro);
  const int32_t *ids = e->job->tokens->ids + first * plan->length;
  void *x = e->rows[e->micro].data;
  if (stage == 0) return e->op->embed(e->job->backend, &weights->one[MO_EMBED], ids, B * plan->length, x);
  if (stage <= e->job->spec->n_layers) {
    mo_layer_observer observer = {e, on_site, on_routing};
    return mo_layer_forward(e->workspace, stage - 1, weights, x, B, &observer);
  }
  MO_TRY(mo_head_forward(e->workspace, weights, x, B, ids, e->nll));
  mo_accumulator_add_nll(e->job->accumulator, first, B, e->nll);
  return MO_OK;
}

/* Take the stage's weights at its first micro-batch, give them back after its last. */
static mo_status run_stage(engine *e, int64_t stage, mo_timing_row *timing) {
  const mo_plan *plan = e->job->plan;
  if (e->micro == 0) MO_TRY(mo_streamer_acquire(e->streamer, stage, &e->weights[stage], poll_peers, e->job->comm));
  double begin = mo_seconds();
  MO_TRY(compute_stage(e, stage, e->weights[stage]));
  if (e->micro == plan->n_micro - 1) {
    MO_TRY(e->op->sync(e->job->backend));
    if (stage >= 1 && stage <= e->job->spec->n_layers)
      MO_TRY(mo_accumulator_check_layer(e->job->accumulator, stage - 1));
    mo_streamer_release(e->streamer, stage);
    mo_progress_stage(&e->progress, stage);
  }
  timing->compute += mo_seconds() - begin;
  return mo_comm_poll(e->job->comm);
}

static mo_status run_block(engine *e, int64_t index, mo_timing_row *timing) {
  const mo_plan *plan = e->job->plan;
  const mo_block *block = plan->blocks + index;
  MO_TRY(mo_transport_post_receives(e->transport, index));
  for (e->micro = 0; e->micro < plan->n_micro; e->micro++) {
    double begin = mo_seconds();
    MO_TRY(mo_transport_await(e->transport, e->micro));
    timing[0].wait += mo_seconds() - begin;
    for (int64_t s = 0; s < block->n_stages; s++) MO_TRY(run_stage(e, block->first_stage + s, timing + s));
    MO_TRY(mo_transport_send(e->transport, index, e->micro));
  }
  return MO_OK;
}

static mo_status run_blocks(engine *e, int64_t *timing_rows) {
  const mo_plan *plan = e->job->plan;
  int rank = mo_comm_rank(e->job->comm);
  for (int64_t b = 0; b < plan->n_blocks; b++) {
    const mo_block *block = plan->blocks + b;
    if (block->rank != rank) continue;
    mo_timing_row *timing = e->job->timing + *timing_rows;
    for (int64_t s = 0; s < block->n_stages; s++)
      timing[s] = (mo_timing_row){.rank = rank, .layer = (int32_t)(block->first_stage + s - 1)};
    MO_TRY(run_block(e, b, timing));
    *timing_rows += block->n_stages;
  }
  MO_TRY(mo_transport_finish(e->transport));
  for (int64_t i = 0; i < *timing_rows; i++) {
    mo_stream_timing stream = mo_streamer_timing(e->streamer, e->job->timing[i].layer + 1);
    e->job->timing[i].bytes_read = stream.bytes_read;
    e->job->timing[i].read = stream.read_seconds;
    e->job->timing[i].copy = stream.copy_seconds;
    e->job->timing[i].wait += stream.wait_seconds;
  }
  return mo_streamer_check(e->streamer);
}

/* The rank's bitmap of positions goes to the accumulator. */
static mo_status collect_positions(engine *e) {
  const mo_plan *plan = e->job->plan;
  size_t bytes = (size_t)(plan->n_sequences * e->job->spec->hidden * ((plan->length + 63) / 64)) * sizeof(uint64_t);
  uint64_t *words = mo_alloc(bytes, 1);
  if (!words) return MO_FAILED;
  mo_status status = e->op->download(e->job->backend, e->positions, bytes, words);
  if (status == MO_OK) mo_accumulator_add_positions(e->job->accumulator, words);
  free(words);
  return status;
}

static mo_status open_buffers(engine *e) {
  const mo_plan *plan = e->job->plan;
  const mo_engine_job *job = e->job;
  size_t micro = (size_t)plan->n_micro, batch = (size_t)values_of(e, plan->micro_batch);
  size_t words = (size_t)(plan->n_sequences * job->spec->hidden * ((plan->length + 63) / 64));
  e->rows = mo_alloc(micro, sizeof *e->rows);
  e->weights = mo_alloc((size_t)plan->n_stages, sizeof *e->weights);
  e->nll = mo_alloc((size_t)(plan->micro_batch * plan->length), sizeof *e->nll);
  if (!e->rows || !e->weights || !e->nll) return MO_FAILED;
  if ((job->config->output.all_activations || job->config->output.n_activations) &&
      !(e->site_host = mo_alloc(batch, sizeof(float))))
    return MO_FAILED;
  MO_TRY(e->op->alloc(job->backend, words * sizeof(uint64_t), (void **)&e->positions));
  MO_TRY(e->op->zero(job->backend, e->positions, words * sizeof(uint64_t)));
  MO_TRY(e->op->alloc(job->backend, (size_t)plan->activation_bytes, &e->x));
  return mo_workspace_open(&e->workspace, job->spec, job->backend, plan->micro_batch, plan->length);
}

static mo_status open_transport(engine *e, const mo_transport_table *table) {
  const mo_engine_job *job = e->job;
  const mo_plan *plan = job->plan;
  for (int64_t i = 0; i < plan->n_micro; i++) {
    size_t offset = (size_t)values_of(e, first_sequence(plan, i)) * (size_t)job->backend->activation_bytes;
    e->rows[i] = (mo_transport_rows){.data = (char *)e->x + offset, .rows = batch_of(plan, i) * plan->length};
  }
  mo_transport_job transport = {
      .comm = job->comm, .backend = job->backend, .plan = plan, .rows = e->rows, .width = job->spec->hidden};
  return mo_transport_open(&e->transport, table, &transport);
}

static mo_status open_streamer(engine *e, int64_t *stages) {
  const mo_plan *plan = e->job->plan;
  int rank = mo_comm_rank(e->job->comm);
  mo_stream_plan stream = {.stages = stages, .arena_bytes = plan->arena_bytes[rank], .n_readers = e->job->readers};
  for (int64_t stage = 0; stage < plan->n_stages; stage++)
    if (mo_plan_rank_of(plan, stage) == rank) stages[stream.n_stages++] = stage;
  return mo_streamer_open(&e->streamer, &stream, e->job->spec, e->job->catalogue, e->job->checkpoint, e->job->backend);
}

static void close_engine(engine *e) {
  bool rows_free = mo_transport_close(e->transport);
  mo_streamer_close(e->streamer);
  if (!rows_free) return; /* after a failure messages may still read or write them until the process ends */
  mo_workspace_close(e->workspace);
  e->op->free(e->job->backend, e->x);
  e->op->free(e->job->backend, e->positions);
  free(e->rows);
  free(e->weights);
  free(e->nll);
  free(e->site_host);
}

mo_status mo_engine_run(const mo_engine_job *job, int64_t *timing_rows) {
  engine e = {.job = job, .op = job->backend->table};
  const mo_transport_table *table;
  *timing_rows = 0;
  MO_TRY(mo_transport_choose(job->comm, job->backend, &table));
  if (!job->plan->resident_bytes[mo_comm_rank(job->comm)]) return MO_OK; /* a surplus rank */
  int64_t *stages = mo_alloc((size_t)job->plan->n_stages, sizeof *stages);
  mo_status status = stages ? MO_OK : MO_FAILED;
  if (status == MO_OK) status = open_streamer(&e, stages);
  if (status == MO_OK) status = open_buffers(&e);
  if (status == MO_OK) status = open_transport(&e, table);
  if (status == MO_OK) {
    mo_progress_start(&e.progress, job->plan, job->comm, job->spec->n_layers);
    status = run_blocks(&e, timing_rows);
    mo_progress_end(&e.progress);
  }
  if (status == MO_OK) status = collect_positions(&e);
  close_engine(&e);
  free(stages);
  return status;
}
