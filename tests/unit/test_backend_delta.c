/* Gated DeltaNet of a backend against the recurrent form, one token after another, in double.
 * backends: cpu check cuda */
#include "test_backend_fixture.h"

typedef struct {
  mo_model_spec spec;
  int64_t kh, vh, kd, vd, kernel, B, S;
} scene;

static scene scene_of(int64_t kh, int64_t per_key, int64_t kd, int64_t vd, int64_t kernel, int64_t B, int64_t S) {
  scene s = {.kh = kh, .vh = kh * per_key, .kd = kd, .vd = vd, .kernel = kernel, .B = B, .S = S};
  s.spec.delta.k_heads = s.kh;
  s.spec.delta.v_heads = s.vh;
  s.spec.delta.k_dim = kd;
  s.spec.delta.v_dim = vd;
  s.spec.delta.kernel = kernel;
  s.spec.norm.eps = 1e-6f;
  return s;
}

static int64_t channels_of(const scene *s) { return 2 * s->kh * s->kd + s->vh * s->vd; }
static int64_t qkvz_width(const scene *s) { return 2 * s->kh * s->kd + 2 * s->vh * s->vd; }

/* A row of in_proj_qkvz is, for each key head in turn: q [kd], k [kd], v of its value heads, z of its value heads.
 * Taken apart: channels [q of all heads | k of all heads | v of all heads] and z. */
static void take_apart(const scene *s, const double *row, double *channels, double *z) {
  int64_t per_key = s->vh / s->kh;
  double *q = channels, *k = q + s->kh * s->kd, *v = k + s->kh * s->kd;
  for (int64_t g = 0; g < s->kh; g++) {
    for (int64_t i = 0; i < s->kd; i++) q[g * s->kd + i] = *row++;
    for (int64_t i = 0; i < s->kd; i++) k[g * s->kd + i] = *row++;
    for (int64_t i = 0; i < per_key * s->vd; i++) v[g * per_key * s->vd + i] = *row++;
    for (int64_t i = 0; i < per_key * s->vd; i++) z[g * per_key * s->vd + i] = *row++;
  }
}

/* --- convolution and gates --- */

static void naive_conv(const scene *s, const double *qkvz, const double *taps, double *mixed, double *slack) {
  int64_t C = channels_of(s), W = qkvz_width(s);
  double *channels = doubles(s->S * C), *z = doubles(s->vh * s->vd);
  for (int64_t b = 0; b < s->B; b++) {
    for (int64_t t = 0; t < s->S; t++) take_apart(s, qkvz + (b * s->S + t) * W, channels + t * C, z);
    for (int64_t t = 0; t < s->S; t++)
      for (int64_t c = 0; c < C; c++) {
        double sum = 0, magnitude = 0;
        for (int64_t j = 0; j < s->kernel; j++) { /* the last tap meets the current token */
          int64_t from = t - (s->kernel - 1) + j;
          if (from < 0) continue;
          sum += taps[c * s->kernel + j] * channels[from * C + c];
          magnitude += fabs(taps[c * s->kernel + j] * channels[from * C + c]);
        }
        mixed[(b * s->S + t) * C + c] = rounded(silu(rounded(sum)));
        slack[(b * s->S + t) * C + c] = 2e-6 * magnitude;
      }
  }
}

static void expect_floats(const char *what, const void *memory, const double *want, int64_t n, double tolerance) {
  const float *got = downloaded(memory, (size_t)n * sizeof(float));
  for (int64_t i = 0; i < n; i++)
    if (!(fabs(got[i] - want[i]) <= tolerance * fabs(want[i])))
      fail_msg("%s %lld is %.9g, expected %.9g", what, (long long)i, (double)got[i], want[i]);
}

