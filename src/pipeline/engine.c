/* One rank's loop: for each of its blocks, compute the tasks (stage, micro-batch) as the schedule picks them.
 *
 * The residual stream of all sequences stays in backend memory; weights come through the streamer, a stage's are held
 * until the last micro-batch has passed it. Rows come and go through the transport, which overlaps them with compute.
 * The recorder keeps on disk what another run needs to go on. Nothing here depends on the order of the tasks but the
 * time. */
#include "pipeline/engine.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe_outliers/phases.h"
#include "pipeline/resume_recorder.h"
#include "pipeline/run_plan.h"
#include "pipeline/schedule.h"
#include "pipeline/transport.h"

static const double task_seconds = 2; /* that a task may still take when the run is asked to stop */

struct mo_engine {
  mo_engine_job own;
  const mo_engine_job *job; /* own */
  const mo_backend_table *op;
  double begin;        /* of the first read */
  int64_t *streamed;   /* [n_stages] what the streamer brings */
  mo_results *results; /* the caller's */
  mo_streamer *streamer;
  mo_workspace *workspace;
  void *x; /* [N, S, H] residual stream */
  mo_transport *transport;
  mo_transport_rows *rows;          /* [n_micro] parts of x */
  mo_schedule schedule;             /* of the current block */
  mo_recorder *recorder;            /* NULL: a pass of the ablation leaves nothing to go on from */
  float *nll;                       /* host [B, S-1] */
  const mo_stage_weights **weights; /* [n_stages] of the stages that are held */
  int64_t acquired;                 /* the current block's stages below it have been acquired */
  mo_timing_row *timing;            /* [n_stages] by stage, without the streamer's part */
  mo_progress *progress;
  int64_t micro;   /* the micro-batch under way */
  mo_site site;    /* whose statistics are under way */
  double idle;     /* seconds without a task since the last one */
  double stopping; /* when the request to stop was first seen, 0: not yet */
};

typedef struct mo_engine engine;

static int64_t values_of(const engine *e, int64_t sequences) {
  return sequences * e->job->plan->length * e->job->spec->hidden;
}

/* The rows of a micro-batch are now those before the stage; -1: they are not to be used. */
static void hold(engine *e, int64_t micro, int64_t stage) {
  if (e->recorder) mo_recorder_hold(e->recorder, micro, stage);
}

/* Note which rows are here by now. Also within tasks: a peer's transfer waits until this rank takes its part. */
static mo_status look_for_rows(engine *e) {
  for (int64_t micro; (micro = mo_schedule_awaited(&e->schedule)) >= 0;) {
    bool here;
    MO_TRY(mo_transport_arrived(e->transport, micro, &here));
    if (!here) return MO_OK;
    e->schedule.here[micro] = true;
    if (e->schedule.next[micro] == e->schedule.first_stage) hold(e, micro, e->schedule.first_stage);
  }
  return MO_OK;
}

/* While weights are waited for. */
static mo_status poll_waiting(void *context) {
  engine *e = context;
  MO_TRY(mo_progress_poll(e->progress));
  MO_TRY(look_for_rows(e));
  return mo_comm_poll(e->job->comm);
}

/* Within a task: one that has begun is finished although the run is asked to stop, unless that takes too long. */
static mo_status poll_in_task(engine *e) {
  mo_status status = look_for_rows(e);
  if (status == MO_OK) status = mo_progress_poll(e->progress);
  if (status == MO_OK) status = mo_comm_poll(e->job->comm);
  if (status != MO_STOPPED) return status;
  if (e->stopping == 0) e->stopping = mo_seconds();
  return mo_seconds() - e->stopping < task_seconds ? MO_OK : MO_STOPPED;
}

/* --- observer: what the layer tells --- */

static mo_status begin_statistics(engine *e, int64_t threshold, const void *x) {
  const mo_plan *plan = e->job->plan;
  bool of_experts = threshold == 0 && e->site == MO_SITE_LN_MLP && e->job->config->analysis.experts;
  return e->op->site_statistics(e->job->backend, x, mo_plan_batch(plan, e->micro), plan->length, e->job->spec->hidden,
                                (float)e->job->config->analysis.thresholds[threshold],
                                mo_recorder_positions(e->recorder, threshold), 0,
                                of_experts ? mo_recorder_row_counts(e->recorder) : NULL);
}

