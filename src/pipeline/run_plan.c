#include "pipeline/run_plan.h"

#include <stdlib.h>
#include <string.h>

/* --- before the run --- */

/* The type that all matrices are stored in, MXFP4 apart; MO_OTHER if there are several. */
static mo_dtype stored_type(const mo_catalogue *catalogue) {
  bool any = false;
  mo_dtype stored = MO_OTHER;
  for (int64_t stage = 0; stage < catalogue->n_stages; stage++)
    for (int64_t i = 0; i < catalogue->stages[stage].n_entries; i++) {
      const mo_tensor *tensor = catalogue->stages[stage].entries[i].tensor;
      if (tensor->n_dims < 2 || tensor->dtype == MO_U8) continue;
      if (any && tensor->dtype != stored) return MO_OTHER;
      stored = tensor->dtype;
      any = true;
    }
  return stored;
}

/* Memory of a rank for everything: what the config says, else most of what is free, the same on all ranks. On a GPU what the
 * process holds already is part of the budget; on the host others must be left room. */
static int64_t own_memory(const mo_run_plan_job *job) {
  const mo_config *config = job->config;
  const mo_backend_table *table = job->backend->table;
  if (config->engine.device_memory_gb > 0) return (int64_t)(config->engine.device_memory_gb * 1e9);
  int64_t available = table->available_memory(job->backend, mo_comm_local_size(job->comm));
  mo_backend_load nothing = {.spec = job->spec, .precision = job->backend->precision};
  if (available <= 0) return 0;
  return table->host_memory ? available / 4 * 3 : available / 100 * 92 + table->memory(&nothing).overhead;
}

mo_stream_plan mo_run_stream(const mo_config *config, int readers) {
  return (mo_stream_plan){.n_readers = readers,
                          .host_bytes = (int64_t)(config->engine.host_memory_gb * 1e9),
                          .verify = config->engine.verify};
}

static int64_t staging_bytes(const mo_run_plan_job *job) {
  mo_stream_plan stream = mo_run_stream(job->config, job->readers);
  return mo_stream_host_bytes(&stream, job->backend->table->host_memory);
}

/* Least memory, and most threads and staging, of all ranks. */
static mo_status agree(const mo_run_plan_job *job, int64_t *memory, int *threads, int64_t *staging) {
  static int64_t bounds[3]; /* must outlive a reduction that a peer's failure ends early */
  bounds[0] = own_memory(job);
  bounds[1] = -job->threads;
  bounds[2] = -staging_bytes(job);
  MO_TRY(mo_comm_allreduce(job->comm, bounds, 3, MO_MIN_I64));
  *memory = bounds[0];
  *threads = (int)-bounds[1];
  *staging = -bounds[2];
  return MO_OK;
}

static bool is_cuda(const mo_backend *backend) { return backend->table->memory == mo_backend_memory_cuda; }

mo_status mo_run_plan(mo_plan *plan, const mo_run_plan_job *job) {
  const mo_config *config = job->config;
  const mo_backend_table *table = job->backend->table;
  int64_t memory, staging;
  int threads;
  const char *device;
  MO_TRY(agree(job, &memory, &threads, &staging));
  int64_t *stage_bytes = mo_alloc((size_t)job->catalogue->n_stages, sizeof *stage_bytes);
  if (!stage_bytes) return MO_FAILED;
  for (int64_t stage = 0; stage < job->catalogue->n_stages; stage++)
    stage_bytes[stage] = job->catalogue->stages[stage].arena_bytes;
  mo_plan_request request = {
      .spec = job->spec,
      .n_sequences = job->tokens->n_sequences,
      .length = job->tokens->length,
      .micro_batch = config->engine.micro_batch,
      .first_stage = job->first_stage,
      .perplexity = config->analysis.perplexity,
      .stores_activations = config->output.all_activations || config->output.n_activations,
      .n_ranks = mo_comm_size(job->comm),
      .activation_bytes = job->backend->activation_bytes,
      .partition = config->engine.partition,
      .stage_bytes = stage_bytes,
      .element_bytes = job->spec->stored_bytes,
      .memory_bytes = memory,
      .rates = mo_plan_default_rates(is_cuda(job->backend), config->deployment.gpu_filter, config->engine.precision,
                                     threads, &device),
      .memory_of = table->memory,
      .precision = config->engine.precision,
      .threads = threads,
      .stored = stored_type(job->catalogue),
      .host_memory = !is_cuda(job->backend),
      .staging_bytes = staging,
  };
  request.rates.ranks_per_node = MO_PLAN_RANKS_PER_NODE; /* as `plan` assumes, so that it shows this plan */
  mo_status status = mo_plan_make(plan, &request);
  free(stage_bytes);
  return status;
}