static void check_conv(scene s) {
  int64_t T = s.B * s.S, C = channels_of(&s), per_key = s.vh / s.kh;
  double *qkvz, *ba, *taps, *a_log, *dt_bias;
  double *want = doubles(T * C), *slack = doubles(T * C), *beta = doubles(T * s.vh), *decay = doubles(T * s.vh);
  void *in = random_activations(T * qkvz_width(&s), 2, &qkvz), *gates = random_activations(T * 2 * s.vh, 30, &ba);
  mo_stage_weights weights = {0};
  weights.one[MO_DELTA_CONV] = random_weight(MO_BF16, C, s.kernel, 1, &taps);
  weights.one[MO_DELTA_A_LOG] = random_weight(MO_BF16, 1, s.vh, 2, &a_log);
  weights.one[MO_DELTA_DT_BIAS] = random_weight(MO_F32, 1, s.vh, 3, &dt_bias);
  naive_conv(&s, qkvz, taps, want, slack);
  for (int64_t i = 0; i < T * s.vh; i++) { /* b of a key head's value heads, then a of these */
    int64_t h = i % s.vh;
    const double *row = ba + i / s.vh * 2 * s.vh + h / per_key * 2 * per_key;
    double x = row[per_key + h % per_key] + dt_bias[h];
    beta[i] = rounded(1 / (1 + exp(-row[h % per_key])));
    decay[i] = -exp(a_log[h]) * (x > 30 ? x : log1p(exp(x)));
  }
  void *mixed = activations_out(T * C);
  float *beta_out = device_memory((size_t)(T * s.vh) * 4), *decay_out = device_memory((size_t)(T * s.vh) * 4);
  ok(op->delta_conv(be, &s.spec, &weights, in, gates, s.B, s.S, mixed, beta_out, decay_out));
  expect_close("mixed", result(mixed, T * C), want, T * C,
               (closeness){.relative = 1e-6, .ulps = 2, .unequal = 0.005, .slack = slack});
  expect_floats("beta", beta_out, beta, T * s.vh, bf16 ? 0x1p-7 : 1e-6);
  expect_floats("decay", decay_out, decay, T * s.vh, 2e-6);
}

static void convolution_and_gates(void **state) {
  (void)state;
  check_conv(scene_of(2, 3, 5, 7, 4, 3, 17));
  check_conv(scene_of(3, 1, 4, 4, 4, 2, 9));
  check_conv(scene_of(1, 2, 3, 5, 1, 2, 6));
}

/* Sequences shorter than the kernel, and of one token. */
static void convolution_of_short_sequences(void **state) {
  (void)state;
  for (int64_t S = 1; S <= 4; S++) check_conv(scene_of(2, 2, 3, 4, 4, 3, S));
}

/* --- the delta rule --- */

static void naive_normalise(const double *x, int64_t n, double scale, double *out) {
  double squares = 1e-6;
  for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
  for (int64_t i = 0; i < n; i++) out[i] = x[i] / sqrt(squares) * scale;
}

/* One value head of one sequence: S *= exp(g); d = beta (v - S^T k); S += k d^T; o = S^T q. Rows are the given widths
 * apart. */
static void naive_head(const scene *s, int64_t h, const double *mixed, const double *beta, const double *decay,
                       double *out) {
  int64_t C = channels_of(s), group = h / (s->vh / s->kh);
  double *state = doubles(s->kd * s->vd), q[128], k[128], d[128];
  assert_true(s->kd <= 128 && s->vd <= 128);
  for (int64_t t = 0; t < s->S; t++) {
    const double *row = mixed + t * C, *v = row + 2 * s->kh * s->kd + h * s->vd;
    double kept = exp(decay[t * s->vh + h]), *o = out + t * s->vh * s->vd + h * s->vd;
    naive_normalise(row + group * s->kd, s->kd, 1 / sqrt((double)s->kd), q);
    naive_normalise(row + (s->kh + group) * s->kd, s->kd, 1, k);
    for (int64_t j = 0; j < s->vd; j++) {
      double read = 0;
      for (int64_t i = 0; i < s->kd; i++) read += (state[i * s->vd + j] *= kept) * k[i];
      d[j] = beta[t * s->vh + h] * (v[j] - read);
      o[j] = 0;
      for (int64_t i = 0; i < s->kd; i++) {
        state[i * s->vd + j] += k[i] * d[j];
        o[j] += state[i * s->vd + j] * q[i];
      }
    }
  }
}

static void check_rule(scene s, double strongest, double scale) {
  int64_t T = s.B * s.S, C = channels_of(&s), n = T * s.vh * s.vd;
  double *mixed, *beta = doubles(T * s.vh), *decay = doubles(T * s.vh), *want = doubles(n), *slack = doubles(n),
                 largest = 0;
  float *gates = host_memory(2 * T * s.vh, sizeof *gates);
  void *in = random_activations(T * C, scale, &mixed), *out = activations_out(n);
  for (int64_t i = 0; i < T * s.vh; i++) {
    beta[i] = gates[i] = (float)rounded(uniform(0, 1));
    decay[i] = gates[T * s.vh + i] = (float)(-strongest * uniform(0, 1) * uniform(0, 1));
  }
  void *beta_in = uploaded(gates, (size_t)(T * s.vh) * 4),
       *decay_in = uploaded(gates + T * s.vh, (size_t)(T * s.vh) * 4);
  for (int64_t b = 0; b < s.B; b++)
    for (int64_t h = 0; h < s.vh; h++)
      naive_head(&s, h, mixed + b * s.S * C, beta + b * s.S * s.vh, decay + b * s.S * s.vh,
                 want + b * s.S * s.vh * s.vd);
  for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(want[i]));
  for (int64_t i = 0; i < n; i++) {
    want[i] = rounded(want[i]);
    slack[i] = 2e-5 * largest; /* chunks subtract large numbers from each other */
  }
  ok(op->delta_rule(be, &s.spec, in, beta_in, decay_in, s.B, s.S, out));
  expect_close("delta_rule", result(out, n), want, n, (closeness){.ulps = 1, .unequal = 0.02, .slack = slack});
}

