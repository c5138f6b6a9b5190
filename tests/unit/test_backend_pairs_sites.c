/* Site statistics and next-token losses on two backends.
 * backends: check cuda */
#include "test_backend_pair_fixture.h"

/* --- site statistics: counts, extremes, positions and the list of values are the same bytes. Sums of doubles are taken in another
 * order: they agree to some 1e-13 of the magnitudes added. --- */

typedef struct {
  int64_t B, S, H, N, first;
  float threshold;
} site_case;

static bool both_nan_or(double a, double b, double tolerance) {
  return (isnan(a) && isnan(b)) || a == b || fabs(a - b) <= tolerance;
}

static int compare_outliers(const void *a, const void *b) {
  const mo_outlier *x = a, *y = b;
  if (x->feature != y->feature) return x->feature < y->feature ? -1 : 1;
  return (x->value > y->value) - (x->value < y->value);
}

static mo_outlier *sorted_outliers(const mo_site_statistics *s) {
  mo_outlier *list = host_memory(s->n_outliers, sizeof *list);
  if (s->n_outliers) memcpy(list, s->outliers, (size_t)s->n_outliers * sizeof *list);
  qsort(list, (size_t)s->n_outliers, sizeof *list, compare_outliers);
  return list;
}

static void expect_cells(const mo_site_statistics *got, const mo_site_statistics *want, int64_t cells) {
  assert_memory_equal(got->count, want->count, (size_t)cells * sizeof *got->count);
  assert_memory_equal(got->positive, want->positive, (size_t)cells * sizeof *got->positive);
  assert_memory_equal(got->first, want->first, (size_t)cells * sizeof *got->first);
  for (int64_t i = 0; i < cells; i++) {
    if (want->count[i] == 0) continue;
    assert_true(got->min[i] == want->min[i] && got->max[i] == want->max[i]);
    assert_int_equal(got->position[i], want->position[i]);
    assert_true(both_nan_or(got->sum_abs[i], want->sum_abs[i], 1e-13 * want->sum_abs[i]));
  }
}

static void expect_sequences(const mo_site_statistics *got, const mo_site_statistics *want, const site_case *c) {
  for (int64_t b = 0; b < c->B; b++) {
    double magnitude = sqrt(want->sum_squares[b] * (double)(c->S * c->H)); /* at least the sum of |x| */
    assert_true(both_nan_or(got->sum[b], want->sum[b], 1e-12 * magnitude));
    assert_true(both_nan_or(got->sum_squares[b], want->sum_squares[b], 1e-12 * want->sum_squares[b]));
    assert_true(got->max_abs[b] == want->max_abs[b]);
  }
}

static void check_site(site_case c, const float *x) {
  size_t words = (size_t)(c.N * c.H * ((c.S + 63) / 64));
  uint64_t *before = host_memory((int64_t)words, sizeof *before);
  for (size_t i = 0; i < words; i++) before[i] = random_below(3) ? 0 : random_bits();
  twin values = twin_values(x, c.B * c.S * c.H), positions = twin_upload(before, words * sizeof *before);
  twin row_counts = twin_memory((size_t)(c.B * c.S) * sizeof(int32_t));
  mo_site_statistics got, want;
  ok(op->site_statistics(be, values.here, c.B, c.S, c.H, c.threshold, positions.here, c.first, row_counts.here));
  ok(op->site_results(be, &got));
  ok(cpu_op->site_statistics(cpu, values.cpu, c.B, c.S, c.H, c.threshold, positions.cpu, c.first, row_counts.cpu));
  ok(cpu_op->site_results(cpu, &want));
  assert_int_equal(got.n_sequences, want.n_sequences);
  assert_int_equal(got.rows, want.rows);
  expect_cells(&got, &want, c.B * c.H);
  expect_sequences(&got, &want, &c);
  assert_int_equal(got.n_outliers, want.n_outliers);
  assert_memory_equal(sorted_outliers(&got), sorted_outliers(&want), (size_t)want.n_outliers * sizeof *want.outliers);
  expect_same_bytes("positions", positions, words * sizeof *before);
  expect_same_bytes("row_counts", row_counts, (size_t)(c.B * c.S) * sizeof(int32_t));
}

