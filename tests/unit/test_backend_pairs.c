/* The operations outside of the mixture of experts on two backends: odd sizes, and those of the published models.
 * backends: check cuda */
#include "test_backend_pair_fixture.h"

static const mo_dtype dtypes[] = {MO_F32, MO_BF16, MO_F16};

/* --- rows and elements --- */

static void embed(void **state) {
  (void)state;
  enum { V = 211, T = 83 };
  static const int64_t widths[] = {1, 97, 264};
  for (int i = 0; i < 9; i++) {
    int64_t width = widths[i / 3];
    twin_weight table = twin_matrix(dtypes[i % 3], V, width, 3);
    twin out = twin_out(T * width);
    int32_t ids[T];
    for (int t = 0; t < T; t++) ids[t] = (int32_t)random_below(V);
    ok(op->embed(be, &table.here, ids, T, out.here));
    ok(cpu_op->embed(cpu, &table.cpu, ids, T, out.cpu));
    expect_same("embed", out, T * width, exactly);
  }
}

static void norm(void **state) {
  (void)state;
  static const int64_t shapes[][2] = {{1, 1},    {7, 97},   {3, 5001}, {5, 4096},
                                      {99, 128}, {2, 2880}, {9, 264},  {1, 20000}};
  for (int i = 0; i < 8; i++)
    for (int v = 0; v < 4; v++) {
      int64_t rows = shapes[i][0], width = shapes[i][1];
      mo_norm_spec spec = {.eps = 1e-5f, .zero_centred = v & 1, .weight_in_float = v & 2};
      twin_weight w = twin_matrix(dtypes[(i + v) % 3], 1, width, 2);
      twin x = twin_values(random_values(rows * width, 2, 40), rows * width), out = v == 3 ? x : twin_out(rows * width);
      ok(op->norm(be, &spec, &w.here, x.here, rows, width, out.here));
      ok(cpu_op->norm(cpu, &spec, &w.cpu, x.cpu, rows, width, out.cpu));
      expect_same("norm", out, rows * width, (nearness){.ulps = 2, .unequal = 0.004});
    }
}

static void linear_case(twin_weight w, const twin_weight *bias, int64_t M) {
  int64_t N = w.here.rows, K = w.here.cols;
  twin x = twin_random(M * K, 2), y = twin_out(M * N);
  ok(op->linear(be, &w.here, bias ? &bias->here : NULL, x.here, M, y.here));
  ok(cpu_op->linear(cpu, &w.cpu, bias ? &bias->cpu : NULL, x.cpu, M, y.cpu));
  expect_same("linear", y, M * N, (nearness){.ulps = 1, .spread = 1e-5, .unequal = 0.01});
  twin sum = twin_random(M * N, 40);
  ok(op->linear_add(be, &w.here, bias ? &bias->here : NULL, x.here, M, sum.here));
  ok(cpu_op->linear_add(cpu, &w.cpu, bias ? &bias->cpu : NULL, x.cpu, M, sum.cpu));
  expect_same("linear_add", sum, M * N, (nearness){.ulps = 1, .spread = 0x1p-6, .unequal = 0.25});
}

static void linear(void **state) {
  (void)state;
  static const int64_t shapes[][3] = {{1, 1, 1}, {3, 5, 7}, {65, 97, 129}, {130, 264, 200}, {129, 256, 512}};
  for (int i = 0; i < 5; i++)
    for (int d = 0; d < 3; d++) {
      int64_t M = shapes[i][0], N = shapes[i][1], K = shapes[i][2];
      twin_weight bias = twin_matrix(dtypes[(d + i) % 3], 1, N, 5);
      linear_case(twin_matrix(dtypes[d], N, K, 1), NULL, M);
      linear_case(twin_matrix(dtypes[d], N, K, 1), &bias, M);
      linear_case(twin_transposed(dtypes[d], N, K, 1), d == 1 ? &bias : NULL, M);
    }
}

