/* Private to the pipeline: what a run's config names, opened before the ranks meet. */
#ifndef MO_PIPELINE_PREPARE_H
#define MO_PIPELINE_PREPARE_H

#include "moe_outliers/comm.h"
#include "moe_outliers/pipeline.h"
#include "moe_outliers/weights.h"
#include "pipeline/model_files.h"

/* Whoever has it frees its members. */
typedef struct {
  mo_model_files files;
  mo_model_spec spec;
  mo_checkpoint *checkpoint;
  mo_catalogue catalogue;
} mo_input;

/* Wait for the input and take it; after a failure it may be there in part. Collective. */
MO_CHECKED mo_status mo_preparation_input(mo_preparation *preparation, mo_comm *comm, mo_input *input);
/* Open what a run reads before its tokens; after a failure it may be there in part. Collective where model.path is
 * an address: rank 0 asks and the others are told; if it failed all ranks say so with its words. */
MO_CHECKED mo_status mo_input_open(mo_input *input, mo_comm *comm, const mo_config *config);
void mo_input_free(mo_input *input);

/* What the token file says of its text, NULL if nothing; to be asked for on rank 0. The preparation's. */
const char *mo_preparation_dataset(const mo_preparation *preparation);

#endif
