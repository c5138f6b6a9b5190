/* The tensors that each stage needs, and what they add up to: parameters, bytes, operations. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/architecture.h"

int64_t mo_model_stages(const mo_model_spec *spec) { return spec->n_layers + 2; }

typedef struct {
  const mo_architecture *architecture;
  int64_t layer;
  mo_tensor_need *needs;
  int64_t n, capacity;
  bool failed;
} need_list;

/* Fill in {L} and {E}. */
static void write_name(char *name, size_t size, const char *pattern, int64_t layer, int64_t expert) {
  size_t used = 0;
  for (const char *p = pattern; *p && used + 1 < size;) {
    bool is_layer = strncmp(p, "{L}", 3) == 0, is_expert = strncmp(p, "{E}", 3) == 0;
    if (is_layer || is_expert) {
      used += (size_t)snprintf(name + used, size - used, "%lld", (long long)(is_layer ? layer : expert));
      p += 3;
    } else
      name[used++] = *p++;
  }
  name[used < size ? used : size - 1] = '\0';
}

static void need(need_list *list, mo_role role, int64_t expert, int n_dims, const int64_t shape[4], bool mxfp4) {
  if (list->failed) return;
  if (list->n == list->capacity) {
    list->capacity = list->capacity ? 2 * list->capacity : 32;
    mo_tensor_need *grown = mo_realloc(list->needs, (size_t)list->capacity, sizeof *grown);
    if (!grown) {
      list->failed = true;
      return;
    }
    list->needs = grown;
  }
  mo_tensor_need *n = list->needs + list->n++;
  memset(n, 0, sizeof *n);
  n->role = role;
  n->expert = (int32_t)expert;
  n->n_dims = n_dims;
  n->mxfp4 = mxfp4;
  for (int i = 0; i < n_dims; i++) n->shape[i] = shape[i];
  write_name(n->name, sizeof n->name, mo_architecture_name(list->architecture, role), list->layer, expert);
  if (mxfp4 && n_dims == 4) strncat(n->name, "_blocks", sizeof n->name - strlen(n->name) - 1);
}

static void need_vector(need_list *list, mo_role role, int64_t length) {
  need(list, role, -1, 1, (int64_t[4]){length}, false);
}

static void need_matrix(need_list *list, mo_role role, int64_t rows, int64_t cols) {
  need(list, role, -1, 2, (int64_t[4]){rows, cols}, false);
}

static void need_attention(need_list *list, const mo_model_spec *spec) {
  int64_t H = spec->hidden, D = spec->attention.head_dim;
  int64_t q = spec->attention.heads * D, kv = spec->attention.kv_heads * D;
  int64_t q_rows = spec->attention.output_gate ? 2 * q : q;
  need_matrix(list, MO_Q, q_rows, H);
  need_matrix(list, MO_K, kv, H);
  need_matrix(list, MO_V, kv, H);
  need_matrix(list, MO_O, H, q);
  if (spec->attention.qkv_bias) {
    need_vector(list, MO_Q_BIAS, q_rows);
    need_vector(list, MO_K_BIAS, kv);
    need_vector(list, MO_V_BIAS, kv);
  }
  if (spec->attention.o_bias) need_vector(list, MO_O_BIAS, H);
  if (spec->attention.qk_norm != MO_QK_NORM_NONE) {
    bool whole = spec->attention.qk_norm == MO_QK_NORM_WHOLE;
    need_vector(list, MO_Q_NORM, whole ? q : D);
    need_vector(list, MO_K_NORM, whole ? kv : D);
  }
  if (spec->attention.sinks) need_vector(list, MO_SINKS, spec->attention.heads);
}

static void need_delta(need_list *list, const mo_model_spec *spec) {
  int64_t H = spec->hidden, v_heads = spec->delta.v_heads;
  int64_t keys = spec->delta.k_heads * spec->delta.k_dim, values = v_heads * spec->delta.v_dim;
  need_matrix(list, MO_DELTA_QKVZ, 2 * keys + 2 * values, H);
  need_matrix(list, MO_DELTA_BA, 2 * v_heads, H);
  need(list, MO_DELTA_CONV, -1, 3, (int64_t[4]){2 * keys + values, 1, spec->delta.kernel}, false);
  need_vector(list, MO_DELTA_A_LOG, v_heads);
  need_vector(list, MO_DELTA_DT_BIAS, v_heads);
  need_vector(list, MO_DELTA_NORM, spec->delta.v_dim);
  need_matrix(list, MO_DELTA_OUT, H, values);
}

static void need_dense(need_list *list, const mo_model_spec *spec) {
  int64_t H = spec->hidden, F = spec->dense.width;
  need_matrix(list, MO_GATE, F, H);
  need_matrix(list, MO_UP, F, H);
  need_matrix(list, MO_DOWN, H, F);
  if (!spec->dense.bias) return;
  need_vector(list, MO_GATE_BIAS, F);
  need_vector(list, MO_UP_BIAS, F);
  need_vector(list, MO_DOWN_BIAS, H);
}

