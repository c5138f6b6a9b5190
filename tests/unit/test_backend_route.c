/* Routing of a backend against loops over single tokens.
 * backends: cpu check cuda */
#include "test_backend_moe_fixture.h"

static void naive_logits(const scene *s, int64_t t, double *logits) {
  for (int64_t e = 0; e < s->c.E; e++) {
    logits[e] = s->router_bias ? s->router_bias[e] : 0;
    for (int64_t h = 0; h < s->c.H; h++) logits[e] += s->x[t * s->c.H + h] * s->router[e * s->c.H + h];
  }
}

/* Indices by falling logit; the lower index first among equals. */
static void naive_order(const double *logits, int64_t E, int32_t *order) {
  for (int64_t e = 0; e < E; e++) {
    int64_t i = e;
    for (; i > 0 && logits[order[i - 1]] < logits[e]; i--) order[i] = order[i - 1];
    order[i] = (int32_t)e;
  }
}

static void expect_choices(const scene *s) {
  const moe_case *c = &s->c;
  int64_t ties = 0;
  for (int64_t t = 0; t < c->T; t++) {
    double logits[64], all = 0, chosen = 0;
    int32_t order[64];
    naive_logits(s, t, logits);
    naive_order(logits, c->E, order);
    assert_memory_equal(s->expert + t * c->K, order, (size_t)c->K * sizeof *order);
    for (int64_t e = 0; e < c->E; e++) all += exp(logits[e]);
    for (int64_t j = 0; j < c->K; j++) chosen += exp(logits[order[j]]);
    for (int64_t j = 0; j < c->K; j++) {
      double want = exp(logits[order[j]]) / (s->spec.moe.renormalise ? chosen : all);
      double got = s->weight[t * c->K + j], tolerance = 1e-6 * want;
      if (bf16 && s->spec.moe.weights_bf16) {
        assert_true(as_bf16(got) == got);
        tolerance += bf16_ulp(want) / 2;
      }
      if (!(fabs(got - want) <= tolerance)) fail_msg("weight %.9g, expected %.9g", got, want);
    }
    if (c->K < c->E) ties += logits[order[c->K - 1]] == logits[order[c->K]];
  }
  if (c->T > 50 && c->K < c->E) assert_true(ties > 0); /* else the test tests nothing */
}

/* start, row and place agree with the choices: rows grouped by expert, ascending within one. */
static void expect_groups(const scene *s) {
  int64_t r = 0;
  for (int64_t e = 0; e < s->c.E; e++) {
    assert_int_equal(s->routing.start[e], r);
    for (int64_t t = 0; t < s->c.T; t++)
      for (int64_t j = 0; j < s->c.K; j++)
        if (s->expert[t * s->c.K + j] == e) {
          assert_int_equal(s->row[r], t);
          assert_int_equal(s->place[t * s->c.K + j], r++);
        }
  }
  assert_int_equal(s->routing.start[s->c.E], s->c.T * s->c.K);
}

static void check_route(moe_case c, bool renormalise, bool weights_bf16, bool biased) {
  scene s;
  open_scene(&s, c);
  exact_router(&s);
  if (biased) {
    s.router_bias = doubles(c.E);
    for (int64_t e = 0; e < c.E; e++) s.router_bias[e] = (double)random_below(4) / 2;
    s.weights.one[MO_ROUTER_BIAS] = weight_of(c.dtype, 1, c.E, s.router_bias);
  }
  s.spec.moe.renormalise = renormalise;
  s.spec.moe.weights_bf16 = weights_bf16;
  route(&s);
  expect_choices(&s);
  expect_groups(&s);
}

static void route_with_ties(void **state) {
  (void)state;
  check_route((moe_case){.T = 97, .E = 9, .K = 3, .H = 21, .dtype = MO_BF16}, false, false, false);
  check_route((moe_case){.T = 97, .E = 9, .K = 3, .H = 21, .dtype = MO_F32}, true, false, false);
  check_route((moe_case){.T = 97, .E = 16, .K = 8, .H = 12, .dtype = MO_F16}, true, true, false);
}

static void route_at_the_edges(void **state) {
  (void)state;
  check_route((moe_case){.T = 1, .E = 1, .K = 1, .H = 5, .dtype = MO_BF16}, false, false, false);
  check_route((moe_case){.T = 60, .E = 5, .K = 5, .H = 5, .dtype = MO_BF16}, true, true, false);
  check_route((moe_case){.T = 60, .E = 7, .K = 1, .H = 5, .dtype = MO_BF16}, true, false, false);
}

static void route_with_bias(void **state) {
  (void)state;
  check_route((moe_case){.T = 97, .E = 9, .K = 2, .H = 21, .dtype = MO_BF16}, true, true, true);
  check_route((moe_case){.T = 97, .E = 9, .K = 2, .H = 21, .dtype = MO_BF16}, false, false, true);
}

