/* Private to the pipeline: a rank's part in making its run resumable: it records its finished tasks, saves rows now and
 * then, and puts back what an earlier run left. */
#ifndef MO_PIPELINE_RESUME_RECORDER_H
#define MO_PIPELINE_RESUME_RECORDER_H

#include "moe_outliers/results.h"
#include "pipeline/resume.h"
#include "pipeline/resume_task.h"
#include "pipeline/transport.h"

typedef struct mo_recorder mo_recorder;

typedef struct {
  const mo_resume *resume;
  mo_backend *backend;
  mo_accumulator *const *accumulators; /* [n_thresholds of the config] */
  mo_results *results;
  const mo_transport_rows *rows; /* [n_micro] */
} mo_recorder_job;

MO_CHECKED mo_status mo_recorder_open(mo_recorder **recorder, const mo_recorder_job *job);
void mo_recorder_close(mo_recorder *recorder);

/* Put back what this rank's stages had done before: statistics to the accumulator, stored activations to the result
 * file, the rows of micro-batches that go on here. timing: [n_stages], by stage. */
MO_CHECKED mo_status mo_recorder_restore(mo_recorder *recorder, mo_timing_row *timing);

/* --- a task --- */
MO_CHECKED mo_status mo_recorder_begin(mo_recorder *recorder, int64_t stage, int64_t micro);
/* Where the backend's site_statistics by a threshold (its place in the config) are to mark positions, of the micro-batch
 * alone. */
uint64_t *mo_recorder_positions(const mo_recorder *recorder, int64_t threshold);
/* Where they are to count each row's outlier values at ln_mlp: backend memory [B*S]. */
int32_t *mo_recorder_row_counts(const mo_recorder *recorder);
/* What the task found: to the accumulator and into the record. */
MO_CHECKED mo_status mo_recorder_site(mo_recorder *recorder, int64_t threshold, mo_site site,
                                      const mo_site_statistics *statistics);
MO_CHECKED mo_status mo_recorder_routing(mo_recorder *recorder, const int64_t *counts);
/* The backend's expert_statistics of the task are enqueued: its record waits for them, and is written when
 * mo_recorder_take_experts takes them, or the rows are saved. */
void mo_recorder_expect_experts(mo_recorder *recorder);
/* Before the next task's experts, and at the end: take what is expected, if anything. NULL: nothing is. */
MO_CHECKED mo_status mo_recorder_take_experts(mo_recorder *recorder);
MO_CHECKED mo_status mo_recorder_nll(mo_recorder *recorder, const float *nll);
/* A site's tensor x, if the result file keeps it. */
MO_CHECKED mo_status mo_recorder_activations(mo_recorder *recorder, mo_site site, const void *x);
/* A layer's sites are done: its positions likewise, without waiting for operations enqueued since. */
MO_CHECKED mo_status mo_recorder_collect(mo_recorder *recorder);
/* The task is done: its record is written, unless it waits for its experts. timing: of the stage so far. */
MO_CHECKED mo_status mo_recorder_end(mo_recorder *recorder, const mo_timing_row *timing);

/* --- rows --- */
/* The rows of a micro-batch are now those before `stage`; -1: they are not to be used. */
void mo_recorder_hold(mo_recorder *recorder, int64_t micro, int64_t stage);
/* After a task: save rows if it is time. */
MO_CHECKED mo_status mo_recorder_save_if_due(mo_recorder *recorder, int64_t micro);
/* Save all rows that are held and not saved yet. */
MO_CHECKED mo_status mo_recorder_save(mo_recorder *recorder);
/* Before rows leave: what comes of them may be saved elsewhere, and must not be safer than what it came from. */
MO_CHECKED mo_status mo_recorder_sync(mo_recorder *recorder);

#endif
