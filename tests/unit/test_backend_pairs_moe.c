/* Routing, experts and the combination of their outputs on two backends.
 * backends: check cuda */
#include "test_backend_pair_fixture.h"

/* A routing in the memory of both; start is on the host. */
typedef struct {
  mo_routing here, cpu;
} twin_routing;

static twin_routing new_routing(int64_t T, int64_t E, int64_t K) {
  size_t bytes = (size_t)(T * K) * 4;
  twin expert = twin_memory(bytes), weight = twin_memory(bytes), row = twin_memory(bytes), place = twin_memory(bytes);
  return (twin_routing){{expert.here, weight.here, row.here, place.here, host_memory(E + 1, sizeof(int64_t))},
                        {expert.cpu, weight.cpu, row.cpu, place.cpu, host_memory(E + 1, sizeof(int64_t))}};
}

static mo_model_spec moe_spec(int64_t E, int64_t K, int64_t H, int64_t F) {
  mo_model_spec spec = {.hidden = H};
  spec.moe.experts = E;
  spec.moe.top_k = K;
  spec.moe.width = F;
  spec.moe.routed_scale = 1;
  spec.moe.groups = spec.moe.top_groups = 1;
  return spec;
}

/* --- routing --- */

typedef struct {
  int64_t T, E, K;
  mo_router_kind router;
  bool renormalise, biased, router_float;
  int64_t groups, top_groups;
} route_case;

/* Choices, groups and places are the same bytes: the logits are multiples of 1/2, with many ties, which float32 and bf16 hold
 * exactly in whatever order they are summed. Weights: exp differs in the last digits; in bf16 they may round to a neighbour. */
static void expect_same_routing(const route_case *c, const twin_routing *r) {
  int64_t cells = c->T * c->K;
  size_t bytes = (size_t)cells * 4;
  expect_same_bytes("experts", (twin){r->here.expert, r->cpu.expert}, bytes);
  expect_same_bytes("rows", (twin){r->here.row, r->cpu.row}, bytes);
  expect_same_bytes("places", (twin){r->here.place, r->cpu.place}, bytes);
  assert_memory_equal(r->here.start, r->cpu.start, (size_t)(c->E + 1) * sizeof(int64_t));
  const float *got = downloaded(r->here.weight, bytes);
  for (int64_t i = 0; i < cells; i++) {
    double want = (double)r->cpu.weight[i], allowed = 1e-5 * want + (bf16 ? bf16_ulp(want) : 0);
    if (!(fabs((double)got[i] - want) <= allowed))
      fail_msg("weight %lld is %.9g, on the cpu %.9g", (long long)i, (double)got[i], want);
  }
}

static void check_route(route_case c) {
  enum { H = 20 };
  float *x = host_memory(c.T * H, sizeof *x), *w = host_memory(c.E * H, sizeof *w), *b = host_memory(c.E, sizeof *b);
  for (int64_t i = 0; i < c.T * H; i++) x[i] = (float)(random_below(3) - 1);
  for (int64_t i = 0; i < c.E * H; i++) w[i] = (float)(random_below(3) - 1) / 2;
  mo_model_spec spec = moe_spec(c.E, c.K, H, 1);
  spec.moe.router = c.router;
  spec.moe.renormalise = c.renormalise;
  spec.moe.router_float = c.router_float;
  spec.moe.weights_bf16 = !c.router_float;
  spec.moe.correction = c.router == MO_ROUTER_SIGMOID;
  spec.moe.groups = c.groups ? c.groups : 1;
  spec.moe.top_groups = c.top_groups ? c.top_groups : 1;
  spec.moe.routed_scale = c.router == MO_ROUTER_SIGMOID ? 2.5f : 1;
  twin rows = twin_values(x, c.T * H), router = twin_upload(w, (size_t)(c.E * H) * 4);
  for (int64_t e = 0; e < c.E; e++) b[e] = (float)random_below(4) / (spec.moe.correction ? 64 : 2);
  twin bias = twin_upload(b, (size_t)c.E * 4);
  mo_role role = spec.moe.correction ? MO_ROUTER_CORRECTION : MO_ROUTER_BIAS;
  mo_weight matrix = {.data = router.here, .dtype = MO_F32, .rows = c.E, .cols = H};
  mo_weight vector = {
      .data = c.biased || spec.moe.correction ? bias.here : NULL, .dtype = MO_F32, .rows = 1, .cols = c.E};
  mo_stage_weights here = {.one = {[MO_ROUTER] = matrix}}, there = here;
  here.one[role] = there.one[role] = vector;
  there.one[MO_ROUTER].data = router.cpu;
  there.one[role].data = vector.data ? bias.cpu : NULL;
  twin_routing routing = new_routing(c.T, c.E, c.K);
  ok(op->route(be, &spec, &here, rows.here, c.T, &routing.here));
  ok(cpu_op->route(cpu, &spec, &there, rows.cpu, c.T, &routing.cpu));
  expect_same_routing(&c, &routing);
}

