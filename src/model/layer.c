#include "moe_outliers/layer.h"

#include <stdlib.h>

struct mo_workspace {
  const mo_model_spec *spec;
  mo_backend *backend;
  const mo_backend_table *op;
  int64_t B, S;
  /* activations, sized for the widest layer */
  void *normed;        /* [T, H] a site's tensor */
  void *q, *k, *v;     /* projections of the mixer; an MLP's gate is in q, its up in k */
  void *gate;          /* [T, heads*D] output gate of attention */
  void *mixed;         /* [T, heads*D] output of the mixer; activation of an MLP */
  void *out;           /* [T, H] what the experts give, where a shared expert adds to it */
  void *expert_out;    /* [T*K, H] */
  float *beta, *decay; /* [T, vh] of DeltaNet */
  float *peaks;        /* [T*K + T] largest values of the experts' outputs, then of the shared expert's */
  mo_routing routing;
  int64_t *counts; /* host [E] */
};

/* Values per token row of each buffer, wide enough for every layer. */
typedef struct {
  int64_t q, k, v, gate, mixed, delta, experts, routed; /* routed: expert rows per token */
} widths;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static widths widths_of(const mo_model_spec *spec) {
  widths w = {0};
  int64_t mlp = larger(spec->dense.width, spec->moe.shared_width);
  int64_t q = spec->attention.heads * spec->attention.head_dim,
          kv = spec->attention.kv_heads * spec->attention.head_dim;
  int64_t keys = spec->delta.k_heads * spec->delta.k_dim, values = spec->delta.v_heads * spec->delta.v_dim;
  w.q = larger(larger(q, mlp), 2 * keys + 2 * values);
  w.k = larger(larger(kv, mlp), 2 * spec->delta.v_heads);
  w.v = larger(kv, 2 * keys + values);
  w.gate = spec->attention.output_gate ? q : 0;
  w.mixed = larger(larger(q + w.gate, mlp), values);
  w.delta = spec->delta.v_heads;
  w.experts = spec->moe.experts;
  w.routed = spec->moe.experts ? spec->moe.top_k : 0;
  return w;
}

int64_t mo_workspace_bytes(const mo_model_spec *spec, int64_t B, int64_t S, int value_bytes) {
  enum { BUFFERS = 15, ROUNDING = 256 }; /* an alloc of a backend may be larger than asked for, to its alignment */
  widths w = widths_of(spec);
  int64_t values = 2 * spec->hidden + w.q + w.k + w.v + w.gate + w.mixed + w.routed * spec->hidden;
  return B * S * (values * value_bytes + w.delta * 8 + w.routed * 20 + 4) + (w.experts + 1) * 16 + BUFFERS * ROUNDING;
}

static mo_status open_routing(mo_workspace *ws, int64_t T, const widths *w) {
  if (!w->experts) return MO_OK;
  size_t cells = (size_t)(T * w->routed);
  MO_TRY(ws->op->alloc(ws->backend, cells * sizeof(int32_t), (void **)&ws->routing.expert));
  MO_TRY(ws->op->alloc(ws->backend, cells * sizeof(float), (void **)&ws->routing.weight));
  MO_TRY(ws->op->alloc(ws->backend, cells * sizeof(int32_t), (void **)&ws->routing.row));
  MO_TRY(ws->op->alloc(ws->backend, cells * sizeof(int32_t), (void **)&ws->routing.place));
  MO_TRY(ws->op->alloc(ws->backend, (cells + (size_t)T) * sizeof(float), (void **)&ws->peaks));
  ws->routing.start = mo_alloc((size_t)w->experts + 1, sizeof(int64_t));
  ws->counts = mo_alloc((size_t)w->experts, sizeof(int64_t));
  return ws->routing.start && ws->counts ? MO_OK : MO_FAILED;
}

static mo_status open_buffers(mo_workspace *ws) {
  widths w = widths_of(ws->spec);
  int64_t T = ws->B * ws->S, H = ws->spec->hidden;
  struct {
    void **buffer;
    int64_t width;
  } buffers[] = {{&ws->normed, H},    {&ws->q, w.q},         {&ws->k, w.k}, {&ws->v, w.v},
                 {&ws->gate, w.gate}, {&ws->mixed, w.mixed}, {&ws->out, H}, {&ws->expert_out, w.routed * H}};
  size_t floats = (size_t)(T * w.delta) * sizeof(float);
  MO_TRY(ws->op->alloc(ws->backend, floats, (void **)&ws->beta));
  MO_TRY(ws->op->alloc(ws->backend, floats, (void **)&ws->decay));
  for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
    MO_TRY(ws->op->alloc(ws->backend, (size_t)(T * buffers[i].width) * (size_t)ws->backend->activation_bytes,
                         buffers[i].buffer));
  return open_routing(ws, T, &w);
}

