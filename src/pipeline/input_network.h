/* Private to the pipeline: a model on the network, that one rank asks for and all get to know. */
#ifndef MO_PIPELINE_INPUT_NETWORK_H
#define MO_PIPELINE_INPUT_NETWORK_H

#include "pipeline/prepare.h"

/* Fill in the input by `read`, on rank 0 from the network, on the others from what rank 0 found. Collective. */
MO_CHECKED mo_status mo_input_read_network(mo_input *input, mo_comm *comm, const mo_config *config,
                                           mo_status (*read)(mo_input *input, const mo_config *config));

/* The config as run, with the commit in place of the revision in model.path, as that may name another one tomorrow.
 * Malloc'ed. */
char *mo_input_config_text(const mo_input *input, const mo_config *config);

/* Lines on stderr: which commit this is; and, collective, why a rank's cache took no more. */
void mo_input_note_commit(const mo_input *input, const mo_config *config);
MO_CHECKED mo_status mo_input_note_cache(const mo_input *input, mo_comm *comm);

#endif