static void need_fused_experts(need_list *list, const mo_model_spec *spec) {
  int64_t H = spec->hidden, F = spec->moe.width, E = spec->moe.experts;
  if (spec->moe.mxfp4) {
    need(list, MO_EXPERTS_GATE_UP, -1, 4, (int64_t[4]){E, 2 * F, H / 32, 16}, true);
    need(list, MO_EXPERTS_GATE_UP_SCALES, -1, 3, (int64_t[4]){E, 2 * F, H / 32}, true);
    need(list, MO_EXPERTS_DOWN, -1, 4, (int64_t[4]){E, H, F / 32, 16}, true);
    need(list, MO_EXPERTS_DOWN_SCALES, -1, 3, (int64_t[4]){E, H, F / 32}, true);
  } else {
    need(list, MO_EXPERTS_GATE_UP, -1, 3, (int64_t[4]){E, H, 2 * F}, false);
    need(list, MO_EXPERTS_DOWN, -1, 3, (int64_t[4]){E, F, H}, false);
  }
  need_matrix(list, MO_EXPERTS_GATE_UP_BIAS, E, 2 * F);
  need_matrix(list, MO_EXPERTS_DOWN_BIAS, E, H);
}

static void need_moe(need_list *list, const mo_model_spec *spec) {
  int64_t H = spec->hidden, F = spec->moe.width, shared = spec->moe.shared_width;
  need_matrix(list, MO_ROUTER, spec->moe.experts, H);
  if (spec->moe.router_bias) need_vector(list, MO_ROUTER_BIAS, spec->moe.experts);
  if (spec->moe.correction) need_vector(list, MO_ROUTER_CORRECTION, spec->moe.experts);
  if (spec->moe.shared != MO_SHARED_NONE) {
    need_matrix(list, MO_SHARED_GATE, shared, H);
    need_matrix(list, MO_SHARED_UP, shared, H);
    need_matrix(list, MO_SHARED_DOWN, H, shared);
  }
  if (spec->moe.shared == MO_SHARED_GATED) need_matrix(list, MO_SHARED_SCALE, 1, H);
  if (spec->moe.fused) {
    need_fused_experts(list, spec);
    return;
  }
  for (int64_t e = 0; e < spec->moe.experts; e++) {
    need(list, MO_EXPERT_GATE, e, 2, (int64_t[4]){F, H}, false);
    need(list, MO_EXPERT_UP, e, 2, (int64_t[4]){F, H}, false);
    need(list, MO_EXPERT_DOWN, e, 2, (int64_t[4]){H, F}, false);
  }
}

static void need_layer(need_list *list, const mo_model_spec *spec, const mo_layer_spec *layer) {
  need_vector(list, MO_INPUT_NORM, spec->hidden);
  if (layer->mixer == MO_MIXER_ATTENTION)
    need_attention(list, spec);
  else
    need_delta(list, spec);
  need_vector(list, MO_POST_NORM, spec->hidden);
  if (layer->mlp == MO_MLP_DENSE)
    need_dense(list, spec);
  else
    need_moe(list, spec);
}

static void need_head(need_list *list, const mo_model_spec *spec) {
  need_vector(list, MO_FINAL_NORM, spec->hidden);
  need_matrix(list, MO_LM_HEAD, spec->vocab, spec->hidden);
  if (!spec->tied || list->failed) return;
  mo_tensor_need *lm_head = list->needs + list->n - 1;
  snprintf(lm_head->name, sizeof lm_head->name, "%s", mo_architecture_name(list->architecture, MO_EMBED));
}

mo_status mo_model_tensors(const mo_model_spec *spec, int64_t stage, mo_tensor_need **needs, int64_t *n_needs) {
  need_list list = {.architecture = mo_architecture_find(spec->architecture), .layer = stage - 1};
  if (stage == 0)
    need_matrix(&list, MO_EMBED, spec->vocab, spec->hidden);
  else if (stage <= spec->n_layers)
    need_layer(&list, spec, spec->layers + list.layer);
  else
    need_head(&list, spec);
  if (list.failed) {
    free(list.needs);
    return MO_FAILED;
  }
  *needs = list.needs;
  *n_needs = list.n;
  return MO_OK;
}

static int64_t elements_of(const mo_tensor_need *need) {
  int64_t count = 1;
  for (int i = 0; i < need->n_dims; i++) count *= need->shape[i];
  return count;
}

/* Parameters of a tensor. MXFP4: two numbers a byte in the blocks; the scales are no parameters. */
static int64_t parameters_of(const mo_tensor_need *need) {
  if (!need->mxfp4) return elements_of(need);
  return need->n_dims == 4 ? 2 * elements_of(need) : 0;
}

/* Bytes of a tensor in the checkpoint. The router's correction is float32 in bf16 checkpoints too. */
static int64_t bytes_of(const mo_tensor_need *need, int element_bytes) {
  int64_t size = need->mxfp4 ? 1 : need->role == MO_ROUTER_CORRECTION ? 4 : element_bytes;
  return size * elements_of(need);
}

