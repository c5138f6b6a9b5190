/* Experts and the combination of their outputs against loops over single tokens.
 * backends: cpu check cuda */
#include "test_backend_moe_fixture.h"

/* --- experts --- */

static void open_experts(scene *s) {
  const moe_case *c = &s->c;
  double *blocks[] = {doubles(c->E * c->F * c->H), doubles(c->E * c->F * c->H), doubles(c->E * c->H * c->F)};
  mo_weight **views[] = {&s->weights.expert_gate, &s->weights.expert_up, &s->weights.expert_down};
  double ***values[] = {&s->gate, &s->up, &s->down};
  for (int m = 0; m < 3; m++) {
    int64_t rows = m < 2 ? c->F : c->H, cols = m < 2 ? c->H : c->F;
    for (int64_t i = 0; i < c->E * rows * cols; i++) blocks[m][i] = uniform(-1, 1) * 2 / sqrt((double)cols);
    mo_weight all = weight_of(c->dtype, c->E * rows, cols, blocks[m]);
    *views[m] = host_memory(c->E, sizeof(mo_weight));
    *values[m] = host_memory(c->E, sizeof(double *));
    for (int64_t e = 0; e < c->E; e++) {
      (*values[m])[e] = blocks[m] + e * rows * cols;
      (*views[m])[e] = (mo_weight){.data = (const char *)all.data + (size_t)(e * rows * cols) * mo_dtype_size(c->dtype),
                                   .dtype = c->dtype,
                                   .rows = rows,
                                   .cols = cols};
    }
  }
}

/* A routing made by hand: token t goes to the experts that chosen[t * K ..] names. */
static void given_routing(scene *s, const int32_t *chosen) {
  const moe_case *c = &s->c;
  int64_t r = 0;
  size_t cells = (size_t)(c->T * c->K);
  s->row = host_memory((int64_t)cells, sizeof *s->row);
  s->place = host_memory((int64_t)cells, sizeof *s->place);
  for (int64_t e = 0; e <= c->E; e++) {
    s->routing.start[e] = r;
    for (int64_t i = 0; i < c->T * c->K && e < c->E; i++)
      if (chosen[i] == e) {
        s->row[r] = (int32_t)(i / c->K);
        s->place[i] = (int32_t)r++;
      }
  }
  s->routing.row = uploaded(s->row, cells * sizeof *s->row);
  s->routing.place = uploaded(s->place, cells * sizeof *s->place);
  s->routing.expert = uploaded(chosen, cells * sizeof *chosen);
}

/* One token through one expert. slack: float32 sums; in bf16 runs also one activation on the other side of a rounding
 * boundary. scratch: [3 F + H] */
static void naive_expert(const scene *s, const double *x, int64_t e, double *out, double *slack, double *scratch) {
  int64_t H = s->c.H, F = s->c.F;
  double *gate = scratch, *up = gate + F, *unused = up + F;
  naive_linear(x, 1, s->gate[e], F, H, NULL, gate, unused);
  naive_linear(x, 1, s->up[e], F, H, NULL, up, unused);
  for (int64_t f = 0; f < F; f++) gate[f] = rounded(rounded(silu(rounded(gate[f]))) * rounded(up[f]));
  naive_linear(gate, 1, s->down[e], H, F, NULL, out, slack);
  for (int64_t h = 0; h < H; h++) {
    double largest = 0;
    for (int64_t f = 0; f < F && bf16; f++) largest = fmax(largest, fabs(gate[f] * s->down[e][h * F + f]));
    out[h] = rounded(out[h]);
    slack[h] = 3 * slack[h] + 0x1p-6 * largest;
  }
}

