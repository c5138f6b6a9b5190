/* Private to the pipeline: what a record keeps of a task (a stage for a micro-batch), and how it is put back. */
#ifndef MO_PIPELINE_RESUME_TASK_H
#define MO_PIPELINE_RESUME_TASK_H

#include "moe_outliers/analysis.h"
#include "moe_outliers/config.h"
#include "moe_outliers/results.h"
#include "pipeline/journal.h"

/* A micro-batch and the sums of its rank. */
typedef struct {
  mo_accumulator *const *accumulators; /* [n_thresholds]; the first one's are those of all */
  int64_t n_thresholds;                /* at most MO_MOST_THRESHOLDS */
  int64_t first_sequence, n_sequences; /* B */
  int64_t length, hidden, n_experts;
} mo_task;

/* Add to the record that was begun. */
MO_CHECKED mo_status mo_task_put_site(mo_journal *journal, const mo_task *task, int64_t threshold, mo_site site,
                                      const mo_site_statistics *statistics);
MO_CHECKED mo_status mo_task_put_routing(mo_journal *journal, const mo_task *task, const int64_t *counts);
MO_CHECKED mo_status mo_task_put_experts(mo_journal *journal, const mo_expert_statistics *statistics);
MO_CHECKED mo_status mo_task_put_nll(mo_journal *journal, const mo_task *task, const float *nll);
/* words: bitmap of positions that the task hit, [B, H, ceil(S/64)]. */
MO_CHECKED mo_status mo_task_put_positions(mo_journal *journal, const mo_task *task, int64_t threshold,
                                           const uint64_t *words);
MO_CHECKED mo_status mo_task_put_timing(mo_journal *journal, const mo_timing_row *timing);

/* Add what the record holds to the accumulators, as the task itself did, and its bytes and seconds to *timing. */
MO_CHECKED mo_status mo_task_restore(const mo_task *task, const mo_record *record, mo_timing_row *timing);

int64_t mo_task_words(const mo_task *task); /* B * H * ceil(S/64) */

#endif
