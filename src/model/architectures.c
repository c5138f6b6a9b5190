/* The table of architectures. Facts: huggingface/transformers 5.17, models/MODEL_TYPE/{configuration,modeling}_*.py. A new
 * architecture is a new entry here. */
#include "model/architecture.h"

#include <stdio.h>
#include <string.h>

#define LAYER "model.layers.{L}."
#define ATTENTION LAYER "self_attn."
#define MLP LAYER "mlp."
#define DELTA LAYER "linear_attn."

static const mo_name_rule common_names[] = {
    {MO_EMBED, "model.embed_tokens.weight"},
    {MO_FINAL_NORM, "model.norm.weight"},
    {MO_LM_HEAD, "lm_head.weight"},
    {MO_INPUT_NORM, LAYER "input_layernorm.weight"},
    {MO_POST_NORM, LAYER "post_attention_layernorm.weight"},
    {MO_Q, ATTENTION "q_proj.weight"},
    {MO_K, ATTENTION "k_proj.weight"},
    {MO_V, ATTENTION "v_proj.weight"},
    {MO_O, ATTENTION "o_proj.weight"},
    {MO_Q_BIAS, ATTENTION "q_proj.bias"},
    {MO_K_BIAS, ATTENTION "k_proj.bias"},
    {MO_V_BIAS, ATTENTION "v_proj.bias"},
    {MO_O_BIAS, ATTENTION "o_proj.bias"},
    {MO_Q_NORM, ATTENTION "q_norm.weight"},
    {MO_K_NORM, ATTENTION "k_norm.weight"},
    {MO_SINKS, ATTENTION "sinks"},
    {MO_DELTA_QKVZ, DELTA "in_proj_qkvz.weight"},
    {MO_DELTA_BA, DELTA "in_proj_ba.weight"},
    {MO_DELTA_CONV, DELTA "conv1d.weight"},
    {MO_DELTA_A_LOG, DELTA "A_log"},
    {MO_DELTA_DT_BIAS, DELTA "dt_bias"},
    {MO_DELTA_NORM, DELTA "norm.weight"},
    {MO_DELTA_OUT, DELTA "out_proj.weight"},
    {MO_GATE, MLP "gate_proj.weight"},
    {MO_UP, MLP "up_proj.weight"},
    {MO_DOWN, MLP "down_proj.weight"},
    {MO_GATE_BIAS, MLP "gate_proj.bias"},
    {MO_UP_BIAS, MLP "up_proj.bias"},
    {MO_DOWN_BIAS, MLP "down_proj.bias"},
    {MO_ROUTER, MLP "gate.weight"},
    {MO_EXPERT_GATE, MLP "experts.{E}.gate_proj.weight"},
    {MO_EXPERT_UP, MLP "experts.{E}.up_proj.weight"},
    {MO_EXPERT_DOWN, MLP "experts.{E}.down_proj.weight"},
    {MO_ROLE_COUNT, NULL},
};

static const mo_name_rule mixtral_names[] = {
    {MO_ROUTER, LAYER "block_sparse_moe.gate.weight"},
    {MO_EXPERT_GATE, LAYER "block_sparse_moe.experts.{E}.w1.weight"},
    {MO_EXPERT_UP, LAYER "block_sparse_moe.experts.{E}.w3.weight"},
    {MO_EXPERT_DOWN, LAYER "block_sparse_moe.experts.{E}.w2.weight"},
    {MO_ROLE_COUNT, NULL},
};

static const mo_name_rule qwen3_next_names[] = {
    {MO_SHARED_GATE, MLP "shared_expert.gate_proj.weight"},
    {MO_SHARED_UP, MLP "shared_expert.up_proj.weight"},
    {MO_SHARED_DOWN, MLP "shared_expert.down_proj.weight"},
    {MO_SHARED_SCALE, MLP "shared_expert_gate.weight"},
    {MO_ROLE_COUNT, NULL},
};

static const mo_name_rule glm4_moe_names[] = {
    {MO_ROUTER_CORRECTION, MLP "gate.e_score_correction_bias"},
    {MO_SHARED_GATE, MLP "shared_experts.gate_proj.weight"},
    {MO_SHARED_UP, MLP "shared_experts.up_proj.weight"},
    {MO_SHARED_DOWN, MLP "shared_experts.down_proj.weight"},
    {MO_ROLE_COUNT, NULL},
};

/* Quantized experts: "_blocks" is appended to the names of the two fused tensors. */
static const mo_name_rule gpt_oss_names[] = {
    {MO_ROUTER, MLP "router.weight"},
    {MO_ROUTER_BIAS, MLP "router.bias"},
    {MO_EXPERTS_GATE_UP, MLP "experts.gate_up_proj"},
    {MO_EXPERTS_GATE_UP_SCALES, MLP "experts.gate_up_proj_scales"},
    {MO_EXPERTS_GATE_UP_BIAS, MLP "experts.gate_up_proj_bias"},
    {MO_EXPERTS_DOWN, MLP "experts.down_proj"},
    {MO_EXPERTS_DOWN_SCALES, MLP "experts.down_proj_scales"},
    {MO_EXPERTS_DOWN_BIAS, MLP "experts.down_proj_bias"},
    {MO_ROLE_COUNT, NULL},
};

static const mo_name_rule no_names[] = {{MO_ROLE_COUNT, NULL}};

