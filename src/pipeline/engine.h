/* Private to the pipeline: one rank's part of a run, from the opened input to its accumulated statistics. */
#ifndef MO_PIPELINE_ENGINE_H
#define MO_PIPELINE_ENGINE_H

#include "moe_outliers/analysis.h"
#include "moe_outliers/backend.h"
#include "moe_outliers/comm.h"
#include "moe_outliers/layer.h"
#include "moe_outliers/plan.h"
#include "moe_outliers/results.h"
#include "moe_outliers/tokens.h"
#include "pipeline/progress.h"
#include "pipeline/resume.h"

/* Seconds since the first read was asked for. */
typedef struct {
  double opened; /* when the first task could begin: buffers are there, ranks are connected */
  double done;   /* the end of the last task */
} mo_engine_clock;

/* What the engine works with; owned by the caller, who fills it in. */
typedef struct {
  mo_comm *comm;
  const mo_config *config;
  const mo_model_spec *spec;
  const mo_plan *plan;
  const mo_tokens *tokens;
  const mo_checkpoint *checkpoint;
  const mo_catalogue *catalogue;
  mo_backend *backend;
  mo_accumulator *accumulator;
  mo_results *results;
  const mo_resume *resume; /* where each micro-batch begins, and where finished tasks are recorded */
  mo_timing_row *timing;   /* [n_stages], filled in: this rank's stages */
  mo_engine_clock *clock;  /* filled in */
  int readers;
} mo_engine_job;

/* Compute this rank's blocks. Local, with messages to and from the neighbours in the pipeline. *timing_rows: rows
 * filled. When a rank was asked to stop, what is done is saved and the status is MO_STOPPED. */
MO_CHECKED mo_status mo_engine_run(const mo_engine_job *job, int64_t *timing_rows);

#endif