/* All logits equal: the first K experts, each with the same weight. */
static void route_of_equal_logits(void **state) {
  (void)state;
  scene s;
  open_scene(&s, (moe_case){.T = 4, .E = 8, .K = 3, .H = 6, .dtype = MO_BF16});
  s.x = doubles(4 * 6);
  s.router = doubles(8 * 6);
  s.rows = activations(s.x, 4 * 6);
  s.weights.one[MO_ROUTER] = weight_of(MO_BF16, 8, 6, s.router);
  route(&s);
  for (int i = 0; i < 4 * 3; i++) {
    assert_int_equal(s.expert[i], i % 3);
    assert_true(s.weight[i] == 0.125f);
  }
  expect_groups(&s);
}

/* The K largest logits, softmax over these alone: the same as renormalised weights. */
static void route_topk_then_softmax(void **state) {
  (void)state;
  scene s;
  open_scene(&s, (moe_case){.T = 97, .E = 11, .K = 4, .H = 21, .dtype = MO_BF16});
  exact_router(&s);
  s.spec.moe.router = MO_ROUTER_TOPK_SOFTMAX;
  s.spec.moe.weights_bf16 = true;
  route(&s);
  s.spec.moe.renormalise = true; /* for the expectation */
  expect_choices(&s);
  expect_groups(&s);
}

/* What a sigmoid router does with the logits of a token: K experts, by falling sigmoid + correction among the best
 * groups; weights are the sigmoids. */
static void naive_sigmoid_route(const scene *s, int64_t t, const double *correction, int32_t *expert, double *weight) {
  int64_t E = s->c.E, K = s->c.K, groups = s->spec.moe.groups, size = E / groups;
  double scores[64], choice[64], sums[64], total = 0;
  int32_t order[64];
  naive_logits(s, t, scores);
  for (int64_t e = 0; e < E; e++) {
    scores[e] = 1 / (1 + exp(-scores[e]));
    choice[e] = (double)((float)scores[e] + (float)correction[e]);
  }
  for (int64_t g = 0; g < groups; g++) { /* a group's score: the sum of its two largest */
    naive_order(choice + g * size, size, order);
    sums[g] = choice[g * size + order[0]] + (size > 1 ? choice[g * size + order[1]] : 0);
  }
  naive_order(sums, groups, order);
  for (int64_t g = s->spec.moe.top_groups; g < groups; g++)
    for (int64_t e = 0; e < size; e++) choice[order[g] * size + e] = -INFINITY;
  naive_order(choice, E, order);
  for (int64_t j = 0; j < K; j++) {
    expert[j] = order[j];
    total += weight[j] = scores[order[j]];
  }
  for (int64_t j = 0; j < K; j++) weight[j] *= (double)s->spec.moe.routed_scale / (s->spec.moe.renormalise ? total : 1);
}

static void check_sigmoid_route(int64_t groups, int64_t top_groups, bool renormalise, double scale) {
  scene s;
  open_scene(&s, (moe_case){.T = 97, .E = 12, .K = 3, .H = 21, .dtype = MO_BF16});
  exact_router(&s);
  double correction[12];
  for (int e = 0; e < 12; e++) correction[e] = uniform(-0.3, 0.3);
  float stored[12];
  for (int e = 0; e < 12; e++) correction[e] = stored[e] = (float)correction[e]; /* float32 in bf16 runs, too */
  s.weights.one[MO_ROUTER_CORRECTION] =
      (mo_weight){.data = uploaded(stored, sizeof stored), .dtype = MO_F32, .rows = 1, .cols = 12};
  s.spec.moe.router = MO_ROUTER_SIGMOID;
  s.spec.moe.router_float = s.spec.moe.correction = true;
  s.spec.moe.groups = groups;
  s.spec.moe.top_groups = top_groups;
  s.spec.moe.renormalise = renormalise;
  s.spec.moe.routed_scale = (float)scale;
  route(&s);
  for (int64_t t = 0; t < s.c.T; t++) {
    int32_t expert[3];
    double weight[3];
    naive_sigmoid_route(&s, t, correction, expert, weight);
    assert_memory_equal(s.expert + t * 3, expert, sizeof expert);
    for (int j = 0; j < 3; j++)
      if (!(fabs(s.weight[t * 3 + j] - weight[j]) <= 2e-6 * fabs(weight[j])))
        fail_msg("weight %.9g, expected %.9g", (double)s.weight[t * 3 + j], weight[j]);
  }
  expect_groups(&s);
}

static void route_by_sigmoid(void **state) {
  (void)state;
  check_sigmoid_route(1, 1, true, 1);
  check_sigmoid_route(1, 1, false, 2.5);
}

static void route_by_sigmoid_in_groups(void **state) {
  (void)state;
  check_sigmoid_route(4, 2, true, 1);
  check_sigmoid_route(3, 1, true, 0.5);
  check_sigmoid_route(2, 2, false, 1);
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      VARIANTS(route_with_ties),
      VARIANTS(route_at_the_edges),
      VARIANTS(route_with_bias),
      VARIANTS(route_of_equal_logits),
      VARIANTS(route_topk_then_softmax),
      VARIANTS(route_by_sigmoid),
      VARIANTS(route_by_sigmoid_in_groups),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