static void expect_expert_rows(const scene *s, const float *got, int64_t first, int64_t last) {
  int64_t H = s->c.H, begin_row = s->routing.start[first], n = s->routing.start[last] - begin_row;
  double *want = doubles(n * H), *slack = doubles(n * H), *scratch = doubles(3 * s->c.F + H);
  for (int64_t e = first; e < last; e++)
    for (int64_t r = s->routing.start[e]; r < s->routing.start[e + 1]; r++)
      naive_expert(s, s->x + s->row[r] * H, e, want + (r - begin_row) * H, slack + (r - begin_row) * H, scratch);
  expect_close("experts", got + begin_row * H, want, n * H, (closeness){.ulps = 1, .unequal = 0.05, .slack = slack});
}

static void check_experts(moe_case c, const int32_t *chosen, int64_t cut) {
  scene s;
  open_scene(&s, c);
  open_experts(&s);
  s.rows = random_activations(c.T * c.H, 2, &s.x);
  given_routing(&s, chosen);
  int64_t n = c.T * c.K * c.H;
  void *out = activations_out(n);
  if (cut > 0) { /* in two parts; the first leaves the second's rows alone */
    double *marks = doubles(n);
    float *before = host_memory(n, sizeof *before);
    for (int64_t i = 0; i < n; i++) marks[i] = 77;
    out = activations(marks, n);
    ok(op->experts(be, &s.spec, &s.weights, s.rows, &s.routing, 0, cut, out));
    before = result(out, n);
    for (int64_t i = s.routing.start[cut] * c.H; i < n; i++) assert_true(before[i] == 77);
  }
  ok(op->experts(be, &s.spec, &s.weights, s.rows, &s.routing, cut, c.E, out));
  expect_expert_rows(&s, result(out, n), 0, c.E);
}

static int32_t *random_choices(const moe_case *c) {
  int32_t *chosen = host_memory(c->T * c->K, sizeof *chosen);
  for (int64_t t = 0; t < c->T; t++) {
    int32_t at = (int32_t)random_below(c->E);
    for (int64_t j = 0; j < c->K; j++) chosen[t * c->K + j] = (at + (int32_t)j) % (int32_t)c->E;
  }
  return chosen;
}

static void experts_of_each_dtype(void **state) {
  (void)state;
  for (int d = 0; d < 3; d++) {
    moe_case c = {.T = 29, .E = 5, .K = 2, .H = 37, .F = 23, .dtype = (mo_dtype[]){MO_F32, MO_BF16, MO_F16}[d]};
    check_experts(c, random_choices(&c), 0);
  }
}

static void experts_wider_than_a_tile(void **state) {
  (void)state;
  moe_case c = {.T = 11, .E = 3, .K = 2, .H = 269, .F = 523, .dtype = MO_BF16};
  check_experts(c, random_choices(&c), 0);
}

/* Expert 1 gets all 1100 tokens, or all but one; the others none. */
static void experts_with_all_rows_or_none(void **state) {
  (void)state;
  moe_case c = {.T = 1100, .E = 3, .K = 1, .H = 9, .F = 17, .dtype = MO_BF16};
  int32_t *chosen = host_memory(c.T, sizeof *chosen);
  for (int64_t t = 0; t < c.T; t++) chosen[t] = 1;
  check_experts(c, chosen, 0);
  check_experts(c, chosen, 1);
  chosen[1099] = 2;
  check_experts(c, chosen, 2);
}

static void experts_in_parts(void **state) {
  (void)state;
  moe_case c = {.T = 40, .E = 6, .K = 3, .H = 19, .F = 31, .dtype = MO_BF16};
  for (int64_t cut = 1; cut < 6; cut += 2) check_experts(c, random_choices(&c), cut);
}

/* More rows than one group of experts may hold. */
static void experts_of_many_rows(void **state) {
  (void)state;
  moe_case c = {.T = 9001, .E = 4, .K = 2, .H = 3, .F = 5, .dtype = MO_BF16};
  check_experts(c, random_choices(&c), 0);
}

/* Gate and up as rows 2i and 2i+1 of one matrix, stored as columns, with biases and the clamped activation. */
typedef struct {
  double *gate_up, *down, *gate_up_bias, *down_bias; /* all experts: [E, H, 2F], [E, F, H], [E, 2F], [E, H] */
} fused_values;