static void route_by_softmax(void **state) {
  (void)state;
  static const int64_t sizes[][3] = {{1, 1, 1},      {97, 9, 3},    {130, 33, 5},  {1500, 64, 8}, {257, 128, 8},
                                     {300, 512, 10}, {40, 1024, 4}, {33, 1500, 7}, {61, 2, 2}};
  for (int i = 0; i < 9; i++)
    for (int v = 0; v < 2; v++)
      check_route((route_case){.T = sizes[i][0],
                               .E = sizes[i][1],
                               .K = sizes[i][2],
                               .router = MO_ROUTER_SOFTMAX_TOPK,
                               .renormalise = v,
                               .biased = i % 2 == v,
                               .router_float = i % 3 == 0});
}

static void route_by_largest_logits(void **state) {
  (void)state;
  check_route((route_case){.T = 1031, .E = 32, .K = 4, .router = MO_ROUTER_TOPK_SOFTMAX, .biased = true});
  check_route((route_case){.T = 97, .E = 128, .K = 4, .router = MO_ROUTER_TOPK_SOFTMAX, .biased = true});
  check_route((route_case){.T = 31, .E = 1100, .K = 40, .router = MO_ROUTER_TOPK_SOFTMAX});
}

static void route_by_sigmoid(void **state) {
  (void)state;
  check_route(
      (route_case){.T = 777, .E = 128, .K = 8, .router = MO_ROUTER_SIGMOID, .renormalise = true, .router_float = true});
  check_route((route_case){
      .T = 97, .E = 12, .K = 3, .router = MO_ROUTER_SIGMOID, .router_float = true, .groups = 4, .top_groups = 2});
  check_route((route_case){.T = 97,
                           .E = 256,
                           .K = 8,
                           .router = MO_ROUTER_SIGMOID,
                           .renormalise = true,
                           .router_float = true,
                           .groups = 8,
                           .top_groups = 4});
  check_route((route_case){
      .T = 33, .E = 1200, .K = 6, .router = MO_ROUTER_SIGMOID, .router_float = true, .groups = 40, .top_groups = 3});
}

/* Logits of any value differ a little: each choice must be right up to that. */
static void route_of_real_values(void **state) {
  (void)state;
  enum { T = 203, E = 96, K = 6, H = 264 };
  mo_model_spec spec = moe_spec(E, K, H, 1);
  float *x = random_values(T * H, 1, 10);
  twin rows = twin_values(x, T * H);
  double *w;
  mo_weight router = random_weight(MO_BF16, E, H, 0.2, &w);
  mo_stage_weights weights = {.one = {[MO_ROUTER] = router}};
  twin_routing r = new_routing(T, E, K);
  ok(op->route(be, &spec, &weights, rows.here, T, &r.here));
  const int32_t *expert = downloaded(r.here.expert, T * K * 4);
  for (int64_t t = 0; t < T; t++) {
    double logits[E], magnitude = 0, least = INFINITY, most = -INFINITY;
    for (int64_t e = 0; e < E; e++) {
      logits[e] = 0;
      for (int64_t h = 0; h < H; h++) logits[e] += (double)x[t * H + h] * w[e * H + h];
      magnitude = fmax(magnitude, fabs(logits[e]));
    }
    double slack = magnitude * (bf16 ? 0x1p-7 : 1e-5);
    for (int64_t j = 0; j < K; j++) {
      double logit = logits[expert[t * K + j]];
      assert_true(logit <= least + slack); /* by falling score */
      least = fmin(least, logit);
      logits[expert[t * K + j]] = -INFINITY; /* no expert twice */
      assert_true(isfinite(logit));
    }
    for (int64_t e = 0; e < E; e++) most = fmax(most, logits[e]);
    assert_true(least >= most - slack);
  }
}

