/* Causal attention of a backend against a naive double loop: grouped heads, windows, sinks, sequences of any length.
 * backends: cpu check cuda */
#include "test_backend_fixture.h"

typedef struct {
  int64_t heads, kv_heads, D, B, S, window;
  bool sinks, softmax_bf16;
  double scale_of_q;
} attention_case;

/* Whether scores and probabilities of this case must round: heads of these sizes are for tensor cores, which do not. */
static bool rounds_scores(const attention_case *c) { return c->D != 64 && c->D != 128 && c->D != 256; }

static double between(const attention_case *c, double x) { return rounds_scores(c) ? rounded(x) : x; }

/* Probabilities of the keys first..last for one query (scores in p), with a sink's share taken away. The largest, unrounded. */
static double naive_softmax(const attention_case *c, double *p, int64_t n, const double *sink) {
  double top = sink ? *sink : -INFINITY, likeliest = 0, sum;
  for (int64_t j = 0; j < n; j++) top = fmax(top, p[j]);
  for (int64_t j = 0; j < n; j++) p[j] = exp(c->softmax_bf16 ? between(c, p[j] - top) : p[j] - top);
  sum = sink ? exp(c->softmax_bf16 ? between(c, *sink - top) : *sink - top) : 0;
  for (int64_t j = 0; j < n; j++) sum += p[j];
  for (int64_t j = 0; j < n; j++) likeliest = fmax(likeliest, p[j] / sum);
  for (int64_t j = 0; j < n; j++) p[j] = between(c, p[j] / sum);
  return likeliest;
}

/* What may change an output: float32 sums; in bf16 runs two scores or probabilities on the other side of a rounding boundary, or,
 * where the reference does not round them, probabilities rounded to bf16, and on the CPU also scores (twice, and their
 * differences), as a change of e^score. largest: of the terms, magnitude: their sum. */
static double slack_of(const attention_case *c, double largest_score, double largest, double magnitude) {
  if (!bf16) return (2e-6 + 4e-7 * largest_score) * magnitude;
  if (rounds_scores(c)) return 0x1p-5 * largest;
  return (0x1.1p-8 + (strcmp(op->name, "cuda") == 0 ? 0 : 0x1p-7 * largest_score)) * magnitude;
}

/* The same of the largest probability: two scores on the other side of a rounding boundary, or rounded where the reference's are
 * not; else float32 sums. */
static double top_slack_of(const attention_case *c, double largest_score, double likeliest) {
  bool exact = !bf16 || (!rounds_scores(c) && strcmp(op->name, "cuda") == 0);
  return likeliest * (exact ? 4e-6 * (1 + largest_score) : 0x1p-6 * (1 + largest_score));
}

/* One query of one head; rows are `kv` wide apart. top: the largest probability, and its slack. */
static void naive_query(const attention_case *c, const double *q, const double *k, const double *v, int64_t n,
                        const double *sink, double *out, double *slack, double top[2]) {
  int64_t D = c->D, kv = c->kv_heads * D;
  double p[512], scale = (double)(float)(1 / sqrt((double)D)), largest_score = 0;
  assert_true(n <= 512);
  for (int64_t j = 0; j < n; j++) {
    double score = 0, magnitude = 0;
    for (int64_t d = 0; d < D; d++) {
      score += q[d] * k[j * kv + d];
      magnitude += fabs(q[d] * k[j * kv + d]);
    }
    p[j] = between(c, between(c, score) * scale);
    largest_score = fmax(largest_score, magnitude * scale);
  }
  top[0] = naive_softmax(c, p, n, sink);
  top[1] = top_slack_of(c, largest_score, top[0]);
  for (int64_t d = 0; d < D; d++) {
    double sum = 0, magnitude = 0, largest = 0;
    for (int64_t j = 0; j < n; j++) {
      double term = p[j] * v[j * kv + d];
      sum += term;
      magnitude += fabs(term);
      largest = fmax(largest, fabs(term));
    }
    out[d] = rounded(sum);
    slack[d] = slack_of(c, largest_score, largest, magnitude);
  }
}

