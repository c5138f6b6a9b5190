/* Memory and the element-wise, row-wise and matrix operations of a backend, against naive double loops.
 * backends: cpu check cuda */
#include "test_backend_fixture.h"

static const mo_dtype dtypes[] = {MO_F32, MO_BF16, MO_F16};

static void memory_keeps_what_is_written(void **state) {
  (void)state;
  enum { N = 1000 };
  double *values = doubles(N);
  for (int i = 0; i < N; i++) values[i] = uniform(-100, 100);
  void *x = activations(values, N);
  assert_int_equal((uintptr_t)x % 256, 0);
  float *back = result(x, N);
  for (int i = 0; i < N; i++) assert_true(back[i] == values[i]);

  uint8_t bytes[N], zeros[N] = {0};
  for (int i = 0; i < N; i++) bytes[i] = (uint8_t)random_bits();
  void *memory = uploaded(bytes, N);
  assert_memory_equal(downloaded(memory, N), bytes, N);
  ok(op->zero(be, memory, N - 1));
  uint8_t *after = downloaded(memory, N);
  assert_memory_equal(after, zeros, N - 1);
  assert_int_equal(after[N - 1], bytes[N - 1]);
}

/* Every finite F16 number, and rows of each dtype in any order. */
static void embed_rows(void **state) {
  (void)state;
  enum { V = 31 * 1024, H = 2, T = V };
  uint16_t *halves = host_memory(V * H, sizeof *halves);
  int32_t *ids = host_memory(T, sizeof *ids);
  double *want = doubles(T * H);
  for (int i = 0; i < V * H; i++) halves[i] = (uint16_t)(i % V | i / V << 15);
  for (int t = 0; t < T; t++) ids[t] = T - 1 - t;
  for (int i = 0; i < T * H; i++) want[i] = rounded(f16_value(halves[(T - 1 - i / H) * H + i % H]));
  mo_weight table = {.data = uploaded(halves, V * H * sizeof *halves), .dtype = MO_F16, .rows = V, .cols = H};
  void *out = activations_out(T * H);
  ok(op->embed(be, &table, ids, T, out));
  expect_close("embed F16", result(out, T * H), want, T * H, (closeness){0});
  for (int d = 0; d < 3; d++) {
    enum { ROWS = 11, WIDTH = 37, TOKENS = 25 };
    double *values, rows[TOKENS * WIDTH];
    int32_t tokens[TOKENS];
    mo_weight w = random_weight(dtypes[d], ROWS, WIDTH, 3, &values);
    for (int t = 0; t < TOKENS; t++) {
      tokens[t] = (int32_t)random_below(ROWS);
      memcpy(rows + t * WIDTH, values + tokens[t] * WIDTH, WIDTH * sizeof *rows);
    }
    void *y = activations_out(TOKENS * WIDTH);
    ok(op->embed(be, &w, tokens, TOKENS, y));
    expect_close("embed", result(y, TOKENS * WIDTH), rows, TOKENS * WIDTH, (closeness){0});
  }
}

static void norm_case(const mo_norm_spec *spec, mo_dtype dtype, int64_t rows, int64_t width, bool in_place) {
  double *x, *w, *want = doubles(rows * width);
  void *in = random_activations(rows * width, 4, &x);
  mo_weight weight = random_weight(dtype, 1, width, 2, &w);
  for (int64_t r = 0; r < rows; r++) {
    double squares = 0;
    for (int64_t i = 0; i < width; i++) squares += x[r * width + i] * x[r * width + i];
    double scale = 1 / sqrt(squares / (double)width + (double)spec->eps);
    for (int64_t i = 0; i < width; i++) {
      double value = x[r * width + i] * scale, factor = spec->zero_centred ? 1 + w[i] : w[i];
      if (!spec->weight_in_float) value = rounded(value);
      want[r * width + i] = rounded(value * factor);
    }
  }
  void *out = in_place ? in : activations_out(rows * width);
  ok(op->norm(be, spec, &weight, in, rows, width, out));
  expect_close("norm", result(out, rows * width), want, rows * width,
               (closeness){.relative = 1e-6, .ulps = spec->weight_in_float ? 1 : 2, .unequal = 0.002});
}

static void norm_in_all_variants(void **state) {
  (void)state;
  for (int v = 0; v < 8; v++) {
    mo_norm_spec spec = {.eps = v & 4 ? 0.5f : 1e-6f, .zero_centred = v & 1, .weight_in_float = v & 2};
    norm_case(&spec, dtypes[v % 3], 21, 67, false);
    norm_case(&spec, dtypes[(v + 1) % 3], 5, 300, true);
  }
  mo_norm_spec spec = {.eps = 1e-5f};
  norm_case(&spec, MO_BF16, 13 * 4, 16, true); /* heads of 13 tokens */
  norm_case(&spec, MO_BF16, 1, 1, false);
}