static mo_weight *views_of(mo_weight all, int64_t E, int64_t rows, int64_t cols, bool transposed) {
  mo_weight *views = host_memory(E, sizeof *views);
  for (int64_t e = 0; e < E; e++)
    views[e] = (mo_weight){.data = (const char *)all.data + (size_t)(e * rows * cols) * mo_dtype_size(all.dtype),
                           .dtype = all.dtype,
                           .rows = rows,
                           .cols = cols,
                           .transposed = transposed};
  return views;
}

static fused_values open_fused(scene *s) {
  const moe_case *c = &s->c;
  fused_values v;
  mo_weight gate_up = random_weight(c->dtype, c->E * c->H, 2 * c->F, 2 / sqrt((double)c->H), &v.gate_up);
  mo_weight down = random_weight(c->dtype, c->E * c->F, c->H, 2 / sqrt((double)c->F), &v.down);
  mo_weight gate_up_bias = random_weight(c->dtype, c->E, 2 * c->F, 1, &v.gate_up_bias);
  mo_weight down_bias = random_weight(c->dtype, c->E, c->H, 1, &v.down_bias);
  s->weights.expert_gate_up = views_of(gate_up, c->E, 2 * c->F, c->H, true);
  s->weights.expert_down = views_of(down, c->E, c->H, c->F, true);
  s->weights.expert_gate_up_bias = views_of(gate_up_bias, c->E, 1, 2 * c->F, false);
  s->weights.expert_down_bias = views_of(down_bias, c->E, 1, c->H, false);
  s->spec.moe.fused = s->spec.moe.expert_bias = true;
  s->spec.moe.glu = MO_GLU_CLAMPED;
  s->spec.moe.glu_limit = 1.5f; /* often met by these values */
  s->spec.moe.glu_alpha = 1.702f;
  return v;
}

/* y [N] = x [K] w + bias, w stored [K, N]; product and sum round. slack as in naive_linear. */
static void naive_fused_product(const double *x, const double *w, const double *bias, int64_t K, int64_t N, double *y,
                                double *slack, double *largest) {
  for (int64_t n = 0; n < N; n++) {
    double sum = 0, magnitude = 0;
    largest[n] = 0;
    for (int64_t k = 0; k < K; k++) {
      sum += x[k] * w[k * N + n];
      magnitude += fabs(x[k] * w[k * N + n]);
      largest[n] = fmax(largest[n], fabs(x[k] * w[k * N + n]));
    }
    y[n] = rounded(rounded(sum) + bias[n]);
    slack[n] = 1e-6 * (magnitude + fabs(bias[n]));
  }
}

static void naive_fused_expert(const scene *s, const fused_values *v, const double *x, int64_t e, double *out,
                               double *slack) {
  int64_t H = s->c.H, F = s->c.F;
  double limit = s->spec.moe.glu_limit, alpha = s->spec.moe.glu_alpha;
  double both[256], errors[256], largest[256], activation[128];
  assert_true(2 * F <= 256 && H <= 256);
  naive_fused_product(x, v->gate_up + e * H * 2 * F, v->gate_up_bias + e * 2 * F, H, 2 * F, both, errors, largest);
  for (int64_t f = 0; f < F; f++) {
    double gate = fmin(both[2 * f], limit), up = fmin(fmax(both[2 * f + 1], -limit), limit);
    double swish = rounded(gate * rounded(1 / (1 + exp(-rounded(alpha * gate)))));
    activation[f] = rounded(rounded(up + 1) * swish);
  }
  naive_fused_product(activation, v->down + e * F * H, v->down_bias + e * H, F, H, out, slack, largest);
  for (int64_t h = 0; h < H; h++)
    slack[h] = 4 * slack[h] + (bf16 ? 0x1p-6 * largest[h] + bf16_ulp(out[h] - v->down_bias[e * H + h]) : 0);
}

