/* The run: config -> model spec -> plan -> weight stream -> decoder layers -> statistics -> result file. */
#ifndef MOE_OUTLIERS_PIPELINE_H
#define MOE_OUTLIERS_PIPELINE_H

#include <stdbool.h>

#include "moe_outliers/comm.h"
#include "moe_outliers/config.h"

typedef struct {
  bool verbose; /* name the checkpoint's tensors that the model does not use; the account of phases.h is of all ranks */
  bool fresh;   /* forget what an interrupted run has left */
} mo_run_options;

typedef struct mo_preparation mo_preparation;

/* Before the ranks meet: begin on another thread what a run of `config` will wait for, which is to read the checkpoint's
 * headers, and take the cores that a launcher bound this rank away from. What fails is told by mo_run. The config outlives the
 * preparation. Once a process. */
MO_CHECKED mo_status mo_run_prepare(mo_preparation **preparation, const mo_config *config);
/* Wait for the end of all that and free it (NULL is allowed); a process must not exit before. */
void mo_run_settle(mo_preparation *preparation);

/* Run the analysis that `config` describes on all ranks of `comm` and write config->output.path. Collective. Wrong input is
 * MO_INVALID before anything is computed or written; after a failure no file stays under the final name, and the partial
 * one is removed. A rank whose peers failed gets MO_PEER_FAILED. Progress and notes go to stderr from rank 0.
 *
 * What is finished is kept in the folder OUTPUT.resume beside the output until the result is complete, and a later run of the
 * same config goes on from there (docs/resume.md). SIGTERM or SIGUSR1 on any rank ends the run on all of them with MO_STOPPED
 * and the error record's line, which then is no error; only the writing of the result is not interrupted.
 *
 * preparation: of the same config; its input is taken. */
MO_CHECKED mo_status mo_run(const mo_config *config, mo_comm *comm, const mo_run_options *options,
                            mo_preparation *preparation);

#endif
