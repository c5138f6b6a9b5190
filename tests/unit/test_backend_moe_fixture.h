/* For the tests of routing and experts: a mixture layer's weights, rows and routing in a backend's memory. */
#ifndef TEST_BACKEND_MOE_FIXTURE_H
#define TEST_BACKEND_MOE_FIXTURE_H

#include "test_backend_fixture.h"

typedef struct {
  int64_t T, E, K, H, F;
  mo_dtype dtype;
} moe_case;

typedef struct {
  moe_case c;
  mo_model_spec spec;
  mo_stage_weights weights;
  mo_routing routing;
  double *x, *router, *router_bias;
  double **gate, **up, **down;   /* [E] */
  void *rows;                    /* x in backend memory */
  int32_t *expert, *row, *place; /* read back */
  float *weight;
} scene;

static inline void open_scene(scene *s, moe_case c) {
  *s = (scene){.c = c};
  s->spec.hidden = c.H;
  s->spec.moe.experts = c.E;
  s->spec.moe.top_k = c.K;
  s->spec.moe.width = c.F;
  s->spec.moe.routed_scale = 1;
  s->spec.moe.groups = s->spec.moe.top_groups = 1;
  size_t cells = (size_t)(c.T * c.K);
  s->routing = (mo_routing){device_memory(cells * 4), device_memory(cells * 4), device_memory(cells * 4),
                            device_memory(cells * 4), host_memory(c.E + 1, sizeof(int64_t))};
}

/* Multiples of 1/2 that bf16 holds exactly: equal logits occur, and no rounding hides them. */
static inline void exact_router(scene *s) {
  s->x = doubles(s->c.T * s->c.H);
  s->router = doubles(s->c.E * s->c.H);
  for (int64_t i = 0; i < s->c.T * s->c.H; i++) s->x[i] = (double)random_below(3) - 1;
  for (int64_t i = 0; i < s->c.E * s->c.H; i++) s->router[i] = ((double)random_below(3) - 1) / 2;
  s->rows = activations(s->x, s->c.T * s->c.H);
  s->weights.one[MO_ROUTER] = weight_of(s->c.dtype, s->c.E, s->c.H, s->router);
}

static inline void route(scene *s) {
  size_t cells = (size_t)(s->c.T * s->c.K);
  ok(op->route(be, &s->spec, &s->weights, s->rows, s->c.T, &s->routing));
  s->expert = downloaded(s->routing.expert, cells * 4);
  s->weight = downloaded(s->routing.weight, cells * 4);
  s->row = downloaded(s->routing.row, cells * 4);
  s->place = downloaded(s->routing.place, cells * 4);
}

#endif
