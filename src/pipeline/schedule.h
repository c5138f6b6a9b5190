/* Private to the pipeline: the order in which a rank computes the tasks (stage, micro-batch) of a block.
 *
 * Work goes on wherever it can: of the micro-batches whose rows are here and whose next stage is loaded the lowest is
 * next. So all of them use a stage as soon as it is loaded, and where the weights are ahead the first one passes the
 * block quickly, to the rank that waits for it. They leave the block in their order. */
#ifndef MO_PIPELINE_SCHEDULE_H
#define MO_PIPELINE_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/status.h"

typedef struct {
  int64_t first_stage, end_stage, n_micro;
  int64_t *next;     /* [n_micro] next stage of a micro-batch; end_stage: it is through */
  bool *here;        /* [n_micro] its rows are here */
  int64_t *through;  /* [end_stage - first_stage] micro-batches that have passed the stage */
  int64_t n_left;    /* micro-batches that are not through */
  int64_t handed_on; /* micro-batches below it have left */
} mo_schedule;

/* For blocks of up to n_stages stages. */
MO_CHECKED mo_status mo_schedule_open(mo_schedule *schedule, int64_t n_stages, int64_t n_micro);
void mo_schedule_close(mo_schedule *schedule);

/* A block of stages first_stage..end_stage-1. start: [n_micro] stages at which the micro-batches begin: some may have
 * passed the block or a part of it. No rows are here yet. */
void mo_schedule_begin(mo_schedule *schedule, int64_t first_stage, int64_t end_stage, const int64_t *start);

/* The next micro-batch to compute, if stages below `loaded` are loaded; -1 if there is none at present. */
int64_t mo_schedule_pick(const mo_schedule *schedule, int64_t loaded);
/* The first micro-batch that is not through and whose rows are not here; -1 if there is none. */
int64_t mo_schedule_awaited(const mo_schedule *schedule);
/* The task of a micro-batch's next stage is done. */
void mo_schedule_done(mo_schedule *schedule, int64_t micro);
/* All micro-batches have passed the stage. */
bool mo_schedule_is_through(const mo_schedule *schedule, int64_t stage);
/* The next micro-batch to hand on, each once; -1 if there is none at present. */
int64_t mo_schedule_hand_on(mo_schedule *schedule);

#endif