/* --- experts --- */

typedef enum { SEPARATE, NEIGHBOURS, FUSED_TRANSPOSED, FUSED_MXFP4, SHIFTED } expert_layout; /* SHIFTED: by one value */

typedef struct {
  int64_t T, E, K, H, F;
  expert_layout layout;
  mo_dtype dtype;
} expert_case;

/* [E] views of matrices [rows, cols], `stride` matrices apart, from the `first` on. */
static void view(const twin_weight *all, int64_t E, int64_t rows, int64_t cols, int64_t stride, int64_t first,
                 mo_weight **here, mo_weight **there) {
  *here = host_memory(E, sizeof **here);
  *there = host_memory(E, sizeof **there);
  for (int64_t e = 0; e < E; e++) {
    int64_t at = (e * stride + first) * rows * cols;
    bool packed = all->here.dtype == MO_U8;
    size_t bytes = packed ? (size_t)at / 2 : (size_t)at * mo_dtype_size(all->here.dtype);
    mo_weight w = all->here;
    w.rows = all->here.transposed ? cols : rows;
    w.cols = all->here.transposed ? rows : cols;
    (*here)[e] = (*there)[e] = w;
    (*here)[e].data = (const char *)all->here.data + bytes;
    (*there)[e].data = (const char *)all->cpu.data + bytes;
    (*here)[e].scales = packed ? (const char *)all->here.scales + at / 32 : NULL;
    (*there)[e].scales = packed ? (const char *)all->cpu.scales + at / 32 : NULL;
  }
}

/* Values up to some 2 / sqrt(cols). */
static twin_weight twin_mxfp4(int64_t rows, int64_t cols) {
  int64_t n = rows * cols;
  uint8_t *codes = host_memory(n / 2, 1), *scales = host_memory(n / 32, 1);
  int exponent = 127 - 1 - ilogb(sqrt((double)cols));
  for (int64_t i = 0; i < n / 2; i++) codes[i] = (uint8_t)random_bits();
  for (int64_t i = 0; i < n / 32; i++) scales[i] = (uint8_t)(exponent - random_below(3));
  twin data = twin_upload(codes, (size_t)n / 2), factors = twin_upload(scales, (size_t)n / 32);
  mo_weight w = {.data = data.here, .dtype = MO_U8, .rows = rows, .cols = cols, .scales = factors.here};
  twin_weight both = {w, w};
  both.cpu.data = data.cpu;
  both.cpu.scales = factors.cpu;
  return both;
}

static twin_weight separate_matrices(const expert_case *c, int64_t rows, int64_t cols, double scale) {
  int64_t shift = c->layout == SHIFTED;
  twin_weight w = twin_matrix(c->dtype, 1, c->E * rows * cols + shift, scale);
  w.here.data = (const char *)w.here.data + (size_t)shift * mo_dtype_size(c->dtype);
  w.cpu.data = (const char *)w.cpu.data + (size_t)shift * mo_dtype_size(c->dtype);
  return w;
}

static void open_separate(const expert_case *c, mo_stage_weights *here, mo_stage_weights *there) {
  double scale = 2 / sqrt((double)c->H);
  twin_weight down = separate_matrices(c, c->H, c->F, 2 / sqrt((double)c->F));
  view(&down, c->E, c->H, c->F, 1, 0, &here->expert_down, &there->expert_down);
  if (c->layout == NEIGHBOURS) { /* each expert's gate and up one behind the other */
    twin_weight both = separate_matrices(c, 2 * c->F, c->H, scale);
    view(&both, c->E, c->F, c->H, 2, 0, &here->expert_gate, &there->expert_gate);
    view(&both, c->E, c->F, c->H, 2, 1, &here->expert_up, &there->expert_up);
    return;
  }
  twin_weight gate = separate_matrices(c, c->F, c->H, scale), up = separate_matrices(c, c->F, c->H, scale);
  view(&gate, c->E, c->F, c->H, 1, 0, &here->expert_gate, &there->expert_gate);
  view(&up, c->E, c->F, c->H, 1, 0, &here->expert_up, &there->expert_up);
}