static mo_status end_statistics(engine *e, int64_t threshold) {
  mo_site_statistics statistics;
  MO_TRY(e->op->site_results(e->job->backend, &statistics));
  return mo_recorder_site(e->recorder, threshold, e->site, &statistics);
}

/* The first threshold's comes last: it is awaited beside the layer's work. */
static mo_status on_site(void *context, int64_t layer, mo_site site, const void *x) {
  engine *e = context;
  (void)layer; /* the recorder knows the task */
  e->site = site;
  for (int64_t i = 1; i < e->job->config->analysis.n_thresholds; i++) {
    MO_TRY(begin_statistics(e, i, x));
    MO_TRY(end_statistics(e, i));
  }
  MO_TRY(begin_statistics(e, 0, x));
  MO_TRY(mo_recorder_activations(e->recorder, site, x));
  return poll_in_task(e);
}

static mo_status on_settle(void *context) {
  engine *e = context;
  MO_TRY(end_statistics(e, 0));
  if (e->site == MO_SITE_LN_MLP) MO_TRY(mo_recorder_collect(e->recorder));
  return poll_in_task(e);
}

static mo_status on_site_of_pass(void *context, int64_t layer, mo_site site, const void *x) {
  (void)layer;
  (void)site;
  (void)x;
  return poll_in_task(context);
}

static mo_status on_routing(void *context, int64_t layer, const int64_t *counts) {
  engine *e = context;
  (void)layer;
  MO_TRY(mo_recorder_take_experts(e->recorder)); /* the last task's, which are there by now */
  MO_TRY(mo_recorder_routing(e->recorder, counts));
  return poll_in_task(e);
}

static mo_status on_experts(void *context, int64_t layer, const mo_routing *routing, const float *peaks,
                            const float *shared) {
  engine *e = context;
  (void)layer;
  MO_TRY(e->op->expert_statistics(e->job->backend, e->job->spec, e->rows[e->micro].rows,
                                  mo_recorder_row_counts(e->recorder), routing, peaks, shared));
  mo_recorder_expect_experts(e->recorder);
  return MO_OK;
}

/* --- a task --- */

static mo_status compute_layer(engine *e, int64_t layer, void *x) {
  mo_ablation_pass *pass = e->job->pass;
  int64_t B = mo_plan_batch(e->job->plan, e->micro);
  mo_layer_observer observer = {.context = e, .site = on_site, .routing = on_routing, .settle = on_settle};
  if (e->job->config->analysis.experts) observer.experts = on_experts;
  if (!pass) return mo_layer_forward(e->workspace, layer, e->weights[layer + 1], x, B, &observer);
  observer = (mo_layer_observer){.context = e, .site = on_site_of_pass};
  mo_ablation_pass_prepare(pass, e->micro, layer, &observer);
  MO_TRY(mo_layer_forward(e->workspace, layer, e->weights[layer + 1], x, B, &observer));
  return mo_ablation_pass_layer(pass, e->micro, layer);
}

static mo_status compute_head(engine *e, const int32_t *ids, const void *x) {
  const mo_plan *plan = e->job->plan;
  float *nll = e->nll, *top = NULL;
  if (e->job->pass) mo_ablation_pass_rows(e->job->pass, e->micro, &nll, &top);
  MO_TRY(
      mo_head_forward(e->workspace, e->weights[plan->n_stages - 1], x, mo_plan_batch(plan, e->micro), ids, nll, top));
  return e->recorder ? mo_recorder_nll(e->recorder, nll) : MO_OK;
}

static mo_status compute_stage(engine *e, int64_t stage) {
  const mo_plan *plan = e->job->plan;
  const int32_t *ids = e->job->tokens->ids + mo_plan_first_sequence(plan, e->micro) * plan->length;
  void *x = e->rows[e->micro].data;
  int64_t rows = e->rows[e->micro].rows;
  if (stage == 0) return e->op->embed(e->job->backend, &e->weights[stage]->one[MO_EMBED], ids, rows, x);
  return stage <= e->job->spec->n_layers ? compute_layer(e, stage - 1, x) : compute_head(e, ids, x);
}

static mo_timing_row timing_so_far(const engine *e, int64_t stage) {
  mo_timing_row row = e->timing[stage];
  mo_stream_timing stream = mo_streamer_timing(e->streamer, stage);
  row.bytes_read += stream.bytes_read;
  row.read += stream.read_seconds;
  row.copy += stream.copy_seconds;
  row.wait += stream.wait_seconds;
  return row;
}