mo_status mo_workspace_open(mo_workspace **workspace, const mo_model_spec *spec, mo_backend *backend, int64_t B,
                            int64_t S) {
  mo_workspace *ws = mo_alloc(1, sizeof *ws);
  if (!ws) return MO_FAILED;
  ws->spec = spec;
  ws->backend = backend;
  ws->op = backend->table;
  ws->B = B;
  ws->S = S;
  mo_status status = open_buffers(ws);
  if (status != MO_OK)
    mo_workspace_close(ws);
  else
    *workspace = ws;
  return status;
}

void mo_workspace_close(mo_workspace *ws) {
  if (!ws) return;
  void *buffers[] = {
      ws->normed,       ws->q,     ws->k,     ws->v,          ws->gate,           ws->mixed,          ws->out,
      ws->beta,         ws->decay, ws->peaks, ws->expert_out, ws->routing.expert, ws->routing.weight, ws->routing.row,
      ws->routing.place};
  for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) ws->op->free(ws->backend, buffers[i]);
  free(ws->routing.start);
  free(ws->counts);
  free(ws);
}

/* A bias that the model may not have. */
static const mo_weight *maybe(const mo_stage_weights *weights, mo_role role) {
  return weights->one[role].data ? &weights->one[role] : NULL;
}

/* Queries or keys after their projection: normed, clamped, rotated. */
static mo_status finish_heads(mo_workspace *ws, const mo_weight *norm, void *x, int64_t T, int64_t heads) {
  const mo_model_spec *spec = ws->spec;
  int64_t D = spec->attention.head_dim;
  bool normed = spec->attention.qk_norm != MO_QK_NORM_NONE, whole = spec->attention.qk_norm == MO_QK_NORM_WHOLE;
  if (normed && !(spec->attention.clip > 0)) return ws->op->norm_rope(ws->backend, spec, norm, x, T, ws->S, heads);
  if (normed) MO_TRY(ws->op->norm(ws->backend, &spec->norm, norm, x, whole ? T : T * heads, whole ? heads * D : D, x));
  if (spec->attention.clip > 0) MO_TRY(ws->op->clamp(ws->backend, x, T * heads * D, spec->attention.clip));
  return ws->op->rope(ws->backend, spec, x, T, ws->S, heads);
}

/* Queries, keys and values of the site's tensor: projected, normed, clamped, rotated. */
static mo_status project(mo_workspace *ws, const mo_stage_weights *w, int64_t T) {
  const mo_model_spec *spec = ws->spec;
  int64_t heads = spec->attention.heads, kv_heads = spec->attention.kv_heads, D = spec->attention.head_dim;
  bool gated = spec->attention.output_gate; /* q_proj then gives query and gate of each head side by side */
  MO_TRY(ws->op->linear(ws->backend, &w->one[MO_Q], maybe(w, MO_Q_BIAS), ws->normed, T, gated ? ws->mixed : ws->q));
  if (gated) MO_TRY(ws->op->split(ws->backend, ws->mixed, T * heads, D, D, ws->q, ws->gate));
  MO_TRY(ws->op->linear(ws->backend, &w->one[MO_K], maybe(w, MO_K_BIAS), ws->normed, T, ws->k));
  MO_TRY(ws->op->linear(ws->backend, &w->one[MO_V], maybe(w, MO_V_BIAS), ws->normed, T, ws->v));
  if (spec->attention.clip > 0) MO_TRY(ws->op->clamp(ws->backend, ws->v, T * kv_heads * D, spec->attention.clip));
  MO_TRY(finish_heads(ws, &w->one[MO_Q_NORM], ws->q, T, heads));
  return finish_heads(ws, &w->one[MO_K_NORM], ws->k, T, kv_heads);
}

/* x [T, H] += attention of the site's tensor. */
static mo_status attention(mo_workspace *ws, const mo_layer_spec *layer, const mo_stage_weights *w, int64_t B,
                           float *top, void *x) {
  int64_t T = B * ws->S;
  MO_TRY(project(ws, w, T));
  MO_TRY(ws->op->attention(ws->backend, ws->spec, layer->window, maybe(w, MO_SINKS), ws->q, ws->k, ws->v, B, ws->S,
                           ws->mixed, top));
  if (ws->spec->attention.output_gate) {
    int64_t width = ws->spec->attention.heads * ws->spec->attention.head_dim;
    MO_TRY(ws->op->sigmoid_gate(ws->backend, ws->mixed, ws->gate, T, width, width));
  }
  return ws->op->linear_add(ws->backend, &w->one[MO_O], maybe(w, MO_O_BIAS), ws->mixed, T, x);
}