static void open_fused(const expert_case *c, mo_model_spec *spec, mo_stage_weights *here, mo_stage_weights *there) {
  int64_t E = c->E, H = c->H, F = c->F;
  bool packed = c->layout == FUSED_MXFP4;
  twin_weight gate_up = packed ? twin_mxfp4(E * 2 * F, H) : twin_matrix(c->dtype, E * H, 2 * F, 2 / sqrt((double)H));
  twin_weight down = packed ? twin_mxfp4(E * H, F) : twin_matrix(c->dtype, E * F, H, 2 / sqrt((double)F));
  mo_dtype biases = packed ? MO_BF16 : c->dtype;
  twin_weight gate_up_bias = twin_matrix(biases, E, 2 * F, 1), down_bias = twin_matrix(biases, E, H, 1);
  gate_up.here.transposed = gate_up.cpu.transposed = down.here.transposed = down.cpu.transposed = !packed;
  view(&gate_up, E, packed ? 2 * F : H, packed ? H : 2 * F, 1, 0, &here->expert_gate_up, &there->expert_gate_up);
  view(&down, E, packed ? H : F, packed ? F : H, 1, 0, &here->expert_down, &there->expert_down);
  view(&gate_up_bias, E, 1, 2 * F, 1, 0, &here->expert_gate_up_bias, &there->expert_gate_up_bias);
  view(&down_bias, E, 1, H, 1, 0, &here->expert_down_bias, &there->expert_down_bias);
  spec->moe.fused = spec->moe.expert_bias = true;
  spec->moe.mxfp4 = packed;
  spec->moe.glu = MO_GLU_CLAMPED;
  spec->moe.glu_limit = 1.5f;
  spec->moe.glu_alpha = 1.702f;
}

/* The routing by which token t goes to experts chosen[t * K ..]; with weights of slots, or without. */
static twin_routing routing_of(const expert_case *c, const int32_t *chosen, bool weights) {
  int64_t R = c->T * c->K, r = 0;
  int32_t *row = host_memory(R, 4), *place = host_memory(R, 4);
  float *weight = host_memory(R, 4);
  int64_t *start = host_memory(c->E + 1, sizeof *start);
  for (int64_t i = 0; i < R; i++) weight[i] = (float)rounded(uniform(0, 1));
  for (int64_t e = 0; e <= c->E; e++) {
    start[e] = r;
    for (int64_t i = 0; i < R && e < c->E; i++)
      if (chosen[i] == e) row[r] = (int32_t)(i / c->K), place[i] = (int32_t)r++;
  }
  twin_routing both;
  twin experts = twin_upload(chosen, (size_t)R * 4), rows = twin_upload(row, (size_t)R * 4),
       places = twin_upload(place, (size_t)R * 4), factors = twin_upload(weight, (size_t)R * 4);
  both.here = (mo_routing){experts.here, weights ? factors.here : NULL, rows.here, places.here, start};
  both.cpu = (mo_routing){experts.cpu, weights ? factors.cpu : NULL, rows.cpu, places.cpu, start};
  return both;
}

/* Each token's experts: a run of neighbours from a random one, which is 0 for half of the tokens: groups of all sizes. */
static twin_routing given_routing(const expert_case *c, bool weights) {
  int32_t *chosen = host_memory(c->T * c->K, 4);
  for (int64_t t = 0; t < c->T; t++) {
    int64_t first = random_below(2) ? 0 : random_below(c->E);
    for (int64_t j = 0; j < c->K; j++) chosen[t * c->K + j] = (int32_t)((first + c->K - 1 - j) % c->E);
  }
  return routing_of(c, chosen, weights);
}

static void open_weights(const expert_case *c, mo_model_spec *spec, mo_stage_weights *here, mo_stage_weights *there) {
  *here = *there = (mo_stage_weights){0};
  if (c->layout == FUSED_TRANSPOSED || c->layout == FUSED_MXFP4)
    open_fused(c, spec, here, there);
  else
    open_separate(c, here, there);
}

static const nearness near_experts = {.ulps = 2, .spread = 0x1p-6, .unequal = 0.1};

