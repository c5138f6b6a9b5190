/* The one decoder layer: runs any layer that a mo_model_spec describes, through a backend's operations. */
#ifndef MOE_OUTLIERS_LAYER_H
#define MOE_OUTLIERS_LAYER_H

#include "moe_outliers/backend.h"

/* Buffers of one micro-batch, reused by every layer. */
typedef struct mo_workspace mo_workspace;

/* For micro-batches of up to B sequences of S tokens. */
MO_CHECKED mo_status mo_workspace_open(mo_workspace **workspace, const mo_model_spec *spec, mo_backend *backend,
                                       int64_t B, int64_t S);
void mo_workspace_close(mo_workspace *workspace);
/* Bound of what mo_workspace_open takes from a backend with activation values of `value_bytes`. */
int64_t mo_workspace_bytes(const mo_model_spec *spec, int64_t B, int64_t S, int value_bytes);

/* Who watches a layer, or changes it: told of each site's activations x [B*S, H] (backend memory, valid during the call) and of
 * the number of tokens sent to each expert, counts [E]; NULL: not. A status other than MO_OK ends the layer. */
typedef struct {
  void *context;
  mo_status (*site)(void *context, int64_t layer, mo_site site, const void *x);
  mo_status (*routing)(void *context, int64_t layer, const int64_t *counts);
  mo_status (*settle)(
      void *context);    /* after each site, when what follows is enqueued and x still as it was; NULL: not */
  const int32_t *zeroed; /* backend memory [n_zeroed]: columns of each site's tensor that are 0 for all that follows */
  int64_t n_zeroed;
  const mo_followed *followed; /* features whose growth by the experts is followed; NULL: none */
  double *growth;              /* of those, as expert_growth adds it up */
  float *top; /* backend memory [B*S, heads]: what attention says of its largest probabilities; NULL: not */
  /* After the experts: what the backend's expert_statistics takes; NULL: not asked for, and peaks are not looked for. */
  mo_status (*experts)(void *context, int64_t layer, const mo_routing *routing, const float *peaks,
                       const float *shared);
} mo_layer_observer;

/* x [B*S, H] <- layer(x), in place. layer: 0..L-1. */
MO_CHECKED mo_status mo_layer_forward(mo_workspace *workspace, int64_t layer, const mo_stage_weights *weights, void *x,
                                      int64_t B, const mo_layer_observer *observer);

/* nll (host, [B, S-1]) of the next tokens: final norm, lm_head. ids: host, [B, S]. top: host, [B, S-1], or NULL: probability of
 * the likeliest token. */
MO_CHECKED mo_status mo_head_forward(mo_workspace *workspace, const mo_stage_weights *weights, const void *x, int64_t B,
                                     const int32_t *ids, float *nll, float *top);

#endif