/* x [T, H] += the gated DeltaNet of the site's tensor. */
static mo_status deltanet(mo_workspace *ws, const mo_stage_weights *w, int64_t B, void *x) {
  int64_t T = B * ws->S;
  MO_TRY(ws->op->linear(ws->backend, &w->one[MO_DELTA_QKVZ], NULL, ws->normed, T, ws->q));
  MO_TRY(ws->op->linear(ws->backend, &w->one[MO_DELTA_BA], NULL, ws->normed, T, ws->k));
  MO_TRY(ws->op->delta_conv(ws->backend, ws->spec, w, ws->q, ws->k, B, ws->S, ws->v, ws->beta, ws->decay));
  MO_TRY(ws->op->delta_rule(ws->backend, ws->spec, ws->v, ws->beta, ws->decay, B, ws->S, ws->mixed));
  MO_TRY(ws->op->delta_norm(ws->backend, ws->spec, &w->one[MO_DELTA_NORM], ws->q, T, ws->mixed));
  return ws->op->linear_add(ws->backend, &w->one[MO_DELTA_OUT], NULL, ws->mixed, T, x);
}

/* mixed = silu(gate x) * up x of the site's tensor x: what `down` of a dense layer's MLP or a shared expert takes. */
static mo_status gate_up(mo_workspace *ws, const mo_weight *gate, const mo_weight *gate_bias, const mo_weight *up,
                         const mo_weight *up_bias, int64_t T) {
  MO_TRY(ws->op->linear(ws->backend, gate, gate_bias, ws->normed, T, ws->q));
  MO_TRY(ws->op->linear(ws->backend, up, up_bias, ws->normed, T, ws->k));
  return ws->op->glu(ws->backend, ws->q, ws->k, T * gate->rows, ws->mixed);
}

/* x [T, H] += the MLP of the site's tensor. */
static mo_status dense_mlp(mo_workspace *ws, const mo_stage_weights *w, int64_t T, void *x) {
  MO_TRY(gate_up(ws, &w->one[MO_GATE], maybe(w, MO_GATE_BIAS), &w->one[MO_UP], maybe(w, MO_UP_BIAS), T));
  return ws->op->linear_add(ws->backend, &w->one[MO_DOWN], maybe(w, MO_DOWN_BIAS), ws->mixed, T, x);
}

/* out = the shared expert's output, times sigmoid(its gate) where the model has one. peaks [T]: of the output, or NULL. */
static mo_status shared_expert(mo_workspace *ws, const mo_stage_weights *w, int64_t T, float *peaks) {
  int64_t H = ws->spec->hidden;
  MO_TRY(gate_up(ws, &w->one[MO_SHARED_GATE], NULL, &w->one[MO_SHARED_UP], NULL, T));
  MO_TRY(ws->op->linear(ws->backend, &w->one[MO_SHARED_DOWN], NULL, ws->mixed, T, ws->out));
  if (peaks) MO_TRY(ws->op->row_peaks(ws->backend, ws->out, T, H, peaks));
  if (ws->spec->moe.shared != MO_SHARED_GATED) return MO_OK;
  MO_TRY(ws->op->linear(ws->backend, &w->one[MO_SHARED_SCALE], NULL, ws->normed, T, ws->q));
  return ws->op->sigmoid_gate(ws->backend, ws->out, ws->q, T, H, 1);
}

static mo_status follow(mo_workspace *ws, const mo_followed *followed, const void *x, int64_t T, float *to) {
  return ws->op->take_features(ws->backend, x, T, ws->spec->hidden, followed->features, followed->n, to);
}

/* Where the shared expert's peaks are; NULL: not asked for, or there is none. */
static float *shared_peaks(const mo_workspace *ws, int64_t T, float *peaks) {
  return peaks && ws->spec->moe.shared != MO_SHARED_NONE ? peaks + T * ws->spec->moe.top_k : NULL;
}

/* x [T, H] += what the experts, and the shared one, give. The sum of the experts and the shared one rounds, as its order does
 * not matter. peaks: as in the workspace, NULL: not asked for. */