static const mo_architecture table[] = {
    {
        .model_type = "llama",
        .names = no_names,
        .rms_norm_eps = 1e-6,
        .rope_theta = 1e4,
        .bias = MO_BIAS_QKVO,
        .mlp_bias = true,
    },
    {
        .model_type = "qwen3",
        .names = no_names,
        .rms_norm_eps = 1e-6,
        .rope_theta = 1e4,
        .kv_heads = 32,
        .head_dim = 128,
        .sliding_window = 4096,
        .qk_norm = MO_QK_NORM_HEAD,
        .bias = MO_BIAS_QKVO,
        .window = MO_WINDOW_ABOVE,
    },
    {
        .model_type = "qwen3_moe",
        .names = no_names,
        .rms_norm_eps = 1e-6,
        .rope_theta = 1e4,
        .kv_heads = 4,
        .sliding_window = 4096,
        .qk_norm = MO_QK_NORM_HEAD,
        .bias = MO_BIAS_QKVO,
        .window = MO_WINDOW_FLAG,
        .mlps = MO_MLPS_STEP,
        .experts_key = "num_experts",
        .experts_alias = "num_local_experts",
        .expert_width_key = "moe_intermediate_size",
        .renorm = MO_RENORM_CONFIG,
        .router_weights_bf16 = true,
    },
    {
        .model_type = "olmoe",
        .names = no_names,
        .rms_norm_eps = 1e-5,
        .rope_theta = 1e4,
        .qk_norm = MO_QK_NORM_WHOLE,
        .bias = MO_BIAS_QKVO,
        .clip_qkv = true,
        .mlps = MO_MLPS_MOE,
        .experts_key = "num_experts",
        .experts_alias = "num_local_experts",
        .expert_width_key = "intermediate_size",
        .renorm = MO_RENORM_CONFIG,
        .router_weights_bf16 = true,
    },
    {
        .model_type = "mixtral",
        .names = mixtral_names,
        .rms_norm_eps = 1e-5,
        .rope_theta = 1e6,
        .kv_heads = 8,
        .window = MO_WINDOW_ALL,
        .mlps = MO_MLPS_MOE,
        .experts_key = "num_local_experts",
        .experts_alias = "num_experts",
        .expert_width_key = "intermediate_size",
        .renorm = MO_RENORM_ALWAYS,
    },
    {
        .model_type = "qwen3_next",
        .names = qwen3_next_names,
        .rms_norm_eps = 1e-6,
        .rope_theta = 1e4,
        .kv_heads = 2,
        .head_dim = 256,
        .partial_rotary = 0.25,
        .zero_centred_norm = true,
        .norm_weight_in_float = true,
        .qk_norm = MO_QK_NORM_HEAD,
        .bias = MO_BIAS_QKVO,
        .output_gate = true,
        .delta_layers = true,
        .mlps = MO_MLPS_STEP,
        .experts_key = "num_experts",
        .experts_alias = "num_local_experts",
        .expert_width_key = "moe_intermediate_size",
        .renorm = MO_RENORM_CONFIG_ON,
        .router_weights_bf16 = true,
        .shared = MO_SHARED_GATED,
        .prediction = {.count = 1, .norms = 3, .joins = 1}, /* mtp.* */
    },
    {
        .model_type = "glm4_moe",
        .names = glm4_moe_names,
        .rms_norm_eps = 1e-5,
        .rope_theta = 1e4,
        .kv_heads = 8,
        .partial_rotary = 0.5,
        .qk_norm = MO_QK_NORM_HEAD,
        .qk_norm_optional = true,
        .bias = MO_BIAS_QKV,
        .mlps = MO_MLPS_FIRST_DENSE,
        .experts_key = "n_routed_experts",
        .experts_alias = "num_local_experts",
        .expert_width_key = "moe_intermediate_size",
        .router = MO_ROUTER_SIGMOID,
        .renorm = MO_RENORM_CONFIG_ON,
        .router_float = true,
        .correction = true,
        .groups = true,
        .shared = MO_SHARED_PLAIN,
        .prediction = {"num_nextn_predict_layers", .norms = 3, .joins = 1, .embeddings = 2}, /* layer L and up */
    },
    {
        .model_type = "gpt_oss",
        .names = gpt_oss_names,
        .rms_norm_eps = 1e-5,
        .rope_theta = 150000,
        .kv_heads = 8,
        .head_dim = 64,
        .sliding_window = 128,
        .default_yarn = true,
        .norm_weight_in_float = true,
        .bias = MO_BIAS_QKVO,
        .bias_default = true,
        .sinks = true,
        .attention_softmax_bf16 = true,
        .window = MO_WINDOW_ALTERNATE,
        .mlps = MO_MLPS_MOE,
        .experts_key = "num_local_experts",
        .experts_alias = "num_experts",
        .expert_width_key = "intermediate_size",
        .router = MO_ROUTER_TOPK_SOFTMAX,
        .renorm = MO_RENORM_NEVER,
        .router_softmax_bf16 = true,
        .router_weights_bf16 = true,
        .router_bias = true,
        .fused_experts = true,
        .glu = MO_GLU_CLAMPED,
    },
};

enum { N_ARCHITECTURES = sizeof table / sizeof table[0] };

const mo_architecture *mo_architecture_find(const char *model_type) {
  for (int i = 0; i < N_ARCHITECTURES; i++)
    if (strcmp(table[i].model_type, model_type) == 0) return table + i;
  return NULL;
}

const char *mo_architecture_list(void) {
  static char list[256];
  size_t used = 0;
  for (int i = 0; i < N_ARCHITECTURES; i++)
    used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", table[i].model_type);
  return list;
}

static const char *find_name(const mo_name_rule *names, mo_role role) {
  for (; names->pattern; names++)
    if (names->role == role) return names->pattern;
  return NULL;
}

const char *mo_architecture_name(const mo_architecture *architecture, mo_role role) {
  const char *own = find_name(architecture->names, role);
  return own ? own : find_name(common_names, role);
}