/* The last micro-batch has passed the stage. */
static mo_status finish_stage(engine *e, int64_t stage) {
  MO_TRY(e->op->sync(e->job->backend));
  bool counted = e->recorder && stage >= 1 && stage <= e->job->spec->n_layers;
  for (int64_t i = 0; i < e->job->config->analysis.n_thresholds && counted; i++)
    MO_TRY(mo_accumulator_check_layer(e->job->accumulators[i], stage - 1));
  mo_streamer_release(e->streamer, stage);
  return mo_progress_stage(e->progress);
}

static mo_status acquire(engine *e) {
  int64_t stage = e->acquired;
  double begin = mo_seconds();
  MO_TRY(mo_streamer_acquire(e->streamer, stage, &e->weights[stage], poll_waiting, e));
  e->job->stages[stage].busy += mo_seconds() - begin - mo_streamer_timing(e->streamer, stage).wait_seconds;
  e->acquired++;
  return MO_OK;
}

/* Micro-batches that are through leave in their order. */
static mo_status hand_on(engine *e, int64_t block) {
  for (int64_t micro; (micro = mo_schedule_hand_on(&e->schedule)) >= 0;) {
    if (e->recorder && mo_transport_comes_from_peer(e->job->plan, block + 1)) MO_TRY(mo_recorder_sync(e->recorder));
    MO_TRY(mo_transport_send(e->transport, block, micro));
  }
  return MO_OK;
}

static mo_status record_task(engine *e, int64_t stage, int64_t micro) {
  mo_timing_row timing = timing_so_far(e, stage);
  MO_TRY(mo_recorder_end(e->recorder, &timing));
  hold(e, micro, stage + 1);
  return mo_recorder_save_if_due(e->recorder, micro);
}

static mo_status run_task(engine *e, int64_t block, int64_t micro) {
  int64_t stage = e->schedule.next[micro];
  if (stage == e->acquired) MO_TRY(acquire(e));
  double begin = mo_seconds();
  e->timing[stage].wait += e->idle;
  e->idle = 0;
  e->micro = micro;
  if (e->recorder) MO_TRY(mo_recorder_begin(e->recorder, stage, micro));
  hold(e, micro, -1); /* neither the old rows nor the new ones */
  MO_TRY(compute_stage(e, stage));
  mo_schedule_done(&e->schedule, micro);
  mo_progress_task(e->progress, stage, mo_plan_batch(e->job->plan, micro));
  if (mo_schedule_is_through(&e->schedule, stage)) MO_TRY(finish_stage(e, stage));
  e->timing[stage].compute += mo_seconds() - begin;
  if (e->recorder) MO_TRY(record_task(e, stage, micro));
  MO_TRY(hand_on(e, block));
  e->job->stages[stage].busy += mo_seconds() - begin;
  return mo_comm_poll(e->job->comm);
}

/* --- a block --- */

/* There is nothing to compute at present: wait for weights, if it is only for them, or a little. A micro-batch that is
 * here may begin at a later stage than the one that is loaded: that one is passed over. */
static mo_status rest(engine *e, bool ready, int *round) {
  bool ahead = ready && mo_schedule_pick(&e->schedule, e->schedule.end_stage) >= 0;
  if (ahead || mo_schedule_awaited(&e->schedule) < 0) return acquire(e);
  double begin = mo_seconds();
  MO_TRY(poll_waiting(e));
  if (++*round > 200) usleep(*round > 2000 ? 1000 : 50); /* leave the core to those who work */
  e->idle += mo_seconds() - begin;
  return MO_OK;
}

static mo_status begin_block(engine *e, int64_t index) {
  const mo_plan *plan = e->job->plan;
  const mo_block *block = plan->blocks + index;
  int64_t end = block->first_stage + block->n_stages, first = mo_plan_first_start(e->job->plan, e->job->start);
  e->acquired = block->first_stage > first ? block->first_stage : first; /* stages before it are not streamed */
  mo_schedule_begin(&e->schedule, block->first_stage, end, e->job->start);
  for (int64_t micro = 0; mo_transport_comes_from_peer(plan, index) && micro < plan->n_micro; micro++)
    if (e->job->start[micro] < block->first_stage) hold(e, micro, -1);
  return mo_transport_post_receives(e->transport, index);
}