static void naive_attention(const attention_case *c, const double *q, const double *k, const double *v,
                            const double *sinks, double *out, double *slack, double *top) {
  int64_t D = c->D, kv = c->kv_heads * D;
  for (int64_t b = 0; b < c->B; b++)
    for (int64_t s = 0; s < c->S; s++)
      for (int64_t h = 0; h < c->heads; h++) {
        int64_t first = c->window > 0 && s - c->window + 1 > 0 ? s - c->window + 1 : 0;
        int64_t key = (b * c->S + first) * kv + h / (c->heads / c->kv_heads) * D;
        int64_t at = ((b * c->S + s) * c->heads + h) * D;
        naive_query(c, q + at, k + key, v + key, s - first + 1, sinks ? sinks + h : NULL, out + at, slack + at,
                    top + 2 * (at / D));
      }
}

static void check_top(const attention_case *c, const float *got, const double *want) {
  hash(got, (size_t)(c->B * c->S * c->heads) * sizeof *got);
  for (int64_t i = 0; i < c->B * c->S * c->heads; i++)
    if (!(fabs((double)got[i] - want[2 * i]) <= want[2 * i + 1]))
      fail_msg("largest probability %lld is %.9g, expected %.9g +- %.3g", (long long)i, (double)got[i], want[2 * i],
               want[2 * i + 1]);
}

static void check_case(attention_case c) {
  int64_t n_tops = c.B * c.S * c.heads, n_q = n_tops * c.D, n_kv = c.B * c.S * c.kv_heads * c.D;
  double *q, *k, *v, *sinks = NULL, *want = doubles(n_q), *slack = doubles(n_q), *tops = doubles(2 * n_tops);
  void *queries = random_activations(n_q, c.scale_of_q > 0 ? c.scale_of_q : 2, &q);
  void *keys = random_activations(n_kv, 2, &k), *values = random_activations(n_kv, 1, &v), *out = activations_out(n_q);
  mo_model_spec spec = {.attention = {.heads = c.heads,
                                      .kv_heads = c.kv_heads,
                                      .head_dim = c.D,
                                      .sinks = c.sinks,
                                      .softmax_bf16 = c.softmax_bf16,
                                      .scale = (float)(1 / sqrt((double)c.D))}};
  mo_weight sink = {0};
  if (c.sinks) sink = random_weight(MO_BF16, 1, c.heads, 2, &sinks);
  float *top = device_memory((size_t)n_tops * sizeof *top);
  naive_attention(&c, q, k, v, sinks, want, slack, tops);
  ok(op->attention(be, &spec, c.window, c.sinks ? &sink : NULL, queries, keys, values, c.B, c.S, out, top));
  expect_close("attention", result(out, n_q), want, n_q,
               (closeness){.ulps = 1, .unequal = rounds_scores(&c) ? 0.03 : 1, .slack = slack});
  check_top(&c, downloaded(top, (size_t)n_tops * sizeof *top), tops);
  /* The same output where it is not asked for. */
  float *with_top = result(out, n_q);
  ok(op->attention(be, &spec, c.window, c.sinks ? &sink : NULL, queries, keys, values, c.B, c.S, out, NULL));
  assert_memory_equal(result(out, n_q), with_top, (size_t)n_q * sizeof *with_top);
}

static void each_ratio_of_heads(void **state) {
  (void)state;
  for (int64_t ratio = 1; ratio <= 8; ratio += ratio == 1 ? 2 : 5)
    for (int64_t kv_heads = 1; kv_heads <= 3; kv_heads += 2)
      check_case((attention_case){.heads = ratio * kv_heads, .kv_heads = kv_heads, .D = 6, .B = 2, .S = 19});
}

static void each_length(void **state) {
  (void)state;
  static const int64_t lengths[] = {1, 2, 63, 64, 65, 131};
  for (int i = 0; i < 6; i++) check_case((attention_case){.heads = 2, .kv_heads = 1, .D = 5, .B = 3, .S = lengths[i]});
}

