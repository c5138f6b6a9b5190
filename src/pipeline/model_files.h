/* Private to the pipeline: is the model of a config there, and how does its user get it? */
#ifndef MO_PIPELINE_MODEL_FILES_H
#define MO_PIPELINE_MODEL_FILES_H

#include "moe_outliers/config.h"

/* For `run`: MO_INVALID, saying how to fetch the checkpoint, if model.path does not exist or holds no config.json. */
MO_CHECKED mo_status mo_model_files_check(const mo_config *config);

/* For `plan`: what mo_model_read can read: model.path if it has a config.json, else model.config. *path belongs to the config.
 * Neither: MO_INVALID. */
MO_CHECKED mo_status mo_model_files_for_plan(const mo_config *config, const char **path);

#endif