static mo_status run_block(engine *e, int64_t index) {
  MO_TRY(begin_block(e, index));
  int round = 0;
  while (e->schedule.n_left > 0) {
    MO_TRY(look_for_rows(e));
    bool ready = e->acquired < e->schedule.end_stage && mo_streamer_ready(e->streamer, e->acquired);
    int64_t micro = mo_schedule_pick(&e->schedule, e->acquired + ready);
    if (micro < 0) {
      MO_TRY(rest(e, ready, &round));
    } else {
      MO_TRY(run_task(e, index, micro));
      round = 0;
    }
  }
  return hand_on(e, index); /* those that were through before */
}

static mo_status run_blocks(engine *e) {
  const mo_plan *plan = e->job->plan;
  for (int64_t b = 0; b < plan->n_blocks; b++)
    if (plan->blocks[b].rank == mo_comm_rank(e->job->comm)) MO_TRY(run_block(e, b));
  MO_TRY(mo_recorder_take_experts(e->recorder));
  MO_TRY(mo_transport_finish(e->transport));
  return mo_streamer_check(e->streamer);
}

static bool is_mine(const engine *e, int64_t stage) {
  return mo_plan_rank_of(e->job->plan, stage) == mo_comm_rank(e->job->comm);
}

static void collect_timing(engine *e, int64_t *timing_rows) {
  for (int64_t stage = 0; stage < e->job->plan->n_stages; stage++) {
    if (!is_mine(e, stage)) continue;
    mo_stream_timing stream = mo_streamer_timing(e->streamer, stage);
    e->job->timing[(*timing_rows)++] = timing_so_far(e, stage);
    if (!stream.bytes_read) continue;
    e->job->stages[stage].began = stream.began - e->begin;
    e->job->stages[stage].ready = stream.ready - e->begin;
  }
}

/* Asked to stop: rows that are on their way here are worth a moment. */
static mo_status save(engine *e) {
  for (double end = mo_seconds() + 0.1; mo_seconds() < end && mo_schedule_awaited(&e->schedule) >= 0; usleep(1000)) {
    mo_status status = look_for_rows(e);
    if (status != MO_OK && status != MO_STOPPED) return status;
  }
  if (e->recorder) MO_TRY(mo_recorder_save(e->recorder));
  return MO_STOPPED;
}

/* --- opening and closing --- */

static mo_status open_buffers(engine *e) {
  const mo_engine_job *job = e->job;
  const mo_plan *plan = job->plan;
  size_t stages = (size_t)plan->n_stages;
  e->rows = mo_alloc((size_t)plan->n_micro, sizeof *e->rows);
  e->weights = mo_alloc(stages, sizeof *e->weights);
  e->timing = mo_alloc(stages, sizeof *e->timing);
  e->nll = mo_alloc((size_t)(plan->micro_batch * plan->length), sizeof *e->nll);
  if (!e->rows || !e->weights || !e->timing || !e->nll) return MO_FAILED;
  for (int64_t stage = 0; stage < plan->n_stages; stage++)
    e->timing[stage] = (mo_timing_row){.rank = mo_comm_rank(job->comm), .layer = (int32_t)(stage - 1)};
  MO_TRY(mo_schedule_open(&e->schedule, plan->n_stages, plan->n_micro));
  MO_TRY(e->op->alloc(job->backend, (size_t)plan->activation_bytes, &e->x));
  int64_t before = 0;
  for (int64_t i = 0; i < plan->n_micro; before += mo_plan_batch(plan, i++)) {
    size_t offset = (size_t)values_of(e, before) * (size_t)job->backend->activation_bytes;
    e->rows[i] = (mo_transport_rows){.data = (char *)e->x + offset, .rows = mo_plan_batch(plan, i) * plan->length};
  }
  return mo_workspace_open(&e->workspace, job->spec, job->backend, plan->micro_batch, plan->length);
}

static mo_status open_transport(engine *e, const mo_transport_table *table) {
  const mo_engine_job *job = e->job;
  mo_transport_job transport = {.comm = job->comm,
                                .backend = job->backend,
                                .plan = job->plan,
                                .rows = e->rows,
                                .width = job->spec->hidden,
                                .start = job->start};
  return mo_transport_open(&e->transport, table, &transport);
}