/* Operations of one rounding are exact. */
static void clamp_add_split(void **state) {
  (void)state;
  static const int64_t counts[] = {1, 1001, 4096, 70003};
  for (int i = 0; i < 4; i++) {
    int64_t n = counts[i];
    twin x = twin_random(n, 10), y = twin_values(random_values(n, 3, 300), n);
    ok(op->add(be, x.here, y.here, n));
    ok(cpu_op->add(cpu, x.cpu, y.cpu, n));
    expect_same("add", x, n, exactly);
    ok(op->clamp(be, x.here, n, 2.75f));
    ok(cpu_op->clamp(cpu, x.cpu, n, 2.75f));
    expect_same("clamp", x, n, exactly);
  }
  static const int64_t widths[][2] = {{1, 1}, {5, 12}, {128, 128}, {256, 24}};
  for (int i = 0; i < 4; i++) {
    int64_t rows = 37, a = widths[i][0], b = widths[i][1];
    twin x = twin_random(rows * (a + b), 3), left = twin_out(rows * a), right = twin_out(rows * b);
    ok(op->split(be, x.here, rows, a, b, left.here, right.here));
    ok(cpu_op->split(cpu, x.cpu, rows, a, b, left.cpu, right.cpu));
    expect_same("left", left, rows * a, exactly);
    expect_same("right", right, rows * b, exactly);
  }
}

static void glu_and_gates(void **state) {
  (void)state;
  static const int64_t shapes[][2] = {{1, 1}, {13, 77}, {29, 264}, {7, 4096}};
  const nearness near = {.ulps = 2, .unequal = 0.004};
  for (int i = 0; i < 4; i++) {
    int64_t rows = shapes[i][0], width = shapes[i][1], n = rows * width;
    twin gate = twin_values(random_values(n, 12, 20), n), up = twin_random(n, 3), out = twin_out(n);
    ok(op->glu(be, gate.here, up.here, n, out.here));
    ok(cpu_op->glu(cpu, gate.cpu, up.cpu, n, out.cpu));
    expect_same("glu", out, n, near);
    ok(op->sigmoid_gate(be, up.here, gate.here, rows, width, width));
    ok(cpu_op->sigmoid_gate(cpu, up.cpu, gate.cpu, rows, width, width));
    expect_same("sigmoid_gate", up, n, near);
    twin one = twin_random(rows, 9);
    ok(op->sigmoid_gate(be, out.here, one.here, rows, width, 1));
    ok(cpu_op->sigmoid_gate(cpu, out.cpu, one.cpu, rows, width, 1));
    expect_same("sigmoid_gate of rows", out, n, (nearness){.ulps = 4, .unequal = 0.01});
  }
}

static void rope(void **state) {
  (void)state;
  static const int64_t shapes[][5] = {/* D, dim, B, S, heads */
                                      {128, 128, 2, 67, 3},
                                      {64, 64, 1, 300, 5},
                                      {256, 64, 2, 65, 2},
                                      {10, 6, 3, 11, 1}};
  for (int i = 0; i < 4; i++) {
    int64_t D = shapes[i][0], dim = shapes[i][1], T = shapes[i][2] * shapes[i][3], n = T * shapes[i][4] * D;
    float inv_freq[64];
    mo_model_spec spec = {.attention.head_dim = D,
                          .rope = {.dim = dim, .inv_freq = inv_freq, .factor = i == 1 ? 1.3465736f : 1}};
    for (int64_t j = 0; j < dim / 2; j++) inv_freq[j] = (float)pow(150000, -2.0 * (double)j / (double)dim);
    twin x = twin_random(n, 3);
    ok(op->rope(be, &spec, x.here, T, shapes[i][3], shapes[i][4]));
    ok(cpu_op->rope(cpu, &spec, x.cpu, T, shapes[i][3], shapes[i][4]));
    expect_same("rope", x, n, (nearness){.ulps = 1, .spread = 0x1p-8, .unequal = 0.002});
  }
}

static void norm_rope_case(int64_t D, int64_t dim, int64_t B, int64_t S, int64_t heads, mo_qk_norm_kind kind, int i) {
  int64_t T = B * S, n = T * heads * D, width = kind == MO_QK_NORM_WHOLE ? heads * D : D;
  float inv_freq[128];
  mo_model_spec spec = {.attention = {.head_dim = D, .qk_norm = kind},
                        .norm = {.eps = 1e-5f, .zero_centred = i % 2, .weight_in_float = i % 3 == 2},
                        .rope = {.dim = dim, .inv_freq = inv_freq, .factor = i == 1 ? 1.3465736f : 1}};
  for (int64_t j = 0; j < dim / 2; j++) inv_freq[j] = (float)pow(10000, -2.0 * (double)j / (double)dim);
  twin_weight w = twin_matrix(dtypes[i % 3], 1, width, 2);
  twin x = twin_random(n, 3);
  ok(op->norm_rope(be, &spec, &w.here, x.here, T, S, heads));
  ok(cpu_op->norm_rope(cpu, &spec, &w.cpu, x.cpu, T, S, heads));
  expect_same("norm_rope", x, n, (nearness){.ulps = 3, .spread = 0x1p-7, .unequal = 0.02});
}

