/* Private to the pipeline: after a run, the model again with its outlier features zeroed, and with random ones. */
#ifndef MO_PIPELINE_ABLATION_H
#define MO_PIPELINE_ABLATION_H

#include "moe_outliers/ablation.h"
#include "moe_outliers/analysis.h"
#include "pipeline/run_plan.h"

/* The caller's. */
typedef struct {
  mo_run_plan_job plan; /* of the run */
  const mo_checkpoint *checkpoint;
  const mo_analysis *analysis; /* on rank 0: which features are outlier features */
  bool *stuck;                 /* set: as mo_engine_clock's */
} mo_ablation_job;

/* All variants go through the model side by side, in as few passes as the memory allows. The tables are made on rank 0; empty if
 * there is no outlier feature. Collective. */
MO_CHECKED mo_status mo_ablation_run(mo_ablation *tables, const mo_ablation_job *job);

#endif
