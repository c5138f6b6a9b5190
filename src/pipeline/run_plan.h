/* Private to the pipeline: the plan of a run on the ranks and devices at hand, and how its prediction compares with the run. */
#ifndef MO_PIPELINE_RUN_PLAN_H
#define MO_PIPELINE_RUN_PLAN_H

#include "moe_outliers/comm.h"
#include "moe_outliers/plan.h"
#include "moe_outliers/results.h"
#include "moe_outliers/tokens.h"
#include "pipeline/engine.h"

enum { MO_PLAN_RANKS_PER_NODE = 8 }; /* where nobody says how many */

/* What the plan is made from; the caller's. */
typedef struct {
  mo_comm *comm;
  const mo_config *config;
  const mo_model_spec *spec;
  const mo_catalogue *catalogue;
  const mo_tokens *tokens;
  mo_backend *backend;
  int threads;          /* compute threads of this rank */
  int readers;          /* threads that load weights */
  const int64_t *start; /* [n_micro] stages at which the micro-batches of a continued run go on, else NULL */
  int64_t variants;     /* a pass of the ablation, in the memory that the run's plan found; 0: the run itself */
  int64_t followed;     /* by it: outlier features */
  int64_t memory_bytes;
} mo_run_plan_job;

/* Threads of a rank that compute, and that load weights, where it has so many cores. */
int mo_run_threads(const mo_config *config, int cores);
int mo_run_readers(const mo_config *config, int cores);

/* What the config says of the streamer, without stages and arena. host_memory: as the backend's. */
mo_stream_plan mo_run_stream(const mo_config *config, int readers, bool host_memory);

/* Host memory that weights take on their way, at most. */
int64_t mo_run_staging(const mo_config *config, int readers, bool host_memory);

/* The same plan on every rank. Collective. */
MO_CHECKED mo_status mo_run_plan(mo_plan *plan, const mo_run_plan_job *job);

/* Predict the time of the run, or of what was left to do, from what its first stages took, each rank's share of them, and print
 * it beside the measured time: one line on stderr of rank 0. What all ranks measured: stages: [n_stages]. Collective. */
MO_CHECKED mo_status mo_run_compare_time(const mo_run_plan_job *job, const mo_plan *plan, const mo_engine_clock *clock,
                                         const mo_stage_clock *stages);

#endif