static void check_experts(expert_case c) {
  mo_model_spec spec = moe_spec(c.E, c.K, c.H, c.F);
  mo_stage_weights here, there;
  open_weights(&c, &spec, &here, &there);
  twin x = twin_values(random_values(c.T * c.H, 2, 10), c.T * c.H), out = twin_out(c.T * c.K * c.H);
  twin_routing routing = given_routing(&c, false);
  int64_t cut = c.E / 2; /* in two parts: the second may not disturb the first */
  ok(op->experts(be, &spec, &here, x.here, &routing.here, 0, cut, out.here));
  ok(op->experts(be, &spec, &here, x.here, &routing.here, cut, c.E, out.here));
  ok(cpu_op->experts(cpu, &spec, &there, x.cpu, &routing.cpu, 0, c.E, out.cpu));
  expect_same("experts", out, c.T * c.K * c.H, near_experts);
}

static void experts_of_each_layout(void **state) {
  (void)state;
  static const int64_t sizes[][5] = {{1, 1, 1, 1, 1}, {29, 5, 2, 37, 23}, {40, 6, 3, 72, 88}, {70, 7, 2, 64, 96}};
  for (int i = 0; i < 4; i++)
    for (int d = 0; d < 3; d++) {
      mo_dtype dtype = (mo_dtype[]){MO_F32, MO_BF16, MO_F16}[d];
      for (expert_layout layout = SEPARATE; layout <= FUSED_TRANSPOSED; layout++)
        check_experts((expert_case){sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3], sizes[i][4], layout, dtype});
    }
}

static void experts_in_mxfp4(void **state) {
  (void)state;
  check_experts((expert_case){33, 4, 2, 32, 64, FUSED_MXFP4, MO_U8});
  check_experts((expert_case){150, 6, 4, 192, 160, FUSED_MXFP4, MO_U8});
  check_experts((expert_case){700, 5, 2, 256, 128, FUSED_MXFP4, MO_U8});
}

/* Rows about the sizes of tiles; widths that are multiples of 64 and those that are not. */
static void experts_of_many_rows(void **state) {
  (void)state;
  check_experts((expert_case){700, 5, 2, 256, 128, SEPARATE, MO_BF16});
  check_experts((expert_case){515, 3, 1, 320, 192, NEIGHBOURS, MO_BF16});
  check_experts((expert_case){600, 4, 2, 136, 200, SEPARATE, MO_BF16});
  check_experts((expert_case){300, 4, 3, 128, 256, FUSED_TRANSPOSED, MO_BF16});
}

static void many_experts(void **state) {
  (void)state;
  check_experts((expert_case){130, 96, 8, 128, 64, SEPARATE, MO_BF16});
  check_experts((expert_case){20, 300, 10, 64, 32, NEIGHBOURS, MO_BF16});
  check_experts((expert_case){40, 530, 5, 16, 8, SEPARATE, MO_BF16});
}

static void experts_not_aligned(void **state) {
  (void)state;
  check_experts((expert_case){90, 4, 2, 72, 40, SHIFTED, MO_BF16});
}

/* Expert e gets counts[e] of the tokens, which come in a random order. */
static twin_routing counted_routing(const expert_case *c, const int64_t *counts) {
  int32_t *chosen = host_memory(c->T, 4);
  int64_t n = 0;
  for (int64_t e = 0; e < c->E; e++)
    for (int64_t i = 0; i < counts[e]; i++) chosen[n++] = (int32_t)e;
  assert_true(n == c->T && c->K == 1);
  for (int64_t t = n - 1; t > 0; t--) {
    int64_t other = random_below(t + 1);
    int32_t e = chosen[t];
    chosen[t] = chosen[other];
    chosen[other] = e;
  }
  return routing_of(c, chosen, false);
}

/* Experts first .. last-1 alone: their rows as on the cpu, all others left as they were. */
static void check_range(const expert_case *c, const mo_model_spec *spec, const mo_stage_weights *here, const twin *x,
                        const twin_routing *routing, const float *want, int64_t first, int64_t last) {
  int64_t n = c->T * c->H, begin_row = routing->here.start[first] * c->H, end_row = routing->here.start[last] * c->H;
  float *marks = host_memory(n, sizeof *marks);
  for (int64_t i = 0; i < n; i++) marks[i] = 77;
  twin out = twin_values(marks, n);
  ok(op->experts(be, spec, here, x->here, &routing->here, first, last, out.here));
  const float *got = result(out.here, n);
  expect_near("experts of a range", got + begin_row, want + begin_row, end_row - begin_row, near_experts);
  for (int64_t i = 0; i < n; i++)
    if ((i < begin_row || i >= end_row) && got[i] != 77)
      fail_msg("experts %lld to %lld wrote row %lld", (long long)first, (long long)last, (long long)(i / c->H));
}

