/* Private to the model room: what distinguishes one architecture from another, as data. */
#ifndef MO_MODEL_ARCHITECTURE_H
#define MO_MODEL_ARCHITECTURE_H

#include "moe_outliers/model.h"

typedef enum { MO_BIAS_NONE, MO_BIAS_QKVO, MO_BIAS_QKV } mo_bias_rule; /* where config's attention_bias is true */
typedef enum { MO_MLPS_DENSE, MO_MLPS_MOE, MO_MLPS_STEP, MO_MLPS_FIRST_DENSE } mo_mlp_rule;
typedef enum { MO_WINDOW_NONE, MO_WINDOW_ALL, MO_WINDOW_FLAG, MO_WINDOW_ABOVE, MO_WINDOW_ALTERNATE } mo_window_rule;
typedef enum { MO_RENORM_ALWAYS, MO_RENORM_CONFIG, MO_RENORM_CONFIG_ON, MO_RENORM_NEVER } mo_renorm_rule;

/* A tensor's name: {L} stands for the layer, {E} for the expert. */
typedef struct {
  mo_role role;
  const char *pattern;
} mo_name_rule;

/* Next-token-prediction layers, which published checkpoints hold and the model does not use. Each is a decoder layer with
 * softmax attention and the MLP of the last layer, and has further tensors: */
typedef struct {
  const char *count_key; /* of config.json: how many layers; NULL: there is no such key */
  int64_t count;         /* how many where config.json does not say */
  int norms;             /* [H] */
  int joins;             /* [H, 2H], from the hidden state and the embedding of the next token */
  int embeddings;        /* [V, H], its own embedding and head */
} mo_prediction_rule;

typedef struct {
  const char *model_type;
  const mo_name_rule *names; /* what differs from the common names; ends with a NULL pattern */

  /* defaults where config.json says nothing (transformers' configuration classes) */
  double rms_norm_eps, rope_theta;
  int64_t kv_heads;      /* where num_key_value_heads is absent; 0, and where it is null: heads */
  int64_t head_dim;      /* 0: hidden / heads */
  double partial_rotary; /* 0: the whole head is always rotated */
  int64_t sliding_window;
  bool default_yarn; /* gpt_oss without rope_parameters */

  bool zero_centred_norm, norm_weight_in_float;
  mo_qk_norm_kind qk_norm;
  bool qk_norm_optional; /* only where use_qk_norm is true */
  mo_bias_rule bias;
  bool bias_default; /* attention_bias where the key is absent */
  bool mlp_bias;     /* config's mlp_bias applies to dense layers */
  bool clip_qkv, output_gate, sinks, attention_softmax_bf16, delta_layers;
  mo_window_rule window;

  mo_mlp_rule mlps;
  const char *experts_key, *experts_alias; /* number of experts */
  const char *expert_width_key;
  mo_router_kind router;
  mo_renorm_rule renorm;
  bool router_float, router_softmax_bf16, router_weights_bf16, router_bias, correction, groups;
  bool fused_experts; /* one tensor for all experts, gate and up rows interleaved, with biases */
  mo_glu_kind glu;
  mo_shared_kind shared;
  mo_prediction_rule prediction;
} mo_architecture;

/* The table entry of a model_type, NULL if there is none. */
const mo_architecture *mo_architecture_find(const char *model_type);
/* All known model types, separated by ", ". */
const char *mo_architecture_list(void);
/* The pattern of a role's name in this architecture; NULL if it has no such tensor. */
const char *mo_architecture_name(const mo_architecture *architecture, mo_role role);

#endif