static mo_status add_experts(mo_workspace *ws, const mo_stage_weights *w, int64_t T, float *peaks,
                             const mo_followed *followed, void *x) {
  if (ws->spec->moe.shared == MO_SHARED_NONE)
    return ws->op->combine_add(ws->backend, ws->spec, ws->expert_out, &ws->routing, T, peaks, x);
  MO_TRY(shared_expert(ws, w, T, shared_peaks(ws, T, peaks)));
  if (followed) MO_TRY(follow(ws, followed, ws->out, T, followed->shared));
  MO_TRY(ws->op->combine_add(ws->backend, ws->spec, ws->expert_out, &ws->routing, T, peaks, ws->out));
  return ws->op->add(ws->backend, x, ws->out, T * ws->spec->hidden);
}

static mo_status add_followed(mo_workspace *ws, const mo_stage_weights *w, int64_t T, float *peaks,
                              const mo_layer_observer *observer, void *x) {
  const mo_followed *followed = observer->followed;
  if (followed) MO_TRY(follow(ws, followed, x, T, followed->before));
  MO_TRY(add_experts(ws, w, T, peaks, followed, x));
  if (!followed) return MO_OK;
  MO_TRY(follow(ws, followed, x, T, followed->after));
  return ws->op->expert_growth(ws->backend, ws->spec, ws->expert_out, &ws->routing, T / ws->S, ws->S, followed,
                               observer->growth);
}

/* x [T, H] += what the experts, and the shared one, make of the site's tensor. */
static mo_status moe(mo_workspace *ws, int64_t layer, const mo_stage_weights *w, int64_t T,
                     const mo_layer_observer *observer, void *x) {
  int64_t E = ws->spec->moe.experts;
  MO_TRY(ws->op->route(ws->backend, ws->spec, w, ws->normed, T, &ws->routing));
  for (int64_t e = 0; e < E; e++) ws->counts[e] = ws->routing.start[e + 1] - ws->routing.start[e];
  if (observer->routing) MO_TRY(observer->routing(observer->context, layer, ws->counts));
  MO_TRY(ws->op->experts(ws->backend, ws->spec, w, ws->normed, &ws->routing, 0, E, ws->expert_out));
  float *peaks = observer->experts ? ws->peaks : NULL;
  MO_TRY(add_followed(ws, w, T, peaks, observer, x));
  if (!peaks) return MO_OK;
  return observer->experts(observer->context, layer, &ws->routing, peaks, shared_peaks(ws, T, peaks));
}

/* The site's tensor is there. */
static mo_status site(mo_workspace *ws, int64_t layer, mo_site at, int64_t T, const mo_layer_observer *observer) {
  if (observer->n_zeroed)
    MO_TRY(ws->op->zero_features(ws->backend, ws->normed, T, ws->spec->hidden, observer->zeroed, observer->n_zeroed));
  return observer->site ? observer->site(observer->context, layer, at, ws->normed) : MO_OK;
}

/* The site's tensor will change, or the layer ends. */
static mo_status settle(const mo_layer_observer *observer) {
  return observer->settle ? observer->settle(observer->context) : MO_OK;
}

mo_status mo_layer_forward(mo_workspace *ws, int64_t layer, const mo_stage_weights *weights, void *x, int64_t B,
                           const mo_layer_observer *observer) {
  const mo_model_spec *spec = ws->spec;
  int64_t T = B * ws->S, H = spec->hidden;
  MO_TRY(ws->op->norm(ws->backend, &spec->norm, &weights->one[MO_INPUT_NORM], x, T, H, ws->normed));
  MO_TRY(site(ws, layer, MO_SITE_LN_ATTN, T, observer));
  if (spec->layers[layer].mixer == MO_MIXER_ATTENTION)
    MO_TRY(attention(ws, &spec->layers[layer], weights, B, observer->top, x));
  else
    MO_TRY(deltanet(ws, weights, B, x));
  MO_TRY(settle(observer));
  MO_TRY(ws->op->norm(ws->backend, &spec->norm, &weights->one[MO_POST_NORM], x, T, H, ws->normed));
  MO_TRY(site(ws, layer, MO_SITE_LN_MLP, T, observer));
  if (spec->layers[layer].mlp == MO_MLP_MOE)
    MO_TRY(moe(ws, layer, weights, T, observer, x));
  else
    MO_TRY(dense_mlp(ws, weights, T, x));
  return settle(observer);
}

mo_status mo_head_forward(mo_workspace *ws, const mo_stage_weights *weights, const void *x, int64_t B,
                          const int32_t *ids, float *nll, float *top) {
  MO_TRY(ws->op->norm(ws->backend, &ws->spec->norm, &weights->one[MO_FINAL_NORM], x, B * ws->S, ws->spec->hidden,
                      ws->normed));
  return ws->op->nll(ws->backend, &weights->one[MO_LM_HEAD], ws->normed, ids, B, ws->S, nll, top);
}
