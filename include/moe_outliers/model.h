/* The model specification: config.json -> data that describes every layer, and the list of tensors each stage needs.
 *
 * An architecture is one entry of the table in src/model/architectures.c. The decoder layer (layer.h) reads this
 * description; it knows no architecture by name.
 *
 * Letters: T token rows, H hidden, L layers, V vocabulary, E experts, K = top_k experts per token, F width of an MLP.
 * A run has L + 2 stages: 0 the embedding, 1..L the decoder layers, L+1 the final norm with lm_head. */
#ifndef MOE_OUTLIERS_MODEL_H
#define MOE_OUTLIERS_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe_outliers/status.h"

typedef enum { MO_MIXER_ATTENTION, MO_MIXER_DELTANET } mo_mixer_kind;
typedef enum { MO_QK_NORM_NONE, MO_QK_NORM_HEAD, MO_QK_NORM_WHOLE } mo_qk_norm_kind;
typedef enum { MO_MLP_DENSE, MO_MLP_MOE } mo_mlp_kind;
typedef enum { MO_ROUTER_SOFTMAX_TOPK, MO_ROUTER_TOPK_SOFTMAX, MO_ROUTER_SIGMOID } mo_router_kind;
typedef enum { MO_GLU_SILU, MO_GLU_CLAMPED } mo_glu_kind;
typedef enum { MO_SHARED_NONE, MO_SHARED_PLAIN, MO_SHARED_GATED } mo_shared_kind;

/* What a tensor is for. MO_EXPERT_*: one tensor per expert. MO_EXPERTS_*: one tensor for all experts of a layer. */
typedef enum {
  MO_EMBED,
  MO_FINAL_NORM,
  MO_LM_HEAD,
  MO_INPUT_NORM,
  MO_POST_NORM,
  MO_Q,
  MO_K,
  MO_V,
  MO_O,
  MO_Q_BIAS,
  MO_K_BIAS,
  MO_V_BIAS,
  MO_O_BIAS,
  MO_Q_NORM,
  MO_K_NORM,
  MO_SINKS,
  MO_DELTA_QKVZ,
  MO_DELTA_BA,
  MO_DELTA_CONV,
  MO_DELTA_A_LOG,
  MO_DELTA_DT_BIAS,
  MO_DELTA_NORM,
  MO_DELTA_OUT,
  MO_GATE,
  MO_UP,
  MO_DOWN,
  MO_GATE_BIAS,
  MO_UP_BIAS,
  MO_DOWN_BIAS,
  MO_ROUTER,
  MO_ROUTER_BIAS,
  MO_ROUTER_CORRECTION,
  MO_SHARED_GATE,
  MO_SHARED_UP,
  MO_SHARED_DOWN,
  MO_SHARED_SCALE,
  MO_EXPERT_GATE,
  MO_EXPERT_UP,
  MO_EXPERT_DOWN,
  MO_EXPERTS_GATE_UP,
  MO_EXPERTS_GATE_UP_SCALES,
  MO_EXPERTS_GATE_UP_BIAS,
  MO_EXPERTS_DOWN,
  MO_EXPERTS_DOWN_SCALES,
  MO_EXPERTS_DOWN_BIAS,
  MO_ROLE_COUNT
} mo_role;

typedef struct {
  float eps;
  bool zero_centred;    /* multiply by 1 + w */
  bool weight_in_float; /* bf16 runs: times w in float32 and one rounding; else round, then times w, and round again */
} mo_norm_spec;

typedef struct {
  mo_mixer_kind mixer;
  mo_mlp_kind mlp;
  int64_t window; /* keys a query sees, itself included; 0 = all */
} mo_layer_spec;

