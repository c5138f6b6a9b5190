/* Private to the pipeline: how far the run is, on stderr: a bar on a terminal, else a line per layer and one every 10 s.
 *
 * One rank speaks for all: that of the last block, whose end is the run's. The others send it notes when they poll. How much is
 * done is counted in tasks, each as much as it computes: with resident weights some micro-batches are far ahead of others, and
 * no layer is done for long. The time left is the longer one of computing and of reading the rest. A thread shows it, as a
 * task may take long; it also tells when storage does not answer. */
#ifndef MO_PIPELINE_PROGRESS_H
#define MO_PIPELINE_PROGRESS_H

#include "moe_outliers/clock.h"
#include "moe_outliers/comm.h"
#include "moe_outliers/plan.h"

typedef struct mo_progress mo_progress;

/* What it tells of; owned by the caller, outlives the progress. */
typedef struct {
  mo_comm *comm;
  const mo_plan *plan;
  const mo_catalogue *catalogue;
  const mo_checkpoint *checkpoint;
  mo_streamer *streamer; /* of this rank */
  const int64_t *start;  /* [n_micro] the stage at which each micro-batch begins */
  int64_t n_layers;
  double started; /* mo_seconds() when the first byte was asked for */
} mo_progress_job;

/* On the ranks that compute something, all of them. */
MO_CHECKED mo_status mo_progress_open(mo_progress **progress, const mo_progress_job *job);
/* This rank has finished a task, one of a stage's. */
void mo_progress_task(mo_progress *progress, int64_t stage, int64_t sequences);
/* This rank has finished a stage for all micro-batches; in the order of the plan. */
MO_CHECKED mo_status mo_progress_stage(mo_progress *progress);
/* Send or take notes, if it is time. Cheap: called in every wait and within tasks. */
MO_CHECKED mo_status mo_progress_poll(mo_progress *progress);
/* After this rank's last task: on the rank that speaks, wait until all have finished and tell the last of it. */
MO_CHECKED mo_status mo_progress_finish(mo_progress *progress);
/* Stop the thread, take the bar away. NULL is allowed. */
void mo_progress_close(mo_progress *progress);

#endif