/* Heads of all sizes, whole rows of them, parts that don't turn, several tokens of a warp and several warps of a token. */
static void norm_rope(void **state) {
  (void)state;
  static const int64_t shapes[][5] = {/* D, dim, B, S, heads */
                                      {128, 128, 2, 67, 16}, {128, 128, 1, 35, 32}, {128, 64, 3, 21, 3},
                                      {64, 64, 1, 300, 5},   {256, 64, 2, 65, 2},   {256, 256, 1, 9, 8},
                                      {32, 16, 2, 13, 4},    {16, 16, 1, 50, 1},    {10, 6, 3, 11, 1},
                                      {24, 24, 2, 7, 3},     {128, 128, 1, 1, 2}};
  for (int i = 0; i < (int)(sizeof shapes / sizeof *shapes); i++) {
    const int64_t *s = shapes[i];
    norm_rope_case(s[0], s[1], s[2], s[3], s[4], MO_QK_NORM_HEAD, i);
    norm_rope_case(s[0], s[1], s[2], s[3], s[4], MO_QK_NORM_WHOLE, i);
  }
}

/* --- attention --- */

typedef struct {
  int64_t heads, kv_heads, D, B, S, window;
  bool sinks;
} attention_case;

/* Of the largest score's size, some 10: see below. */
static void expect_same_tops(twin top, int64_t n) {
  const float *got = downloaded(top.here, (size_t)n * sizeof *got), *want = top.cpu;
  for (int64_t i = 0; i < n; i++) {
    double error = fabs((double)got[i] - (double)want[i]);
    if (!(error <= (bf16 ? 0x1p-4 : 1e-4) * (double)want[i]))
      fail_msg("largest probability %lld is %.9g, on the cpu %.9g", (long long)i, (double)got[i], (double)want[i]);
  }
}

/* Tensor cores leave scores in float32 where the cpu rounds them: a score of s is 2^-8 s off, and a probability by that factor;
 * a softmax over scores of size 1 thus differs by some 2^-8 of the values' size, and of 10^6 results some by ten times that. */
static void attention_case_of(attention_case c) {
  int64_t rows = c.B * c.S, n_q = rows * c.heads * c.D, n_kv = rows * c.kv_heads * c.D;
  mo_model_spec spec = {.attention = {.heads = c.heads,
                                      .kv_heads = c.kv_heads,
                                      .head_dim = c.D,
                                      .sinks = c.sinks,
                                      .softmax_bf16 = c.sinks,
                                      .scale = (float)(1 / sqrt((double)c.D))}};
  twin q = twin_random(n_q, 1.5), k = twin_random(n_kv, 1.5), v = twin_random(n_kv, 1), out = twin_out(n_q);
  twin top = twin_memory((size_t)(rows * c.heads) * sizeof(float));
  twin_weight sink = twin_matrix(MO_BF16, 1, c.heads, 2);
  ok(op->attention(be, &spec, c.window, c.sinks ? &sink.here : NULL, q.here, k.here, v.here, c.B, c.S, out.here, NULL));
  ok(cpu_op->attention(cpu, &spec, c.window, c.sinks ? &sink.cpu : NULL, q.cpu, k.cpu, v.cpu, c.B, c.S, out.cpu,
                       top.cpu));
  expect_same("attention", out, n_q, (nearness){.ulps = 2, .spread = 0x3p-6, .unequal = 1});
  const float *alone = result(out.here, n_q);
  ok(op->attention(be, &spec, c.window, c.sinks ? &sink.here : NULL, q.here, k.here, v.here, c.B, c.S, out.here,
                   top.here));
  assert_memory_equal(result(out.here, n_q), alone, (size_t)n_q * sizeof *alone);
  expect_same_tops(top, rows * c.heads);
}