static void fused_experts_with_biases(void **state) {
  (void)state;
  for (int d = 0; d < 2; d++) {
    scene s;
    open_scene(&s, (moe_case){.T = 31, .E = 4, .K = 2, .H = 37, .F = 29, .dtype = d ? MO_F32 : MO_BF16});
    fused_values v = open_fused(&s);
    int64_t H = s.c.H, n = s.c.T * s.c.K * H;
    double *want = doubles(n), *slack = doubles(n);
    s.rows = random_activations(s.c.T * H, 2, &s.x);
    given_routing(&s, random_choices(&s.c));
    for (int64_t e = 0; e < s.c.E; e++)
      for (int64_t r = s.routing.start[e]; r < s.routing.start[e + 1]; r++)
        naive_fused_expert(&s, &v, s.x + s.row[r] * H, e, want + r * H, slack + r * H);
    void *out = activations_out(n);
    ok(op->experts(be, &s.spec, &s.weights, s.rows, &s.routing, 0, s.c.E, out));
    expect_close("experts", result(out, n), want, n,
                 (closeness){.relative = 1e-6, .ulps = 1, .unequal = 0.05, .slack = slack});
  }
}

/* --- statistics of experts --- */

static void expect_peaks(const float *peaks, const double *values, int64_t rows, int64_t width) {
  const float *got = downloaded(peaks, (size_t)rows * sizeof *got);
  for (int64_t r = 0; r < rows; r++) {
    double peak = 0;
    for (int64_t h = 0; h < width; h++) peak = fabs(values[r * width + h]) > peak ? fabs(values[r * width + h]) : peak;
    assert_true(got[r] == peak);
  }
}

/* A NaN does not count, an infinity does; widths of one value, of whole packs, and of neither. */
static void peaks_of_rows(void **state) {
  (void)state;
  static const int64_t widths[] = {1, 7, 64, 100, 1031};
  for (int i = 0; i < 5; i++) {
    int64_t rows = 37, width = widths[i];
    double *x = doubles(rows * width);
    for (int64_t k = 0; k < rows * width; k++) x[k] = rounded(uniform(-9, 9));
    x[0] = NAN;
    x[rows * width - 1] = -INFINITY;
    void *values = activations(x, rows * width);
    float *peaks = device_memory((size_t)rows * sizeof *peaks);
    ok(op->row_peaks(be, values, rows, width, peaks));
    expect_peaks(peaks, x, rows, width);
  }
}

/* By loops over the expert's tokens; peaks are few different numbers, so that many are equal. */
static mo_expert_sums naive_sums(const scene *s, const int32_t *outliers, const int32_t *chosen, const float *peaks,
                                 int64_t e) {
  int64_t T = s->c.T, K = s->c.K;
  mo_expert_sums sums = {.max_row = -1};
  for (int64_t t = 0; t < T; t++)
    for (int64_t j = 0; j < (e < s->c.E ? K : 1); j++) {
      if (e < s->c.E && chosen[t * K + j] != e) continue;
      float peak = peaks[e < s->c.E ? s->place[t * K + j] : t];
      sums.outlier_values += outliers[t];
      sums.outlier_tokens += outliers[t] > 0;
      if (sums.max_row >= 0 && peak <= sums.max_output) continue;
      sums.max_output = peak;
      sums.max_row = (int32_t)t;
    }
  return sums;
}