static mo_status open_recorder(engine *e) {
  const mo_engine_job *job = e->job;
  if (job->pass) return MO_OK;
  mo_recorder_job recorder = {.resume = job->resume,
                              .backend = job->backend,
                              .accumulators = job->accumulators,
                              .results = e->results,
                              .rows = e->rows};
  MO_TRY(mo_recorder_open(&e->recorder, &recorder));
  return mo_recorder_restore(e->recorder, e->timing);
}

static mo_status open_streamer(engine *e) {
  const mo_plan *plan = e->job->plan;
  int rank = mo_comm_rank(e->job->comm);
  mo_stream_plan stream = mo_run_stream(e->job->config, e->job->readers, e->job->backend->table->host_memory);
  stream.stages = e->streamed = mo_alloc((size_t)plan->n_stages, sizeof *e->streamed);
  if (!e->streamed) return MO_FAILED;
  stream.arena_bytes = plan->arena_bytes[rank];
  for (int64_t stage = mo_plan_first_start(e->job->plan, e->job->start); stage < plan->n_stages; stage++)
    if (is_mine(e, stage)) e->streamed[stream.n_stages++] = stage;
  return mo_streamer_open(&e->streamer, &stream, e->job->spec, e->job->catalogue, e->job->checkpoint, e->job->backend);
}

static mo_status open_progress(engine *e) {
  const mo_engine_job *job = e->job;
  mo_progress_job progress = {.comm = job->comm,
                              .plan = job->plan,
                              .catalogue = job->catalogue,
                              .checkpoint = job->checkpoint,
                              .streamer = e->streamer,
                              .start = job->start,
                              .n_layers = job->spec->n_layers,
                              .started = e->begin};
  return mo_progress_open(&e->progress, &progress);
}

/* After a failure or a stop messages may still read or write the rows until the process ends, and a reader whose storage does
 * not answer the arena: nothing is freed. */
static engine *volatile abandoned; /* for leak checkers */

/* A rank without a block has nothing to do. */
static bool is_surplus(const engine *e) { return !e->job->plan->resident_bytes[mo_comm_rank(e->job->comm)]; }

mo_status mo_engine_open(mo_engine **opened, const mo_engine_job *job) {
  engine *e = *opened = mo_alloc(1, sizeof *e);
  if (!e) return MO_FAILED;
  e->own = *job;
  e->job = &e->own;
  e->op = job->backend->table;
  e->begin = mo_seconds();
  return is_surplus(e) ? MO_OK : open_streamer(e);
}

void mo_engine_close(mo_engine *e) {
  if (!e) return;
  bool rows_free = mo_transport_close(e->transport);
  e->job->clock->stuck = !mo_streamer_close(e->streamer);
  mo_recorder_close(e->recorder);
  abandoned = e;
  if (!rows_free || e->job->clock->stuck) return;
  abandoned = NULL;
  mo_workspace_close(e->workspace);
  e->op->free(e->job->backend, e->x);
  mo_schedule_close(&e->schedule);
  free(e->streamed);
  free(e->rows);
  free(e->weights);
  free(e->timing);
  free(e->nll);
  free(e);
}

static mo_status open_parts(engine *e, const mo_transport_table *table) {
  MO_TRY(open_buffers(e));
  MO_TRY(open_transport(e, table));
  MO_TRY(open_recorder(e));
  return open_progress(e);
}

mo_status mo_engine_run(mo_engine *e, mo_results *results, int64_t *timing_rows) {
  mo_engine_clock *clock = e->job->clock;
  const mo_transport_table *table;
  *timing_rows = 0;
  e->results = results;
  MO_TRY(mo_transport_choose(e->job->comm, e->job->backend, &table));
  if (is_surplus(e)) return MO_OK;
  mo_status status = open_parts(e, table);
  if (status == MO_OK) {
    clock->opened = mo_seconds() - e->begin;
    mo_phase_ends(MO_PHASE_OPEN);
    status = run_blocks(e);
    clock->done = mo_seconds() - e->begin;
    if (status == MO_OK) status = mo_progress_finish(e->progress);
    if (status == MO_STOPPED) status = save(e);
  }
  mo_progress_close(e->progress);
  if (status == MO_OK) collect_timing(e, timing_rows);
  return status;
}