/* eps alone decides: x = 0 gives 0, not NaN. */
static void norm_of_zeros(void **state) {
  (void)state;
  double zeros[10] = {0}, *w;
  mo_norm_spec spec = {.eps = 1e-6f};
  void *x = activations(zeros, 10);
  mo_weight weight = random_weight(MO_F32, 1, 5, 2, &w);
  ok(op->norm(be, &spec, &weight, x, 2, 5, x));
  expect_close("norm", result(x, 10), zeros, 10, (closeness){0});
}

/* linear_add to random rows; product: what linear gives, slack: of that. Whether the product rounds on its own is the backend's
 * choice: half a unit of its last place. */
static void linear_add_case(const mo_weight *weight, const mo_weight *bias, const void *x, int64_t M,
                            const double *product, double *slack) {
  double *rows;
  int64_t count = M * weight->rows;
  void *y = random_activations(count, 40, &rows);
  for (int64_t i = 0; i < count; i++) {
    if (bf16) slack[i] += bf16_ulp(product[i]) / 2;
    rows[i] = rounded(rows[i] + product[i]);
  }
  ok(op->linear_add(be, weight, bias, x, M, y));
  expect_close("linear_add", result(y, count), rows, count,
               (closeness){.relative = 1e-6, .ulps = 1, .unequal = 0.25, .slack = slack});
}

static void linear_case(mo_dtype dtype, bool biased, int64_t M, int64_t N, int64_t K) {
  double *x, *w, *b = NULL, *want = doubles(M * N), *slack = doubles(M * N);
  void *in = random_activations(M * K, 2, &x), *out = activations_out(M * N);
  mo_weight weight = random_weight(dtype, N, K, 1, &w), bias = {0};
  if (biased) bias = random_weight(dtype, 1, N, 5, &b);
  naive_linear(x, M, w, N, K, b, want, slack);
  for (int64_t i = 0; i < M * N; i++) want[i] = rounded(want[i]);
  ok(op->linear(be, &weight, biased ? &bias : NULL, in, M, out));
  expect_close("linear", result(out, M * N), want, M * N, (closeness){.ulps = 1, .unequal = 0.005, .slack = slack});
  linear_add_case(&weight, biased ? &bias : NULL, in, M, want, slack);
}

/* A weight stored [K, N] gives the same as one stored [N, K]. */
static void linear_of_transposed_weights(void **state) {
  (void)state;
  enum { M = 17, N = 301, K = 45 };
  for (int d = 0; d < 3; d++) {
    double *x, *stored, *w = doubles(N * K), *want = doubles(M * N), *slack = doubles(M * N);
    void *in = random_activations(M * K, 2, &x), *out = activations_out(M * N);
    mo_weight weight = random_weight(dtypes[d], K, N, 1, &stored);
    weight.rows = N;
    weight.cols = K;
    weight.transposed = true;
    for (int64_t i = 0; i < N * K; i++) w[i] = stored[i % K * N + i / K];
    naive_linear(x, M, w, N, K, NULL, want, slack);
    for (int64_t i = 0; i < M * N; i++) want[i] = rounded(want[i]);
    ok(op->linear(be, &weight, NULL, in, M, out));
    expect_close("linear", result(out, M * N), want, M * N, (closeness){.ulps = 1, .unequal = 0.005, .slack = slack});
  }
}

static void linear_of_each_dtype(void **state) {
  (void)state;
  for (int d = 0; d < 3; d++)
    for (int biased = 0; biased < 2; biased++) {
      linear_case(dtypes[d], biased, 7, 33, 129);
      linear_case(dtypes[d], biased, 1, 1, 1);
    }
}

static void linear_of_many_columns(void **state) {
  (void)state;
  linear_case(MO_BF16, true, 9, 515, 31);
  linear_case(MO_F32, false, 9, 256, 31);
  linear_case(MO_F16, true, 3, 257, 64);
}

static void linear_of_many_rows(void **state) {
  (void)state;
  linear_case(MO_BF16, true, 1031, 261, 13);
  linear_case(MO_F32, true, 2049, 19, 5);
}

static void clamp_both_sides(void **state) {
  (void)state;
  enum { N = 1001 };
  double *x, want[N];
  void *values = random_activations(N, 10, &x);
  for (int i = 0; i < N; i++) want[i] = fmin(fmax(x[i], -2.5), 2.5);
  ok(op->clamp(be, values, N, 2.5f));
  expect_close("clamp", result(values, N), want, N, (closeness){0});
}