static void check_expert_statistics(moe_case c, bool shared) {
  scene s;
  open_scene(&s, c);
  int64_t T = c.T, K = c.K, n = c.E + shared;
  int32_t *outliers = host_memory(T, sizeof *outliers);
  float *peaks = host_memory(T * K + T, sizeof *peaks);
  int32_t *chosen = random_choices(&s.c);
  for (int64_t t = 0; t < T; t++)
    outliers[t] = t % 3 ? (int32_t)random_below(c.H + 1) : 0; /* also tokens without any */
  for (int64_t i = 0; i < T * K + T; i++)
    peaks[i] = (float[]){0, 2.5f, 3e38f, INFINITY}[random_below(random_below(9) ? 2 : 4)];
  given_routing(&s, chosen);
  const float *there = uploaded(peaks, (size_t)(T * K + T) * sizeof *peaks);
  const int32_t *counts = uploaded(outliers, (size_t)T * sizeof *outliers);
  mo_expert_statistics got;
  ok(op->expert_statistics(be, &s.spec, T, counts, &s.routing, there, shared ? there + T * K : NULL));
  ok(op->expert_results(be, &got));
  assert_int_equal(got.n, n);
  for (int64_t e = 0; e < n; e++) {
    mo_expert_sums want = naive_sums(&s, outliers, chosen, e < c.E ? peaks : peaks + T * K, e);
    assert_int_equal(got.experts[e].outlier_values, want.outlier_values);
    assert_int_equal(got.experts[e].outlier_tokens, want.outlier_tokens);
    assert_int_equal(got.experts[e].max_row, want.max_row);
    assert_true(got.experts[e].max_output == want.max_output);
  }
}

static void statistics_of_experts(void **state) {
  (void)state;
  check_expert_statistics((moe_case){.T = 53, .E = 8, .K = 4, .H = 31}, false);
  check_expert_statistics((moe_case){.T = 700, .E = 3, .K = 2, .H = 64}, true);
  check_expert_statistics((moe_case){.T = 41, .E = 300, .K = 3, .H = 8}, true); /* most are dead */
  check_expert_statistics((moe_case){.T = 1, .E = 257, .K = 1, .H = 1}, false);
  check_expert_statistics((moe_case){.T = 2050, .E = 1, .K = 1, .H = 16}, true);
  check_expert_statistics((moe_case){.T = 9001, .E = 2, .K = 1, .H = 5}, true);
}

/* --- combine --- */

/* Sums in ascending order of expert, whatever the order of the slots; products and partial sums round. Weights of 16
 * bits times bf16 values are exact in float32, so that in bf16 runs the result is, too. */
static void combine_in_order_of_expert(void **state) {
  (void)state;
  scene s;
  open_scene(&s, (moe_case){.T = 53, .E = 8, .K = 4, .H = 31});
  int64_t T = s.c.T, K = s.c.K, H = s.c.H;
  double *values, *want = doubles(T * H), *slack = doubles(T * H);
  float *weight = host_memory(T * K, sizeof *weight);
  int32_t *chosen = random_choices(&s.c);
  void *rows = random_activations(T * K * H, 3, &values), *out = activations_out(T * H);
  given_routing(&s, chosen);
  for (int64_t i = 0; i < T * K; i++) weight[i] = (float)random_below(65536) / 65536;
  s.routing.weight = uploaded(weight, (size_t)(T * K) * sizeof *weight);
  for (int64_t t = 0; t < T; t++)
    for (int64_t e = 0; e < s.c.E; e++)
      for (int64_t j = 0; j < K; j++)
        for (int64_t h = 0; h < H && chosen[t * K + j] == e; h++) {
          double product = rounded((double)weight[t * K + j] * values[s.place[t * K + j] * H + h]);
          want[t * H + h] = rounded(want[t * H + h] + product);
          slack[t * H + h] += bf16 ? 0 : 2e-7 * fabs(product);
        }
  float *peaks = device_memory((size_t)(T * K) * sizeof *peaks);
  ok(op->combine(be, &s.spec, rows, &s.routing, T, peaks, out));
  expect_peaks(peaks, values, T * K, H);
  expect_close("combine", result(out, T * H), want, T * H, (closeness){.slack = slack});

  double *residual;
  void *x = random_activations(T * H, 40, &residual), *sum = activations(residual, T * H);
  for (int64_t i = 0; i < T * H; i++) {
    want[i] = rounded(want[i] + residual[i]);
    slack[i] += bf16 ? 0 : 2e-7 * fabs(residual[i]);
  }
  peaks = device_memory((size_t)(T * K) * sizeof *peaks);
  ok(op->combine_add(be, &s.spec, rows, &s.routing, T, peaks, x));
  expect_peaks(peaks, values, T * K, H);
  expect_close("combine_add", result(x, T * H), want, T * H, (closeness){.slack = slack});
  ok(op->add(be, sum, out, T * H));
  size_t bytes = (size_t)(T * H) * (size_t)be->activation_bytes;
  assert_memory_equal(downloaded(x, bytes), downloaded(sum, bytes), bytes);
}

