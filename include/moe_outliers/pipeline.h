/* The run: config -> model spec -> plan -> weight stream -> decoder layers -> statistics -> result file. */
#ifndef MOE_OUTLIERS_PIPELINE_H
#define MOE_OUTLIERS_PIPELINE_H

#include <stdbool.h>

#include "moe_outliers/comm.h"
#include "moe_outliers/config.h"

/* Run the analysis that `config` describes on all ranks of `comm` and write config->output.path. Collective. Wrong input is
 * MO_INVALID before anything is computed or written; after a failure no file stays under the final name, and the partial
 * one is removed. A rank whose peers failed gets MO_PEER_FAILED. Progress and notes go to stderr from rank 0; verbose: with
 * the names of the checkpoint's tensors that the model does not use. */
MO_CHECKED mo_status mo_run(const mo_config *config, mo_comm *comm, bool verbose);

#endif
