/* Private to the model room: rotary frequencies from config.json. */
#ifndef MO_MODEL_ROPE_H
#define MO_MODEL_ROPE_H

#include "model/architecture.h"
#include "model/json_keys.h"

/* Fill spec->rope from rope_parameters (new style) or rope_theta and rope_scaling (old style), for head_dim already set.
 * Types default, linear, llama3, yarn (huggingface/transformers modeling_rope_utils.py); others are MO_INVALID. */
MO_CHECKED mo_status mo_rope_read(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *config);

#endif