static void add_rounds_once(void **state) {
  (void)state;
  enum { N = 1003 };
  double *x, *y, want[N];
  void *sum = random_activations(N, 10, &x), *term = random_activations(N, 0.3, &y);
  for (int i = 0; i < N; i++) want[i] = rounded(x[i] + y[i]);
  ok(op->add(be, sum, term, N));
  expect_close("add", result(sum, N), want, N, (closeness){.relative = 1e-7, .unequal = 0, .ulps = 0});
}

static void glu_rounds_twice(void **state) {
  (void)state;
  enum { M = 13, F = 77 };
  double *g, *u, want[M * F];
  void *gate = random_activations(M * F, 12, &g), *up = random_activations(M * F, 3, &u), *out = activations_out(M * F);
  for (int i = 0; i < M * F; i++) want[i] = rounded(rounded(silu(g[i])) * u[i]);
  ok(op->glu(be, gate, up, M * F, out));
  expect_close("glu", result(out, M * F), want, M * F, (closeness){.relative = 1e-6, .ulps = 2, .unequal = 0.002});
}

/* silu far out: 0 below, the identity above, no NaN. */
static void glu_of_large_gates(void **state) {
  (void)state;
  double g[] = {-1e4, -200, 200, 1e4}, u[] = {1, 1, 1, 1}, want[] = {0, 0, 200, 1e4};
  void *gate = activations(g, 4), *up = activations(u, 4), *out = activations_out(4);
  for (int i = 0; i < 4; i++) want[i] = rounded(want[i]);
  ok(op->glu(be, gate, up, 4, out));
  expect_close("glu", result(out, 4), want, 4, (closeness){.slack = (double[]){1e-30, 1e-30, 0, 0}});
}

static void split_columns(void **state) {
  (void)state;
  enum { ROWS = 37, A = 5, C = 12 };
  double *x, left[ROWS * A], right[ROWS * C];
  void *both = random_activations(ROWS * (A + C), 3, &x), *l = activations_out(ROWS * A),
       *r = activations_out(ROWS * C);
  for (int i = 0; i < ROWS; i++) {
    memcpy(left + i * A, x + i * (A + C), A * sizeof *x);
    memcpy(right + i * C, x + i * (A + C) + A, C * sizeof *x);
  }
  ok(op->split(be, both, ROWS, A, C, l, r));
  expect_close("left", result(l, ROWS * A), left, ROWS * A, (closeness){0});
  expect_close("right", result(r, ROWS * C), right, ROWS * C, (closeness){0});
}

static void sigmoid_gate_of_values_and_rows(void **state) {
  (void)state;
  enum { ROWS = 31, WIDTH = 19 };
  for (int gate_width = 1; gate_width <= WIDTH; gate_width += WIDTH - 1) {
    double *x, *g, want[ROWS * WIDTH];
    void *values = random_activations(ROWS * WIDTH, 3, &x), *gates = random_activations(ROWS * gate_width, 9, &g);
    for (int i = 0; i < ROWS * WIDTH; i++) {
      double gate = g[gate_width == 1 ? i / WIDTH : i];
      want[i] = rounded(x[i] * rounded(1 / (1 + exp(-gate))));
    }
    ok(op->sigmoid_gate(be, values, gates, ROWS, WIDTH, gate_width));
    expect_close("sigmoid_gate", result(values, ROWS * WIDTH), want, ROWS * WIDTH,
                 (closeness){.relative = 1e-6, .ulps = 2, .unequal = 0.002});
  }
}

/* x [T, heads, D] by definition: angles are float32 products, their functions and all products round. */
static void naive_rope(const mo_model_spec *spec, double *x, double *slack, int64_t T, int64_t S, int64_t heads) {
  int64_t D = spec->attention.head_dim, half = spec->rope.dim / 2;
  for (int64_t t = 0; t < T; t++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t j = 0; j < half; j++) {
        int64_t i = (t * heads + h) * D + j;
        float angle = spec->rope.inv_freq[j] * (float)(t % S);
        double c = rounded(cos((double)angle) * (double)spec->rope.factor), a = x[i];
        double s = rounded(sin((double)angle) * (double)spec->rope.factor), b = x[i + half];
        x[i] = rounded(rounded(a * c) - rounded(b * s));
        x[i + half] = rounded(rounded(b * c) + rounded(a * s));
        slack[i] = slack[i + half] = bf16 ? 0 : 3e-7 * (fabs(a) + fabs(b)) * (double)spec->rope.factor;
      }
}