/* --- after the run --- */

/* What all ranks' first stages took. Everything is a sum over ranks. */
typedef struct {
  double *stage;                     /* [n_stages] seconds of a stage whose own time is used; 0: of its kind */
  double *kind_seconds, *kind_flops; /* [n_stages] by the kind's first stage */
  double *rank_seconds;              /* [n_ranks] measured, from the first read to the last product */
  double *bandwidth;                 /* bytes per second */
  double *ranks;                     /* that read something */
  double *counted;                   /* stages used */
  double *opened;                    /* seconds before the first task */
} calibration;

enum { SCALARS = 4 };

static size_t sums_of(const mo_plan *plan) { return 3 * (size_t)plan->n_stages + (size_t)plan->n_ranks + SCALARS; }

/* The members of a calibration in one block, so that one reduction sums them. */
static calibration lay_out(double *sums, const mo_plan *plan) {
  int64_t stages = plan->n_stages;
  calibration c = {.stage = sums, .kind_seconds = sums + stages, .kind_flops = sums + 2 * stages};
  c.rank_seconds = sums + 3 * stages;
  c.bandwidth = c.rank_seconds + plan->n_ranks;
  c.ranks = c.bandwidth + 1;
  c.counted = c.ranks + 1;
  c.opened = c.counted + 1;
  return c;
}

static bool same_kind(const mo_layer_spec *a, const mo_layer_spec *b) {
  return a->mixer == b->mixer && a->mlp == b->mlp && a->window == b->window;
}

/* The first stage that is like this one. */
static int64_t kind_of(const mo_model_spec *spec, int64_t stage) {
  if (stage < 1 || stage > spec->n_layers) return stage;
  int64_t first = 1;
  while (!same_kind(spec->layers + first - 1, spec->layers + stage - 1)) first++;
  return first;
}

/* Times of a few stages of each kind; of more where there are many. */
static int64_t calibration_stages(const mo_run_measure *measure) {
  const int64_t fewest = 3, part = 8;
  return measure->n_rows / part > fewest ? measure->n_rows / part : fewest;
}

/* This rank's part. The first stage of a kind may hold warm-up, so that the rate is that of the ones after it. seen: [n_stages]
 * zeros. */
static void calibrate(const mo_run_plan_job *job, const mo_plan *plan, const mo_run_measure *measure, int64_t *seen,
                      calibration *c) {
  mo_stream_plan stream = mo_run_stream(job->config, job->readers);
  int64_t most = calibration_stages(measure);
  double bytes = 0, busy = 0;
  for (int64_t i = 0; i < measure->n_rows; i++) {
    const mo_timing_row *row = measure->rows + i;
    int64_t stage = row->layer + 1, kind = kind_of(job->spec, stage);
    if (i < most) {
      bytes += (double)row->bytes_read;
      busy += row->read + row->copy;
    }
    if (seen[kind] == most) continue;
    c->stage[stage] = row->compute;
    ++*c->counted;
    if (++seen[kind] == 2) c->kind_seconds[kind] = c->kind_flops[kind] = 0;
    c->kind_seconds[kind] += row->compute;
    c->kind_flops[kind] += plan->costs[stage].flops;
  }
  c->rank_seconds[mo_comm_rank(job->comm)] = measure->seconds;
  if (!(busy > 0)) return;
  *c->bandwidth = bytes * mo_stream_ring_of(&stream).n_readers / busy;
  *c->opened = measure->opened;
  *c->ranks = 1;
}