static bool is_expert(const mo_tensor_need *need) { return need->role >= MO_EXPERT_GATE; }

mo_status mo_model_parameters(const mo_model_spec *spec, mo_parameter_count *count) {
  memset(count, 0, sizeof *count);
  for (int64_t stage = 0; stage < mo_model_stages(spec); stage++) {
    mo_tensor_need *needs;
    int64_t n, experts = 0;
    MO_TRY(mo_model_tensors(spec, stage, &needs, &n));
    for (int64_t i = 0; i < n; i++) {
      bool counted = spec->tied && needs[i].role == MO_LM_HEAD;
      int64_t parameters = counted ? 0 : parameters_of(needs + i);
      count->total += parameters;
      if (is_expert(needs + i))
        experts += parameters;
      else
        count->active += parameters;
      count->tensors += !counted;
      count->bytes += counted ? 0 : bytes_of(needs + i, spec->stored_bytes);
    }
    if (experts) count->active += experts / spec->moe.experts * spec->moe.top_k;
    free(needs);
  }
  count->active_no_embed = count->active - spec->vocab * spec->hidden;
  return MO_OK;
}

/* One next-token-prediction layer. */
static mo_status count_prediction(const mo_model_spec *spec, mo_extra_count *extra) {
  const mo_architecture *architecture = mo_architecture_find(spec->architecture);
  const mo_prediction_rule *rule = &architecture->prediction;
  const mo_layer_spec layer = {.mixer = MO_MIXER_ATTENTION, .mlp = spec->layers[spec->n_layers - 1].mlp};
  need_list list = {.architecture = architecture, .layer = spec->n_layers};
  need_layer(&list, spec, &layer);
  for (int64_t i = 0; !list.failed && i < list.n; i++) {
    extra->parameters += parameters_of(list.needs + i);
    extra->bytes += bytes_of(list.needs + i, spec->stored_bytes);
  }
  int64_t H = spec->hidden, own = rule->norms * H + rule->joins * 2 * H * H + rule->embeddings * spec->vocab * H;
  extra->tensors = list.n + rule->norms + rule->joins + rule->embeddings;
  extra->parameters += own;
  extra->bytes += own * spec->stored_bytes;
  free(list.needs);
  return list.failed ? MO_FAILED : MO_OK;
}

mo_status mo_model_extras(const mo_model_spec *spec, mo_extra_count extras[MO_EXTRA_COUNT]) {
  int64_t embedding = spec->vocab * spec->hidden, layers = spec->prediction_layers;
  memset(extras, 0, MO_EXTRA_COUNT * sizeof *extras);
  if (spec->tied) extras[MO_EXTRA_LM_HEAD] = (mo_extra_count){embedding, 1, embedding * spec->stored_bytes};
  if (layers == 0) return MO_OK;
  mo_extra_count *prediction = extras + MO_EXTRA_PREDICTION;
  MO_TRY(count_prediction(spec, prediction));
  prediction->parameters *= layers;
  prediction->tensors *= layers;
  prediction->bytes *= layers;
  return MO_OK;
}

mo_status mo_model_stage_cost(const mo_model_spec *spec, int64_t stage, int element_bytes, int64_t n_sequences,
                              int64_t length, mo_stage_cost *cost) {
  mo_tensor_need *needs;
  int64_t n;
  double T = (double)n_sequences * (double)length;
  memset(cost, 0, sizeof *cost);
  MO_TRY(mo_model_tensors(spec, stage, &needs, &n));
  for (int64_t i = 0; i < n; i++) {
    int64_t bytes = bytes_of(needs + i, element_bytes);
    cost->bytes += bytes;
    cost->aligned_bytes += (bytes + MO_ARENA_ALIGNMENT - 1) / MO_ARENA_ALIGNMENT * MO_ARENA_ALIGNMENT;
    if (needs[i].n_dims < 2 || needs[i].role == MO_EMBED) continue;
    double share = is_expert(needs + i) ? (double)spec->moe.top_k / (double)spec->moe.experts : 1;
    cost->flops += 2 * T * share * (double)parameters_of(needs + i);
  }
  free(needs);
  if (stage < 1 || stage > spec->n_layers) return MO_OK;
  const mo_layer_spec *layer = spec->layers + stage - 1;
  double S = (double)length, W = layer->window > 0 && layer->window < length ? (double)layer->window : S;
  if (layer->mixer == MO_MIXER_ATTENTION) /* scores and values over the keys that a query sees */
    cost->flops += 4 * (double)n_sequences * (double)(spec->attention.heads * spec->attention.head_dim) *
                   (W * S - W * (W - 1) / 2);
  else /* reading and updating the state of every value head */
    cost->flops += 8 * T * (double)(spec->delta.v_heads * spec->delta.k_dim * spec->delta.v_dim);
  return MO_OK;
}
