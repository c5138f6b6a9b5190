#include "pipeline/run_plan.h"

#include <stdlib.h>

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
  if (job->variants) return job->memory_bytes;
  if (config->engine.device_memory_gb > 0) return (int64_t)(config->engine.device_memory_gb * 1e9);
  int64_t available = table->available_memory(job->backend, mo_comm_local_size(job->comm));
  mo_backend_load nothing = {.spec = job->spec, .precision = job->backend->precision};
  if (available <= 0) return 0;
  return table->host_memory ? available / 4 * 3 : available / 100 * 92 + table->memory(&nothing).overhead;
}

static int64_t staging_bytes(const mo_run_plan_job *job) {
  return mo_run_staging(job->config, job->readers, job->backend->table->host_memory);
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
      .start = job->start,
      .perplexity = config->analysis.perplexity,
      .variants = job->variants,
      .followed = job->followed,
      .ablates = !job->variants && config->analysis.ablate == MO_ABLATE_FEATURES,
      .n_thresholds = config->analysis.n_thresholds,
      .stores_activations = !job->variants && (config->output.all_activations || config->output.n_activations),
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
  request.rates.times_read = config->engine.verify ? 2 : 1;
  mo_status status = mo_plan_make(plan, &request);
  free(stage_bytes);
  return status;
}