static void each_window(void **state) {
  (void)state;
  static const int64_t windows[] = {1, 2, 7, 64, 65, 100, 140, 141, 5000};
  for (int i = 0; i < 9; i++)
    check_case((attention_case){.heads = 2, .kv_heads = 2, .D = 4, .B = 2, .S = 140, .window = windows[i]});
}

/* Lengths and windows about the sizes of blocks of queries and keys. */
static void heads_for_tensor_cores(void **state) {
  (void)state;
  static const int64_t lengths[] = {1, 31, 33, 64, 127, 128, 129, 200}, windows[] = {0, 1, 40, 64, 0, 128, 0, 77};
  for (int64_t D = 64; D <= 256; D *= 2)
    for (int i = 0; i < 8; i++)
      check_case((attention_case){.heads = i % 2 ? 4 : 3,
                                  .kv_heads = i % 2 ? 2 : 1,
                                  .D = D,
                                  .B = 1 + i % 2,
                                  .S = lengths[i],
                                  .window = windows[i],
                                  .sinks = i % 3 == 0,
                                  .softmax_bf16 = i % 3 == 0,
                                  .scale_of_q = i == 6 ? 40 : 1});
}

static void heads_of_other_sizes(void **state) {
  (void)state;
  static const int64_t sizes[] = {1, 33, 72, 80, 96, 97, 192, 260};
  for (int i = 0; i < 8; i++)
    check_case((attention_case){.heads = 2, .kv_heads = 1, .D = sizes[i], .B = 1, .S = 67, .window = i % 2 ? 0 : 20});
}

static void sinks_take_a_share(void **state) {
  (void)state;
  check_case((attention_case){.heads = 4, .kv_heads = 2, .D = 8, .B = 2, .S = 70, .sinks = true});
  check_case((attention_case){.heads = 4, .kv_heads = 2, .D = 8, .B = 2, .S = 70, .window = 9, .sinks = true});
  check_case((attention_case){.heads = 3, .kv_heads = 1, .D = 8, .B = 1, .S = 1, .sinks = true});
}

static void softmax_in_bf16(void **state) {
  (void)state;
  check_case((attention_case){.heads = 4, .kv_heads = 2, .D = 8, .B = 2, .S = 70, .softmax_bf16 = true});
  check_case((attention_case){
      .heads = 4, .kv_heads = 2, .D = 8, .B = 1, .S = 70, .window = 9, .sinks = true, .softmax_bf16 = true});
}

/* Scores of some hundred: the softmax must not overflow. */
static void large_scores(void **state) {
  (void)state;
  check_case((attention_case){.heads = 2, .kv_heads = 1, .D = 16, .B = 1, .S = 70, .scale_of_q = 300});
}

/* Closed form: equal keys give the mean of the values seen so far. */
static void equal_keys_average(void **state) {
  (void)state;
  enum { S = 8, D = 2 };
  double q[S * D], k[S * D], v[S * D], want[S * D];
  for (int i = 0; i < S * D; i++) {
    q[i] = uniform(-1, 1);
    k[i] = 0.5;
    v[i] = i / D * 2;               /* 0, 2, 4, .. */
    want[i] = rounded(i / D * 1.0); /* the mean of 0, 2, .. 2s is s */
  }
  mo_model_spec spec = {.attention = {.heads = 1, .kv_heads = 1, .head_dim = D, .scale = 0.7071068f}};
  void *queries = activations(q, S * D), *keys = activations(k, S * D), *values = activations(v, S * D);
  void *out = activations_out(S * D);
  ok(op->attention(be, &spec, 0, NULL, queries, keys, values, 1, S, out, NULL));
  expect_close("attention", result(out, S * D), want, S * D, (closeness){.relative = 1e-6, .ulps = 1, .unequal = 1});
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      VARIANTS(each_ratio_of_heads),  VARIANTS(each_length),
      VARIANTS(each_window),          VARIANTS(sinks_take_a_share),
      VARIANTS(softmax_in_bf16),      VARIANTS(large_scores),
      VARIANTS(equal_keys_average),   VARIANTS(heads_for_tensor_cores),
      VARIANTS(heads_of_other_sizes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