/* Numbers of rows about the sizes of tiles, at each place in the order of experts. */
static void experts_of_given_rows(void **state) {
  (void)state;
  static const int64_t counts[][9] = {{0, 1, 63, 64, 65, 127, 128, 129, 300}, {129, 300, 0, 0, 128, 64, 1, 255, 0}};
  static const int64_t widths[][2] = {{72, 40}, {136, 264}, {520, 136}},
                       ranges[][2] = {{0, 9}, {0, 1}, {1, 2}, {2, 7}, {5, 9}, {8, 9}};
  for (int i = 0; i < 6; i++) {
    expert_case c = {0, 9, 1, widths[i / 2][0], widths[i / 2][1], i == 2 ? NEIGHBOURS : SEPARATE, MO_BF16};
    for (int e = 0; e < 9; e++) c.T += counts[i % 2][e];
    mo_model_spec spec = moe_spec(c.E, c.K, c.H, c.F);
    mo_stage_weights here, there;
    open_weights(&c, &spec, &here, &there);
    twin x = twin_values(random_values(c.T * c.H, 2, 10), c.T * c.H);
    twin_routing routing = counted_routing(&c, counts[i % 2]);
    float *want = host_memory(c.T * c.H, sizeof *want);
    void *out = cpu_memory((size_t)(c.T * c.H) * (size_t)cpu->activation_bytes);
    ok(cpu_op->experts(cpu, &spec, &there, x.cpu, &routing.cpu, 0, c.E, out));
    ok(cpu_op->read_activations(cpu, out, c.T * c.H, want));
    for (int r = 0; r < 6; r++) check_range(&c, &spec, &here, &x, &routing, want, ranges[r][0], ranges[r][1]);
  }
}

static void a_single_expert(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 64, 129, 300};
  for (int i = 0; i < 4; i++) check_experts((expert_case){rows[i], 1, 1, 72 + 64 * (i % 2), 264, SEPARATE, MO_BF16});
}

/* --- combine: products and partial sums are single roundings in a given order, so the bytes are the same --- */

/* Widths that pack into wide loads in fp32 and bf16 runs, in fp32 runs only, and in none. */
static const int64_t combine_sizes[][4] = {{1, 1, 1, 1},     {53, 8, 4, 31},  {29, 128, 8, 264}, {7, 300, 10, 2880},
                                           {11, 40, 33, 72}, {19, 6, 2, 108}, {3, 5, 3, 4097}};

static void combine(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof combine_sizes / sizeof combine_sizes[0]; i++) {
    expert_case c = {
        .T = combine_sizes[i][0], .E = combine_sizes[i][1], .K = combine_sizes[i][2], .H = combine_sizes[i][3]};
    mo_model_spec spec = moe_spec(c.E, c.K, c.H, 1);
    twin_routing routing = given_routing(&c, true);
    twin rows = twin_random(c.T * c.K * c.H, 3), out = twin_out(c.T * c.H), plain = twin_out(c.T * c.H);
    twin peaks = twin_memory((size_t)(c.T * c.K) * sizeof(float));
    ok(op->combine(be, &spec, rows.here, &routing.here, c.T, peaks.here, out.here));
    ok(cpu_op->combine(cpu, &spec, rows.cpu, &routing.cpu, c.T, peaks.cpu, out.cpu));
    expect_same("combine", out, c.T * c.H, exactly);
    expect_same_bytes("peaks", peaks, (size_t)(c.T * c.K) * sizeof(float));
    plain.cpu = out.cpu;
    ok(op->combine(be, &spec, rows.here, &routing.here, c.T, NULL, plain.here));
    expect_same("combine without peaks", plain, c.T * c.H, exactly);
  }
}