/* Seconds of every stage: its own where it was measured, else by its kind's rate, else by that of all kinds. */
static void fill_seconds(const mo_run_plan_job *job, const mo_plan *plan, calibration *c) {
  double seconds = 0, flops = 0;
  for (int64_t kind = 0; kind < plan->n_stages; kind++) {
    if (!(c->kind_flops[kind] > 0)) continue;
    seconds += c->kind_seconds[kind];
    flops += c->kind_flops[kind];
  }
  for (int64_t stage = 0; stage < plan->n_stages; stage++) {
    int64_t kind = kind_of(job->spec, stage);
    if (c->stage[stage] > 0) continue;
    if (c->kind_flops[kind] > 0)
      c->stage[stage] = plan->costs[stage].flops * c->kind_seconds[kind] / c->kind_flops[kind];
    else if (flops > 0)
      c->stage[stage] = plan->costs[stage].flops * seconds / flops;
  }
}

static void print_comparison(const mo_plan *plan, const mo_plan_time *time, const calibration *c) {
  bool storage = time->storage_alone >= time->compute_alone;
  double seconds = 0, flops = 0, measured = 0;
  for (int rank = 0; rank < plan->n_ranks; rank++)
    measured = c->rank_seconds[rank] > measured ? c->rank_seconds[rank] : measured;
  for (int64_t stage = plan->first_stage; stage < plan->n_stages; stage++) {
    seconds += c->stage[stage];
    flops += plan->costs[stage].flops;
  }
  fprintf(
      stderr,
      "moe-outliers: predicted %.3g s, measured %.3g s from the first read to the last product, bound by %s (rates of "
      "the first %.0f of %lld stages: %.3g GB/s and %.3g TFLOP/s a rank)\n",
      time->seconds, measured, storage ? "storage" : "compute", *c->counted,
      (long long)(plan->n_stages - plan->first_stage), 1e-9 * *c->bandwidth / *c->ranks,
      seconds > 0 ? 1e-12 * flops / seconds : 0);
}

static mo_status compare(const mo_run_plan_job *job, const mo_plan *plan, const mo_run_measure *measure, double *sums,
                         int64_t *seen) {
  const char *device;
  mo_plan_time time;
  calibration c = lay_out(sums, plan);
  calibrate(job, plan, measure, seen, &c);
  MO_TRY(mo_comm_allreduce(job->comm, sums, sums_of(plan), MO_SUM_F64));
  if (!(*c.ranks > 0)) return MO_OK; /* nothing was read */
  fill_seconds(job, plan, &c);
  mo_plan_rates rates = mo_plan_default_rates(is_cuda(job->backend), "", job->config->engine.precision, 1, &device);
  rates.stage_seconds = c.stage;
  rates.rank_bytes_per_second = *c.bandwidth / *c.ranks;
  rates.bytes_per_second = *c.bandwidth; /* of all that read at the start, at the same time */
  rates.start_seconds = *c.opened / *c.ranks;
  MO_TRY(mo_plan_predict(plan, &rates, &time));
  if (mo_comm_rank(job->comm) == 0) print_comparison(plan, &time, &c);
  return MO_OK;
}

mo_status mo_run_compare_time(const mo_run_plan_job *job, const mo_plan *plan, const mo_run_measure *measure) {
  if (plan->n_blocks == 0) return MO_OK;
  double *sums = mo_alloc(sums_of(plan), sizeof *sums);
  int64_t *seen = mo_alloc((size_t)plan->n_stages, sizeof *seen);
  mo_status status = mo_comm_join(job->comm, sums && seen ? MO_OK : MO_FAILED);
  if (status == MO_OK) status = compare(job, plan, measure, sums, seen);
  free(sums);
  free(seen);
  return status;
}