static void delta_rule_of_each_length(void **state) {
  (void)state;
  static const int64_t lengths[] = {1, 2, 63, 64, 65, 128, 150};
  for (int i = 0; i < 7; i++) check_rule(scene_of(2, 2, 8, 6, 4, 2, lengths[i]), 1, 2);
}

static void delta_rule_of_each_shape(void **state) {
  (void)state;
  check_rule(scene_of(1, 1, 16, 16, 4, 1, 70), 1, 2);
  check_rule(scene_of(3, 1, 5, 9, 4, 2, 70), 1, 2);
  check_rule(scene_of(1, 4, 32, 7, 4, 1, 70), 1, 2);
}

/* Head sizes of Qwen3-Next, which tensor cores may take: lengths around whole chunks, then several heads and sequences,
 * strong decay, and values wider or narrower than keys. */
static void delta_rule_of_large_heads(void **state) {
  (void)state;
  static const int64_t lengths[] = {1, 63, 64, 65, 130};
  for (int i = 0; i < 5; i++) check_rule(scene_of(1, 2, 128, 128, 4, 1, lengths[i]), 1, 2);
  check_rule(scene_of(2, 2, 128, 128, 4, 2, 65), 1, 2);
  check_rule(scene_of(1, 2, 128, 128, 4, 1, 130), 60, 2);
  check_rule(scene_of(1, 3, 128, 64, 4, 1, 70), 1, 2);
  check_rule(scene_of(1, 1, 64, 128, 4, 1, 70), 1, 2);
}

/* Decay of almost nothing, and so strong that exponentials of sums over a chunk vanish. */
static void delta_rule_of_weak_and_strong_decay(void **state) {
  (void)state;
  check_rule(scene_of(2, 1, 16, 8, 4, 1, 140), 1e-4, 2);
  check_rule(scene_of(2, 1, 16, 8, 4, 1, 140), 60, 2);
}

/* Queries and keys so small that the epsilon of their norm counts, and of no length at all. */
static void delta_rule_of_small_keys(void **state) {
  (void)state;
  check_rule(scene_of(2, 1, 8, 8, 4, 1, 70), 1, 5e-4);
  check_rule(scene_of(2, 1, 8, 8, 4, 1, 70), 1, 0);
}

/* --- norm and gate of the output --- */

static void gated_norm(void **state) {
  (void)state;
  scene s = scene_of(2, 3, 5, 11, 4, 1, 13);
  int64_t T = s.S, n = T * s.vh * s.vd;
  double *qkvz, *x, *w, *want = doubles(n), *channels = doubles(channels_of(&s)), *z = doubles(s.vh * s.vd);
  void *in = random_activations(T * qkvz_width(&s), 6, &qkvz), *rows = random_activations(n, 2, &x);
  mo_weight weight = random_weight(MO_BF16, 1, s.vd, 2, &w);
  for (int64_t t = 0; t < T; t++) {
    take_apart(&s, qkvz + t * qkvz_width(&s), channels, z);
    for (int64_t h = 0; h < s.vh; h++) {
      const double *row = x + (t * s.vh + h) * s.vd;
      double squares = 0;
      for (int64_t i = 0; i < s.vd; i++) squares += row[i] * row[i];
      double scale = 1 / sqrt(squares / (double)s.vd + (double)s.spec.norm.eps);
      for (int64_t i = 0; i < s.vd; i++)
        want[(t * s.vh + h) * s.vd + i] = rounded(rounded(rounded(row[i] * scale) * w[i]) * silu(z[h * s.vd + i]));
    }
  }
  ok(op->delta_norm(be, &s.spec, &weight, in, T, rows));
  expect_close("delta_norm", result(rows, n), want, n, (closeness){.relative = 2e-6, .ulps = 3, .unequal = 0.005});
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      VARIANTS(convolution_and_gates),     VARIANTS(convolution_of_short_sequences),
      VARIANTS(delta_rule_of_each_length), VARIANTS(delta_rule_of_each_shape),
      VARIANTS(delta_rule_of_large_heads), VARIANTS(delta_rule_of_weak_and_strong_decay),
      VARIANTS(delta_rule_of_small_keys),  VARIANTS(gated_norm),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