static void attention_of_each_head_size(void **state) {
  (void)state;
  static const int64_t sizes[] = {5, 64, 72, 97, 128, 160, 256};
  for (int i = 0; i < 7; i++) {
    attention_case_of((attention_case){.heads = 5, .kv_heads = 1, .D = sizes[i], .B = 2, .S = 129});
    attention_case_of((attention_case){.heads = 4, .kv_heads = 4, .D = sizes[i], .B = 1, .S = 61, .window = 17});
  }
}

static void attention_of_the_models(void **state) {
  (void)state;
  attention_case_of(
      (attention_case){.heads = 8, .kv_heads = 1, .D = 64, .B = 1, .S = 385, .window = 128, .sinks = true});
  attention_case_of((attention_case){.heads = 8, .kv_heads = 1, .D = 64, .B = 2, .S = 190, .sinks = true});
  attention_case_of((attention_case){.heads = 8, .kv_heads = 2, .D = 128, .B = 1, .S = 321});
  attention_case_of((attention_case){.heads = 12, .kv_heads = 1, .D = 128, .B = 1, .S = 257});
  attention_case_of((attention_case){.heads = 3, .kv_heads = 3, .D = 128, .B = 3, .S = 128});
  attention_case_of((attention_case){.heads = 8, .kv_heads = 1, .D = 256, .B = 1, .S = 193});
}

static void attention_of_short_sequences(void **state) {
  (void)state;
  for (int64_t D = 64; D <= 256; D *= 2)
    for (int64_t S = 1; S <= 33; S += 8) attention_case_of((attention_case){8, 2, D, 5, S, S % 3 * 4, S % 2 == 0});
}

/* Lengths and windows about the sizes of tiles of queries and keys. */
static void attention_at_the_edges_of_tiles(void **state) {
  (void)state;
  static const int64_t lengths[] = {79, 80, 81, 127, 128, 129, 191, 192, 193, 257}, windows[] = {0, 80, 0, 129, 65};
  for (int64_t D = 64; D <= 256; D *= 2)
    for (int i = 0; i < 10; i++)
      attention_case_of((attention_case){2, 1, D, 1 + i % 2, lengths[i], windows[i % 5], i % 3 == 0});
}

/* More blocks of queries than a GPU has multiprocessors. */
static void attention_of_many_heads(void **state) {
  (void)state;
  attention_case_of(
      (attention_case){.heads = 40, .kv_heads = 5, .D = 64, .B = 2, .S = 193, .window = 100, .sinks = true});
  attention_case_of((attention_case){.heads = 36, .kv_heads = 3, .D = 128, .B = 2, .S = 131});
  attention_case_of((attention_case){.heads = 36, .kv_heads = 9, .D = 256, .B = 2, .S = 131, .window = 90});
}

/* --- gated DeltaNet --- */

typedef struct {
  int64_t kh, per_key, kd, vd, kernel, B, S;
} delta_case;

static mo_model_spec delta_spec(const delta_case *c) {
  mo_model_spec spec = {.norm.eps = 1e-6f};
  spec.delta.k_heads = c->kh;
  spec.delta.v_heads = c->kh * c->per_key;
  spec.delta.k_dim = c->kd;
  spec.delta.v_dim = c->vd;
  spec.delta.kernel = c->kernel;
  return spec;
}