/* --- all three --- */

static void a_layer_equals_loops_over_tokens(void **state) {
  (void)state;
  scene s;
  open_scene(&s, (moe_case){.T = 45, .E = 6, .K = 2, .H = 24, .F = 33, .dtype = MO_BF16});
  int64_t T = s.c.T, K = s.c.K, H = s.c.H;
  double *want = doubles(T * H), *slack = doubles(T * H), *scratch = doubles(3 * s.c.F + H), *y = doubles(H),
         *dy = doubles(H);
  exact_router(&s);
  open_experts(&s);
  s.spec.moe.renormalise = true;
  void *rows = activations_out(T * K * H), *out = activations_out(T * H);
  route(&s);
  ok(op->experts(be, &s.spec, &s.weights, s.rows, &s.routing, 0, s.c.E, rows));
  ok(op->combine(be, &s.spec, rows, &s.routing, T, NULL, out));
  for (int64_t t = 0; t < T; t++)
    for (int64_t j = 0; j < K; j++) {
      naive_expert(&s, s.x + t * H, s.expert[t * K + j], y, dy, scratch);
      for (int64_t h = 0; h < H; h++) {
        double product = rounded((double)s.weight[t * K + j] * y[h]);
        want[t * H + h] = rounded(want[t * H + h] + product);
        slack[t * H + h] += dy[h] + (bf16 ? bf16_ulp(product) : 2e-7 * fabs(product));
      }
    }
  expect_close("mixture", result(out, T * H), want, T * H, (closeness){.ulps = 1, .unequal = 0.1, .slack = slack});
}

/* --- growth of features --- */

typedef struct {
  int64_t B, S, n;
  const int32_t *features;
  const double *rows;             /* [R, H] of the experts */
  float *before, *after, *shared; /* [T, n] */
} growth_case;

static double grown(const growth_case *g, int64_t t, int64_t i, double part) {
  return part * ((double)g->before[t * g->n + i] + (double)g->after[t * g->n + i]);
}

/* *magnitude: of the parts added up. */
static double naive_growth(const scene *s, const growth_case *g, const int32_t *chosen, int64_t e, int64_t i,
                           double *magnitude) {
  double sum = 0;
  *magnitude = 0;
  for (int64_t t = 0; t < s->c.T; t++)
    for (int64_t j = 0; j < (e < s->c.E ? s->c.K : 1); j++) {
      int64_t k = t * s->c.K + j;
      if (e < s->c.E && chosen[k] != e) continue;
      double part = e < s->c.E ? (double)s->weight[k] * g->rows[s->place[k] * s->c.H + g->features[i]]
                               : (double)g->shared[t * g->n + i];
      sum += grown(g, t, i, part);
      *magnitude += fabs(grown(g, t, i, part));
    }
  return sum;
}

