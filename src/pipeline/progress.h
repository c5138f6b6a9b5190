/* Private to the pipeline: progress on stderr, a bar on a terminal (one rank), else a line per layer from the layer's rank. */
#ifndef MO_PIPELINE_PROGRESS_H
#define MO_PIPELINE_PROGRESS_H

#include "moe_outliers/comm.h"
#include "moe_outliers/plan.h"

typedef struct {
  const mo_plan *plan;
  int rank;
  int64_t n_layers, stages_done, stages_mine, bytes_done, bytes_mine;
  double started;
  bool bar;
  double stalled; /* seconds that were shown last */
} mo_progress;

/* first_stage: stages before it need nothing any more. */
void mo_progress_start(mo_progress *progress, const mo_plan *plan, const mo_comm *comm, int64_t n_layers,
                       int64_t first_stage);
/* This rank has finished a stage for all micro-batches. */
void mo_progress_stage(mo_progress *progress, int64_t stage);
/* Nothing has come from storage for so many seconds; shown from 5 s on, every 5 s. */
void mo_progress_stalled(mo_progress *progress, double seconds);
/* Clear the bar. */
void mo_progress_end(mo_progress *progress);

/* Seconds of a monotonic clock. */
double mo_seconds(void);

#endif