static void rope_case(int64_t D, int64_t dim, float factor, int64_t B, int64_t S, int64_t heads) {
  float inv_freq[64];
  mo_model_spec spec = {.attention.head_dim = D, .rope = {.dim = dim, .inv_freq = inv_freq, .factor = factor}};
  for (int64_t j = 0; j < dim / 2; j++) inv_freq[j] = (float)pow(10000, -2.0 * (double)j / (double)dim);
  int64_t n = B * S * heads * D;
  double *x, *slack = doubles(n);
  void *values = random_activations(n, 3, &x);
  ok(op->rope(be, &spec, values, B * S, S, heads));
  naive_rope(&spec, x, slack, B * S, S, heads);
  expect_close("rope", result(values, n), x, n, (closeness){.ulps = 1, .unequal = 0.002, .slack = slack});
}

static void rope_whole_heads(void **state) {
  (void)state;
  rope_case(10, 10, 1, 2, 23, 3);
}

static void rope_part_of_the_head(void **state) {
  (void)state;
  rope_case(14, 6, 1, 2, 11, 2);
}

static void rope_with_a_factor(void **state) {
  (void)state;
  rope_case(8, 8, 1.3465736f, 1, 19, 2);
}

static void rope_of_far_positions(void **state) {
  (void)state;
  rope_case(4, 4, 1, 1, 8200, 1);
}

static void rope_keeps_position_zero(void **state) {
  (void)state;
  float inv_freq[] = {1, 0.01f};
  mo_model_spec spec = {.attention.head_dim = 4, .rope = {.dim = 4, .inv_freq = inv_freq, .factor = 1}};
  double x[] = {1, 2, 3, 4, 5, 6, 7, 8};
  void *values = activations(x, 8);
  ok(op->rope(be, &spec, values, 2, 1, 1)); /* two sequences of one token */
  expect_close("rope", result(values, 8), x, 8, (closeness){0});
}

static void zeroed_features(void **state) {
  (void)state;
  static const int32_t features[] = {0, 3, 7, 64, 66};
  int64_t T = 37, H = 67;
  double *want;
  void *x = random_activations(T * H, 3, &want);
  for (int64_t t = 0; t < T; t++)
    for (int i = 0; i < 5; i++) want[t * H + features[i]] = 0;
  ok(op->zero_features(be, x, T, H, uploaded(features, sizeof features), 5));
  const float *got = result(x, T * H);
  for (int64_t i = 0; i < T * H; i++) assert_true((double)got[i] == want[i]);
}

static void sums_of_rows(void **state) {
  (void)state;
  static const int64_t shapes[][2] = {{1, 1}, {3, 255}, {5, 256}, {2, 257}, {4, 70001}};
  for (int i = 0; i < 5; i++) {
    int64_t rows = shapes[i][0], width = shapes[i][1];
    float *x = host_memory(rows * width, sizeof *x);
    for (int64_t j = 0; j < rows * width; j++) x[j] = (float)uniform(0, 1);
    double *sums = device_memory((size_t)rows * sizeof *sums);
    ok(op->row_sums(be, uploaded(x, (size_t)(rows * width) * sizeof *x), rows, width, sums));
    const double *got = downloaded(sums, (size_t)rows * sizeof *got);
    for (int64_t r = 0; r < rows; r++) {
      long double want = 0;
      for (int64_t j = 0; j < width; j++) want += x[r * width + j];
      assert_true(fabs(got[r] - (double)want) <= 1e-13 * (double)want);
    }
  }
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      VARIANTS(memory_keeps_what_is_written),
      VARIANTS(embed_rows),
      VARIANTS(norm_in_all_variants),
      VARIANTS(norm_of_zeros),
      VARIANTS(linear_of_each_dtype),
      VARIANTS(linear_of_transposed_weights),
      VARIANTS(linear_of_many_columns),
      VARIANTS(linear_of_many_rows),
      VARIANTS(clamp_both_sides),
      VARIANTS(zeroed_features),
      VARIANTS(sums_of_rows),
      VARIANTS(add_rounds_once),
      VARIANTS(glu_rounds_twice),
      VARIANTS(glu_of_large_gates),
      VARIANTS(split_columns),
      VARIANTS(sigmoid_gate_of_values_and_rows),
      VARIANTS(rope_whole_heads),
      VARIANTS(rope_part_of_the_head),
      VARIANTS(rope_with_a_factor),
      VARIANTS(rope_of_far_positions),
      VARIANTS(rope_keeps_position_zero),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