static float *random_floats(int64_t n) {
  float *x = host_memory(n, sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = (float)uniform(-30, 30);
  return x;
}

/* Against loops; a second call adds the same again. */
static void check_growth(moe_case c, growth_case g, mo_shared_kind shared) {
  scene s;
  open_scene(&s, c);
  s.spec.moe.shared = shared;
  int64_t T = c.T, K = c.K, n = g.n, cells = (c.E + (shared != MO_SHARED_NONE)) * n;
  size_t floats = (size_t)(T * n) * sizeof(float);
  int32_t *chosen = random_choices(&s.c);
  double *rows;
  const void *out = random_activations(T * K * c.H, 2, &rows);
  given_routing(&s, chosen);
  s.weight = random_floats(T * K);
  s.routing.weight = uploaded(s.weight, (size_t)(T * K) * sizeof(float));
  g.rows = rows;
  g.before = random_floats(T * n), g.after = random_floats(T * n), g.shared = random_floats(T * n);
  mo_followed there = {uploaded(g.features, (size_t)n * sizeof(int32_t)), n, uploaded(g.before, floats),
                       uploaded(g.after, floats), uploaded(g.shared, floats)};
  double *zeros = doubles(cells), *growth = uploaded(zeros, (size_t)cells * sizeof *zeros);
  ok(op->expert_growth(be, &s.spec, out, &s.routing, g.B, g.S, &there, growth));
  const double *got = downloaded(growth, (size_t)cells * sizeof *got);
  for (int64_t cell = 0; cell < cells; cell++) {
    double magnitude, want = naive_growth(&s, &g, chosen, cell / n, cell % n, &magnitude);
    assert_true(fabs(got[cell] - want) <= 1e-12 * magnitude);
  }
  ok(op->expert_growth(be, &s.spec, out, &s.routing, g.B, g.S, &there, growth));
  const double *twice = downloaded(growth, (size_t)cells * sizeof *twice);
  for (int64_t cell = 0; cell < cells; cell++) {
    double magnitude, want = 2 * naive_growth(&s, &g, chosen, cell / n, cell % n, &magnitude);
    assert_true(fabs(twice[cell] - want) <= 1e-12 * magnitude);
  }
}

static void growth_of_features(void **state) {
  (void)state;
  static const int32_t features[] = {30, 0, 7, 8, 12};
  check_growth((moe_case){.T = 53, .E = 8, .K = 4, .H = 31},
               (growth_case){.B = 1, .S = 53, .n = 5, .features = features}, MO_SHARED_NONE);
  check_growth((moe_case){.T = 700, .E = 3, .K = 2, .H = 64},
               (growth_case){.B = 7, .S = 100, .n = 3, .features = features}, MO_SHARED_PLAIN);
  check_growth((moe_case){.T = 41, .E = 300, .K = 3, .H = 32},
               (growth_case){.B = 41, .S = 1, .n = 1, .features = features}, MO_SHARED_GATED); /* most are dead */
  check_growth((moe_case){.T = 1, .E = 2, .K = 1, .H = 31}, (growth_case){.B = 1, .S = 1, .n = 2, .features = features},
               MO_SHARED_NONE);
}

static void features_taken(void **state) {
  (void)state;
  static const int32_t features[] = {36, 0, 17};
  double *x;
  const void *values = random_activations(29 * 37, 2, &x);
  float *out = device_memory(29 * 3 * sizeof *out);
  ok(op->take_features(be, values, 29, 37, uploaded(features, sizeof features), 3, out));
  const float *got = downloaded(out, 29 * 3 * sizeof *got);
  for (int i = 0; i < 29 * 3; i++) assert_true(got[i] == x[i / 3 * 37 + features[i % 3]]);
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      VARIANTS(experts_of_each_dtype),
      VARIANTS(experts_wider_than_a_tile),
      VARIANTS(experts_with_all_rows_or_none),
      VARIANTS(experts_in_parts),
      VARIANTS(experts_of_many_rows),
      VARIANTS(fused_experts_with_biases),
      VARIANTS(combine_in_order_of_expert),
      VARIANTS(a_layer_equals_loops_over_tokens),
      VARIANTS(peaks_of_rows),
      VARIANTS(statistics_of_experts),
      VARIANTS(growth_of_features),
      VARIANTS(features_taken),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