static void sites_of_each_shape(void **state) {
  (void)state;
  static const site_case cases[] = {{1, 1, 1, 1, 0, 6},      {3, 70, 67, 5, 1, 6},   {1, 64, 1024, 1, 0, 6},
                                    {2, 65, 264, 3, 1, 6},   {2, 129, 300, 2, 0, 2}, {4, 63, 128, 4, 0, 0.5f},
                                    {1, 200, 2880, 1, 0, 6}, {5, 33, 513, 9, 4, 6}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    check_site(cases[i], random_values(cases[i].B * cases[i].S * cases[i].H, 3, 30));
}

/* Infinities, NaN of both signs, zeros of both signs, and the neighbours of the threshold, at random places and at all corners. */
static void sites_of_special_values(void **state) {
  (void)state;
  const float below = bf16 ? 5.96875f : nextafterf(6.0f, 0.0f), above = bf16 ? 6.03125f : nextafterf(6.0f, 7.0f);
  const float special[] = {6,        -6,  below, -below,    above, -above, 0,     -0.0f,
                           INFINITY, NAN, -NAN,  -INFINITY, 3e38f, -3e38f, 1e-40f};
  site_case c = {.B = 3, .S = 67, .H = 265, .N = 3, .threshold = 6};
  float *x = random_values(c.B * c.S * c.H, 5, 1);
  for (int64_t i = 0; i < c.B * c.S * c.H; i++)
    if (random_below(40) == 0) x[i] = (float)rounded((double)special[random_below(15)]);
  x[0] = INFINITY;
  x[c.H - 1] = NAN;
  x[c.S * c.H - 1] = -INFINITY;
  x[c.B * c.S * c.H - 1] = 7;
  check_site(c, x);
  for (int64_t i = 0; i < c.S * c.H; i++) x[i] = NAN; /* a sequence of nothing else */
  check_site(c, x);
}

/* More outlier values than the list first has room for; then few again. */
static void sites_full_of_outliers(void **state) {
  (void)state;
  site_case c = {.B = 1, .S = 600, .H = 512, .N = 1, .threshold = 1};
  float *x = random_values(c.S * c.H, 1, 1);
  for (int64_t i = 0; i < c.S * c.H; i++) x[i] += x[i] < 0 ? -2 : 2;
  for (int64_t i = 0; i < c.S * c.H; i++) x[i] = (float)rounded((double)x[i]);
  check_site(c, x);
  c.threshold = (float)rounded(2.99);
  check_site(c, x);
}

/* --- next-token losses --- */

typedef struct {
  int64_t B, S, V, H;
  mo_dtype dtype;
} nll_case;

static void check_nll(nll_case c, double scale) {
  int64_t rows = c.B * c.S, n = c.B * (c.S - 1);
  twin_weight lm_head = twin_matrix(c.dtype, c.V, c.H, 1);
  twin x = twin_random(rows * c.H, scale);
  int32_t *ids = host_memory(rows, sizeof *ids);
  float *got = host_memory(n + 1, sizeof *got), *want = host_memory(n + 1, sizeof *want);
  float *got_top = host_memory(n + 1, sizeof *got_top), *want_top = host_memory(n + 1, sizeof *want_top);
  for (int64_t i = 0; i < rows; i++) ids[i] = (int32_t)(random_below(8) ? random_below(c.V) : c.V - 1 - i % 2 % c.V);
  ok(op->nll(be, &lm_head.here, x.here, ids, c.B, c.S, got, got_top));
  ok(cpu_op->nll(cpu, &lm_head.cpu, x.cpu, ids, c.B, c.S, want, want_top));
  hash(got, (size_t)n * sizeof *got);
  hash(got_top, (size_t)n * sizeof *got_top);
  /* In bf16 runs the target's logit may round to its other neighbour: a step of the largest logits, for few rows. */
  double step = bf16 ? 0x1p-7 * scale * sqrt((double)c.H) * 2 : 0;
  int64_t far = 0;
  for (int64_t i = 0; i < n; i++) {
    double error = fabs((double)got[i] - (double)want[i]), near = 1e-4 * fabs((double)want[i]) + 1e-5;
    if (!(error <= near + step))
      fail_msg("nll %lld is %.9g, on the cpu %.9g", (long long)i, (double)got[i], (double)want[i]);
    far += error > near;
    double top_error = fabs((double)got_top[i] - (double)want_top[i]);
    if (!(top_error <= (double)want_top[i] * expm1(2e-4 + 2 * step)))
      fail_msg("largest probability %lld is %.9g, on the cpu %.9g", (long long)i, (double)got_top[i],
               (double)want_top[i]);
  }
  assert_true(far <= 2 + n / 50);
}

static void losses(void **state) {
  (void)state;
  check_nll((nll_case){2, 9, 301, 8, MO_BF16}, 1);
  check_nll((nll_case){3, 17, 9001, 24, MO_BF16}, 1); /* more than one tile of the vocabulary */
  check_nll((nll_case){1, 2100, 53, 16, MO_F32}, 1);  /* more rows than one product */
  check_nll((nll_case){1, 40, 1500, 97, MO_F16}, 0.5);
  check_nll((nll_case){2, 33, 8192, 64, MO_BF16}, 2);
  check_nll((nll_case){1, 2, 8193, 5, MO_F32}, 1);
  check_nll((nll_case){5, 1, 20, 8, MO_BF16}, 1);
  check_nll((nll_case){1, 3, 1, 8, MO_BF16}, 1);
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      PAIR_VARIANTS(sites_of_each_shape),
      PAIR_VARIANTS(sites_of_special_values),
      PAIR_VARIANTS(sites_full_of_outliers),
      PAIR_VARIANTS(losses),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