/* Of a micro-batch with what combine and row_peaks find in it: the same numbers. */
static void expert_statistics(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof combine_sizes / sizeof combine_sizes[0]; i++) {
    expert_case c = {
        .T = combine_sizes[i][0], .E = combine_sizes[i][1], .K = combine_sizes[i][2], .H = combine_sizes[i][3]};
    int64_t n = c.T * c.H;
    mo_model_spec spec = moe_spec(c.E, c.K, c.H, 1);
    twin_routing routing = given_routing(&c, true);
    int32_t *counts = host_memory(c.T, sizeof *counts);
    for (int64_t t = 0; t < c.T; t++) counts[t] = (int32_t)random_below(3);
    twin row_counts = twin_upload(counts, (size_t)c.T * sizeof *counts);
    twin x = twin_values(random_values(n, 3, 30), n), rows = twin_random(n * c.K, 3), out = twin_random(n, 1);
    twin peaks = twin_memory((size_t)(c.T * c.K) * sizeof(float)), shared = twin_memory((size_t)c.T * sizeof(float));
    mo_expert_statistics got, want;
    ok(op->combine_add(be, &spec, rows.here, &routing.here, c.T, peaks.here, out.here));
    ok(cpu_op->combine_add(cpu, &spec, rows.cpu, &routing.cpu, c.T, peaks.cpu, out.cpu));
    ok(op->row_peaks(be, x.here, c.T, c.H, shared.here));
    ok(cpu_op->row_peaks(cpu, x.cpu, c.T, c.H, shared.cpu));
    ok(op->expert_statistics(be, &spec, c.T, row_counts.here, &routing.here, peaks.here, i % 2 ? shared.here : NULL));
    ok(cpu_op->expert_statistics(cpu, &spec, c.T, row_counts.cpu, &routing.cpu, peaks.cpu, i % 2 ? shared.cpu : NULL));
    ok(op->expert_results(be, &got));
    ok(cpu_op->expert_results(cpu, &want));
    assert_int_equal(got.n, want.n);
    assert_memory_equal(got.experts, want.experts, (size_t)want.n * sizeof *want.experts);
    expect_same_bytes("row_peaks", shared, (size_t)c.T * sizeof(float));
  }
}

/* The bytes of combine and add, here and on the cpu; sums of large and small values, of zeros of both signs, of infinities. */
static void combine_add(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof combine_sizes / sizeof combine_sizes[0]; i++) {
    expert_case c = {
        .T = combine_sizes[i][0], .E = combine_sizes[i][1], .K = combine_sizes[i][2], .H = combine_sizes[i][3]};
    int64_t n = c.T * c.H;
    mo_model_spec spec = moe_spec(c.E, c.K, c.H, 1);
    twin_routing routing = given_routing(&c, true);
    float *before = random_values(n, 3, 1000);
    for (int64_t j = 0; j < n; j++)
      if (random_below(9) == 0) before[j] = (float[]){0, -0.0f, INFINITY, -INFINITY}[random_below(4)];
    twin rows = twin_random(c.T * c.K * c.H, 3), x = twin_values(before, n), sum = twin_values(before, n);
    void *apart = activations_out(n);
    ok(op->combine_add(be, &spec, rows.here, &routing.here, c.T, NULL, x.here));
    ok(op->combine(be, &spec, rows.here, &routing.here, c.T, NULL, apart));
    ok(op->add(be, sum.here, apart, n));
    size_t bytes = (size_t)n * (size_t)be->activation_bytes;
    assert_memory_equal(downloaded(x.here, bytes), downloaded(sum.here, bytes), bytes);
    ok(cpu_op->combine_add(cpu, &spec, rows.cpu, &routing.cpu, c.T, NULL, x.cpu));
    expect_same("combine_add", x, n, exactly);
  }
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      PAIR_VARIANTS(route_by_softmax),
      PAIR_VARIANTS(route_by_largest_logits),
      PAIR_VARIANTS(route_by_sigmoid),
      PAIR_VARIANTS(route_of_real_values),
      PAIR_VARIANTS(experts_of_each_layout),
      PAIR_VARIANTS(experts_in_mxfp4),
      PAIR_VARIANTS(experts_of_many_rows),
      PAIR_VARIANTS(many_experts),
      PAIR_VARIANTS(experts_not_aligned),
      PAIR_VARIANTS(experts_of_given_rows),
      PAIR_VARIANTS(a_single_expert),
      PAIR_VARIANTS(combine),
      PAIR_VARIANTS(combine_add),
      PAIR_VARIANTS(expert_statistics),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
