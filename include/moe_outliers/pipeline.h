/* The run: config -> model spec -> plan -> weight stream -> decoder layers -> statistics -> result file. */
#ifndef MOE_OUTLIERS_PIPELINE_H
#define MOE_OUTLIERS_PIPELINE_H

#include <stdbool.h>

#include "moe_outliers/comm.h"
#include "moe_outliers/config.h"

typedef struct {
  bool verbose; /* name the checkpoint's tensors that the model does not use */
  bool fresh;   /* forget what an interrupted run has left */
} mo_run_options;

/* Run the analysis that `config` describes on all ranks of `comm` and write config->output.path. Collective. Wrong input is
 * MO_INVALID before anything is computed or written; after a failure no file stays under the final name, and the partial
 * one is removed. A rank whose peers failed gets MO_PEER_FAILED. Progress and notes go to stderr from rank 0.
 *
 * What is finished is kept in the folder OUTPUT.resume beside the output until the result is complete, and a later run of the
 * same config goes on from there (docs/resume.md). SIGTERM or SIGUSR1 on any rank ends the run on all of them with MO_STOPPED
 * and the error record's line, which then is no error; only the writing of the result is not interrupted. */
MO_CHECKED mo_status mo_run(const mo_config *config, mo_comm *comm, const mo_run_options *options);

#endif