/* All three operations, each on the cpu's result of the one before. */
static void delta_case_of(delta_case c) {
  mo_model_spec spec = delta_spec(&c);
  int64_t vh = c.kh * c.per_key, T = c.B * c.S, C = 2 * c.kh * c.kd + vh * c.vd, W = C + vh * c.vd;
  twin_weight taps = twin_matrix(MO_BF16, C, c.kernel, 1), a_log = twin_matrix(MO_BF16, 1, vh, 2),
              dt_bias = twin_matrix(MO_F32, 1, vh, 3), weight = twin_matrix(MO_BF16, 1, c.vd, 2);
  mo_stage_weights here = {
      .one = {[MO_DELTA_CONV] = taps.here, [MO_DELTA_A_LOG] = a_log.here, [MO_DELTA_DT_BIAS] = dt_bias.here}};
  mo_stage_weights there = {
      .one = {[MO_DELTA_CONV] = taps.cpu, [MO_DELTA_A_LOG] = a_log.cpu, [MO_DELTA_DT_BIAS] = dt_bias.cpu}};
  twin qkvz = twin_random(T * W, 2), ba = twin_random(T * 2 * vh, 4), mixed = twin_out(T * C);
  twin beta = twin_memory((size_t)(T * vh) * 4), decay = twin_memory((size_t)(T * vh) * 4),
       out = twin_out(T * vh * c.vd);
  ok(op->delta_conv(be, &spec, &here, qkvz.here, ba.here, c.B, c.S, mixed.here, beta.here, decay.here));
  ok(cpu_op->delta_conv(cpu, &spec, &there, qkvz.cpu, ba.cpu, c.B, c.S, mixed.cpu, beta.cpu, decay.cpu));
  expect_same("mixed", mixed, T * C, (nearness){.ulps = 2, .spread = 1e-4, .unequal = 0.01});
  expect_near("beta", downloaded(beta.here, (size_t)(T * vh) * 4), beta.cpu, T * vh,
              (nearness){.ulps = 1, .unequal = 0.01});
  const float *got = downloaded(decay.here, (size_t)(T * vh) * 4), *want = decay.cpu; /* float32 in bf16 runs, too */
  for (int64_t i = 0; i < T * vh; i++) assert_true(fabsf(got[i] - want[i]) <= 1e-5f * fabsf(want[i]));

  float *rows = host_memory(T * C, sizeof *rows);
  ok(cpu_op->read_activations(cpu, mixed.cpu, T * C, rows));
  ok(op->write_activations(be, mixed.here, T * C, rows));
  twin beta_in = twin_upload(beta.cpu, (size_t)(T * vh) * 4), decay_in = twin_upload(decay.cpu, (size_t)(T * vh) * 4);
  ok(op->delta_rule(be, &spec, mixed.here, beta_in.here, decay_in.here, c.B, c.S, out.here));
  ok(cpu_op->delta_rule(cpu, &spec, mixed.cpu, beta_in.cpu, decay_in.cpu, c.B, c.S, out.cpu));
  expect_same("delta_rule", out, T * vh * c.vd, (nearness){.floor = 1e-4, .ulps = 2, .spread = 0x1p-6, .unequal = 1});

  twin x = twin_random(T * vh * c.vd, 2);
  ok(op->delta_norm(be, &spec, &weight.here, qkvz.here, T, x.here));
  ok(cpu_op->delta_norm(cpu, &spec, &weight.cpu, qkvz.cpu, T, x.cpu));
  expect_same("delta_norm", x, T * vh * c.vd, (nearness){.ulps = 3, .unequal = 0.01});
}

static void delta_of_odd_sizes(void **state) {
  (void)state;
  delta_case_of((delta_case){.kh = 2, .per_key = 3, .kd = 5, .vd = 7, .kernel = 4, .B = 3, .S = 67});
  delta_case_of((delta_case){.kh = 3, .per_key = 1, .kd = 33, .vd = 20, .kernel = 2, .B = 1, .S = 130});
  delta_case_of((delta_case){.kh = 1, .per_key = 2, .kd = 64, .vd = 96, .kernel = 4, .B = 2, .S = 63});
}

static void delta_of_the_model(void **state) {
  (void)state;
  static const int64_t lengths[] = {1, 2, 63, 64, 65, 128, 129, 201};
  for (int i = 0; i < 8; i++)
    delta_case_of((delta_case){2, i % 2 ? 1 : 2, .kd = 128, .vd = 128, .kernel = 4, .B = 1 + i % 3, .S = lengths[i]});
  delta_case_of((delta_case){.kh = 1, .per_key = 3, .kd = 128, .vd = 64, .kernel = 4, .B = 1, .S = 130});
  delta_case_of((delta_case){.kh = 3, .per_key = 1, .kd = 128, .vd = 192, .kernel = 4, .B = 1, .S = 70});
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      PAIR_VARIANTS(embed),
      PAIR_VARIANTS(norm),
      PAIR_VARIANTS(linear),
      PAIR_VARIANTS(clamp_add_split),
      PAIR_VARIANTS(glu_and_gates),
      PAIR_VARIANTS(rope),
      PAIR_VARIANTS(norm_rope),
      PAIR_VARIANTS(attention_of_each_head_size),
      PAIR_VARIANTS(attention_of_the_models),
      PAIR_VARIANTS(attention_of_short_sequences),
      PAIR_VARIANTS(attention_at_the_edges_of_tiles),
      PAIR_VARIANTS(attention_of_many_heads),
      PAIR_VARIANTS(delta_of_odd_sizes),
      PAIR_VARIANTS(delta_of_the_model),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
