#include "profile.h"

#include <stdio.h>

#include "model.h"

static profile_entry entries[PROFILE_OPERATIONS];
static mo_backend_table timed; /* the backend's table with the timed operations */
static const mo_backend_table *plain;
static bool waiting;

static mo_status record(mo_backend *backend, int place, const char *name, double begin, mo_status status) {
  if (status == MO_OK && waiting) status = plain->sync(backend);
  profile_entry *e = entries + place;
  snprintf(e->name, sizeof e->name, "%s", name);
  e->seconds += bench_now() - begin;
  e->calls++;
  return status;
}

#define TIMED(place, name, parameters, arguments)                 \
  static mo_status timed_##name parameters {                      \
    double begin = bench_now();                                   \
    return record(b, place, #name, begin, plain->name arguments); \
  }

TIMED(0, norm,
      (mo_backend * b, const mo_norm_spec *s, const mo_weight *w, const void *x, int64_t r, int64_t n, void *o),
      (b, s, w, x, r, n, o))
TIMED(1, linear, (mo_backend * b, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M, void *y),
      (b, w, bias, x, M, y))
TIMED(18, linear_add, (mo_backend * b, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M, void *y),
      (b, w, bias, x, M, y))
TIMED(2, rope, (mo_backend * b, const mo_model_spec *s, void *x, int64_t T, int64_t S, int64_t h), (b, s, x, T, S, h))
TIMED(16, norm_rope,
      (mo_backend * b, const mo_model_spec *s, const mo_weight *w, void *x, int64_t T, int64_t S, int64_t h),
      (b, s, w, x, T, S, h))
TIMED(3, attention,
      (mo_backend * b, const mo_model_spec *s, int64_t w, const mo_weight *k, const void *q, const void *kk,
       const void *v, int64_t B, int64_t S, void *o, float *top),
      (b, s, w, k, q, kk, v, B, S, o, top))
TIMED(4, add, (mo_backend * b, void *x, const void *y, int64_t n), (b, x, y, n))
TIMED(5, glu, (mo_backend * b, const void *g, const void *u, int64_t n, void *o), (b, g, u, n, o))
TIMED(6, route,
      (mo_backend * b, const mo_model_spec *s, const mo_stage_weights *w, const void *x, int64_t T, mo_routing *r),
      (b, s, w, x, T, r))
TIMED(7, experts,
      (mo_backend * b, const mo_model_spec *s, const mo_stage_weights *w, const void *x, const mo_routing *r, int64_t f,
       int64_t l, void *o),
      (b, s, w, x, r, f, l, o))
TIMED(15, combine_add,
      (mo_backend * b, const mo_model_spec *s, const void *e, const mo_routing *r, int64_t T, float *p, void *y),
      (b, s, e, r, T, p, y))
TIMED(8, combine,
      (mo_backend * b, const mo_model_spec *s, const void *e, const mo_routing *r, int64_t T, float *p, void *y),
      (b, s, e, r, T, p, y))
TIMED(9, site_statistics,
      (mo_backend * b, const void *x, int64_t B, int64_t S, int64_t H, float t, uint64_t *p, int64_t f, int32_t *c),
      (b, x, B, S, H, t, p, f, c))
TIMED(19, row_peaks, (mo_backend * b, const void *x, int64_t r, int64_t w, float *p), (b, x, r, w, p))
TIMED(20, expert_statistics,
      (mo_backend * b, const mo_model_spec *s, int64_t T, const int32_t *c, const mo_routing *r, const float *p,
       const float *shared),
      (b, s, T, c, r, p, shared))
TIMED(17, site_results, (mo_backend * b, mo_site_statistics *s), (b, s))
TIMED(10, delta_conv,
      (mo_backend * b, const mo_model_spec *s, const mo_stage_weights *w, const void *q, const void *ba, int64_t B,
       int64_t S, void *m, float *be, float *d),
      (b, s, w, q, ba, B, S, m, be, d))
TIMED(11, delta_rule,
      (mo_backend * b, const mo_model_spec *s, const void *m, const float *be, const float *d, int64_t B, int64_t S,
       void *o),
      (b, s, m, be, d, B, S, o))
TIMED(12, delta_norm, (mo_backend * b, const mo_model_spec *s, const mo_weight *w, const void *q, int64_t T, void *x),
      (b, s, w, q, T, x))
TIMED(13, split, (mo_backend * b, const void *x, int64_t r, int64_t a, int64_t c, void *l, void *ri),
      (b, x, r, a, c, l, ri))
TIMED(14, sigmoid_gate, (mo_backend * b, void *x, const void *g, int64_t r, int64_t w, int64_t gw), (b, x, g, r, w, gw))

const profile_entry *profile_entries(void) { return entries; }

void profile_begin(mo_backend *backend, bool wait) {
  plain = backend->table;
  waiting = wait;
  timed = *plain;
  timed.norm = timed_norm;
  timed.linear = timed_linear;
  timed.linear_add = timed_linear_add;
  timed.rope = timed_rope;
  timed.norm_rope = timed_norm_rope;
  timed.attention = timed_attention;
  timed.add = timed_add;
  timed.glu = timed_glu;
  timed.route = timed_route;
  timed.experts = timed_experts;
  timed.combine = timed_combine;
  timed.combine_add = timed_combine_add;
  timed.site_statistics = timed_site_statistics;
  timed.site_results = timed_site_results;
  timed.row_peaks = timed_row_peaks;
  timed.expert_statistics = timed_expert_statistics;
  timed.delta_conv = timed_delta_conv;
  timed.delta_rule = timed_delta_rule;
  timed.delta_norm = timed_delta_norm;
  timed.split = timed_split;
  timed.sigmoid_gate = timed_sigmoid_gate;
  backend->table = &timed;
}
