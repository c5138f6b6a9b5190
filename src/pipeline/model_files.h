/* Private to the pipeline: where the model and the tokens of a config come from: files here or on the network, or
 * "synthetic:SEED". */
#ifndef MO_PIPELINE_MODEL_FILES_H
#define MO_PIPELINE_MODEL_FILES_H

#include "moe_outliers/config.h"
#include "moe_outliers/model.h"
#include "moe_outliers/network.h"
#include "moe_outliers/tokens.h"
#include "moe_outliers/weights.h"

typedef struct {
  const char *config_json; /* what mo_model_read can read: model.path or model.config; belongs to the config */
  bool synthetic;          /* random weights of this seed, no files */
  uint64_t seed;
  mo_network *network; /* owned: where model.path is an address; NULL: it is none, or is not needed */
} mo_model_files;

/* What has been filled in by one of the following two, also if it failed. */
void mo_model_files_free(mo_model_files *files);

/* "synthetic:SEED" of a key; *synthetic is false and *seed 0 for any other text. */
MO_CHECKED mo_status mo_model_files_seed(const char *text, const char *key, bool *synthetic, uint64_t *seed);

/* For `run`: MO_INVALID, saying how to fetch the checkpoint, if model.path does not exist or holds no config.json; if it is
 * "synthetic:" with a bad seed, or model.config is missing then. Nothing is asked of an address yet. */
MO_CHECKED mo_status mo_model_files_for_run(const mo_config *config, mo_model_files *files);

/* For `plan`: likewise, but without a checkpoint model.config will do, and is taken where model.path is an address; without it
 * the address is asked. */
MO_CHECKED mo_status mo_model_files_for_plan(const mo_config *config, mo_model_files *files);

/* The model of config.json; of an address that has connected, or was unpacked. */
MO_CHECKED mo_status mo_model_files_read(mo_model_spec *spec, const mo_model_files *files);

/* The checkpoint of model.path. Synthetic weights are float32 where config.json says so, else bf16 (and MXFP4). */
MO_CHECKED mo_status mo_model_files_open(mo_checkpoint **checkpoint, const mo_config *config,
                                         const mo_model_files *files, const mo_model_spec *spec);

/* The ids of data.tokens. */
MO_CHECKED mo_status mo_model_files_tokens(mo_tokens *tokens, const mo_config *config, int64_t vocab);
/* What a token file says of its text, NULL if nothing; see mo_tokens_dataset. */
char *mo_model_files_dataset(const mo_config *config);

#endif
