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
#include "pipeline/ablation_pass.h"
#include "pipeline/progress.h"
#include "pipeline/resume.h"

/* Of a stage that this process worked on: seconds since the engine began. */
typedef struct {
  double began, ready; /* its first byte was asked for; it was there whole; 0: it was not read */
  double busy;         /* taken by its tasks, with what is recorded of them and the check of its weights */
} mo_stage_clock;

/* Seconds since the engine began. */
typedef struct {
  double opened; /* when the first task could begin: buffers are there, ranks are connected */
  double done;   /* the end of the last task */
  bool stuck;    /* storage does not answer a reader: what the engine worked with must stay until the process ends */
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
  const int64_t *start;   /* [n_micro] the stage at which each micro-batch begins */
  mo_ablation_pass *pass; /* measures a pass of the ablation, of which no statistics are taken; NULL: the run itself */
  mo_accumulator *const *accumulators; /* [config->analysis.n_thresholds] */
  const mo_resume *resume;             /* where finished tasks are recorded */
  mo_timing_row *timing;               /* [n_stages], filled in: this rank's stages */
  mo_engine_clock *clock;              /* filled in */
  mo_stage_clock *stages;              /* [n_stages] by stage, zeros; filled in: this rank's */
  int readers;
} mo_engine_job;

typedef struct mo_engine mo_engine;

/* Begin to read this rank's weights. Local; does not wait for them. The job is copied. */
MO_CHECKED mo_status mo_engine_open(mo_engine **engine, const mo_engine_job *job);
/* Compute this rank's blocks. Local, with messages to and from the neighbours in the pipeline, but for its begin, which is
 * collective. *timing_rows: rows filled. When a rank was asked to stop, what is done is saved and the status is MO_STOPPED. */
MO_CHECKED mo_status mo_engine_run(mo_engine *engine, mo_results *results, int64_t *timing_rows);
/* Free the engine (NULL is allowed); after a successful run on any thread. */
void mo_engine_close(mo_engine *engine);

#endif