typedef struct {
  char architecture[32]; /* model_type, e.g. "olmoe" */
  int64_t n_layers, hidden, vocab;
  bool tied;        /* lm_head is the embedding */
  int stored_bytes; /* of a number in the checkpoint, by config.json's dtype; 2 where it says nothing */
  mo_norm_spec norm;
  mo_layer_spec *layers; /* [L] */
  int64_t
      prediction_layers; /* next-token-prediction layers that a published checkpoint holds; the model has none of them */

  struct {
    int64_t heads, kv_heads, head_dim;
    mo_qk_norm_kind qk_norm;
    bool qkv_bias, o_bias, output_gate, sinks;
    bool softmax_bf16; /* bf16 runs: probabilities computed in bf16 (gpt_oss) */
    float clip;        /* clamp q, k, v to +-clip; 0 = no */
    float scale;       /* of the scores: head_dim^-0.5 */
  } attention;

  struct {
    int64_t dim;     /* rotary dims of head_dim; pairs (i, i + dim/2) */
    float *inv_freq; /* [dim/2] */
    float factor;    /* cos and sin are multiplied by it (YaRN), else 1 */
  } rope;

  struct {
    int64_t k_heads, v_heads, k_dim, v_dim, kernel;
  } delta;

  struct {
    int64_t width; /* F of dense layers */
    bool bias;
  } dense;

  struct {
    int64_t experts, top_k, width; /* E, K, F of one expert; E = 0: no layer routes */
    mo_router_kind router;
    bool renormalise;  /* chosen weights divided by their sum */
    bool router_float; /* bf16 runs: router logits in float32 from upcast input and weight */
    bool softmax_bf16; /* bf16 runs: router softmax in bf16 */
    bool weights_bf16; /* bf16 runs: routing weights rounded to bf16 before they meet the expert's output */
    bool router_bias, correction, expert_bias, fused, mxfp4;
    float routed_scale; /* weights times this */
    int64_t groups, top_groups;
    mo_glu_kind glu;
    float glu_limit, glu_alpha;
    mo_shared_kind shared;
    int64_t shared_width;
  } moe;
} mo_model_spec;

/* One tensor that a stage needs. */
typedef struct {
  char name[160];
  mo_role role;
  int32_t expert; /* -1 unless the role is per expert */
  int32_t n_dims;
  int64_t shape[4];
  bool mxfp4; /* U8 bytes (blocks or scales), not numbers */
} mo_tensor_need;

/* Read `directory`/config.json (or `directory` itself if it names a .json file). Old (rope_theta, rope_scaling, torch_dtype)
 * and new (rope_parameters, dtype) key styles. Absent file, bad JSON, unknown model_type, missing keys, values that make
 * no sense (zero, negative, huge, not dividing) are MO_INVALID naming file and key. Free with mo_model_free. */
MO_CHECKED mo_status mo_model_read(mo_model_spec *spec, const char *directory);

/* As mo_model_read, from JSON text in memory; name: what error lines call it. */
MO_CHECKED mo_status mo_model_parse(mo_model_spec *spec, const char *text, size_t bytes, const char *name);

void mo_model_free(mo_model_spec *spec);

int64_t mo_model_stages(const mo_model_spec *spec); /* L + 2 */

/* The tensors of a stage, in a fixed order. *needs is malloc'ed, caller frees. */
MO_CHECKED mo_status mo_model_tensors(const mo_model_spec *spec, int64_t stage, mo_tensor_need **needs,
                                      int64_t *n_needs);

typedef struct {
  int64_t total;           /* parameters of the model, tied embeddings once */
  int64_t active;          /* without the experts that a token does not choose */
  int64_t active_no_embed; /* without the input embedding too */
  int64_t tensors;         /* that the model uses, tied embeddings once */
  int64_t bytes;           /* of these tensors in a checkpoint that stores numbers as config.json says */
} mo_parameter_count;

MO_CHECKED mo_status mo_model_parameters(const mo_model_spec *spec, mo_parameter_count *count);

/* Tensors that a published checkpoint may hold although the model does not use them. */
typedef enum {
  MO_EXTRA_PREDICTION, /* layers that predict further tokens */
  MO_EXTRA_LM_HEAD,    /* a copy of the tied embedding under the name of lm_head */
  MO_EXTRA_COUNT
} mo_extra;

typedef struct {
  int64_t parameters, tensors, bytes; /* all 0: the model can have none of this kind */
} mo_extra_count;

MO_CHECKED mo_status mo_model_extras(const mo_model_spec *spec, mo_extra_count extras[MO_EXTRA_COUNT]);

enum { MO_ARENA_ALIGNMENT = 256 }; /* of a tensor in memory, bytes */

typedef struct {
  int64_t bytes;         /* to read from the checkpoint */
  int64_t aligned_bytes; /* in the arena, as mo_stage_catalogue's arena_bytes */
  double flops;          /* a multiply-add counts 2 */
} mo_stage_cost;

/* Cost of a stage for n_sequences of `length` tokens, if numbers are stored with element_bytes each (MXFP4 and what
 * is always float32 as it is). */
MO_CHECKED mo_status mo_model_stage_cost(const mo_model_spec *spec, int64_t stage, int element_bytes,
                                         int64_t n_sequences, int64_t length, mo_stage_cost *cost);

#endif
