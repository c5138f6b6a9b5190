/* Site statistics and next-token losses of a backend against naive double loops.
 * backends: cpu check cuda */
#include "test_backend_fixture.h"

enum { B = 3, S = 70, H = 67, N = 5, FIRST = 1, WORDS = 2 };
static const float threshold = 6.0f;

/* Values around the threshold, just below it, exactly at it, and others. */
static double *site_values(void) {
  double *x = doubles(B * S * H), below = bf16 ? 5.96875 : (double)nextafterf(6.0f, 0.0f);
  double special[] = {6, -6, below, -below, 0, -0.0, 100, -100};
  for (int i = 0; i < B * S * H; i++) x[i] = random_below(20) ? uniform(-6.5, 6.5) : special[random_below(8)];
  return x;
}

static bool is_outlier(double x) { return fabs(x) >= (double)threshold; }

static int compare_outliers(const void *a, const void *b) {
  const mo_outlier *x = a, *y = b;
  if (x->feature != y->feature) return x->feature < y->feature ? -1 : 1;
  return (x->value > y->value) - (x->value < y->value);
}

static void expect_cells(const mo_site_statistics *s, const double *x) {
  for (int cell = 0; cell < B * H; cell++) {
    int count = 0, positive = 0, position = -1;
    double low = INFINITY, high = -INFINITY, sum = 0, top = 0;
    for (int t = 0; t < S; t++) {
      double value = x[(cell / H * S + t) * H + cell % H];
      if (!is_outlier(value)) continue;
      count++;
      positive += value > 0;
      low = fmin(low, value);
      high = fmax(high, value);
      sum += fabs(value);
      if (position >= 0 && (fabs(value) < fabs(top) || (fabs(value) == fabs(top) && value <= top))) continue;
      position = t;
      top = value;
    }
    assert_int_equal(s->count[cell], count);
    assert_int_equal(s->positive[cell], positive);
    assert_int_equal(s->first[cell], is_outlier(x[cell / H * S * H + cell % H]));
    if (!count) continue;
    assert_int_equal(s->position[cell], position);
    assert_true(s->min[cell] == low && s->max[cell] == high);
    assert_true(s->sum_abs[cell] == sum || fabs(s->sum_abs[cell] - sum) <= 1e-12 * sum);
  }
}

static void expect_sequences(const mo_site_statistics *s, const double *x) {
  for (int b = 0; b < B; b++) {
    double sum = 0, squares = 0, largest = 0, magnitude = 0;
    for (int t = 0; t < S; t++) {
      double row = 0, row_squares = 0;
      for (int h = 0; h < H; h++) {
        double value = x[(b * S + t) * H + h];
        row += value;
        row_squares += value * value;
        largest = fmax(largest, fabs(value));
        magnitude += fabs(value);
      }
      sum += row;
      squares += row_squares;
    }
    assert_true(fabs(s->sum[b] - sum) <= 1e-12 * magnitude);
    assert_true(fabs(s->sum_squares[b] - squares) <= 1e-12 * squares);
    assert_true(s->max_abs[b] == largest);
  }
}

static void expect_outliers(const mo_site_statistics *s, const double *x) {
  int n = 0;
  mo_outlier *want = host_memory(B * S * H, sizeof *want), *got = host_memory(s->n_outliers, sizeof *got);
  for (int i = 0; i < B * S * H; i++)
    if (is_outlier(x[i])) want[n++] = (mo_outlier){i % H, (float)x[i]};
  assert_int_equal(s->n_outliers, n);
  memcpy(got, s->outliers, (size_t)n * sizeof *got);
  qsort(want, (size_t)n, sizeof *want, compare_outliers);
  qsort(got, (size_t)n, sizeof *got, compare_outliers);
  assert_memory_equal(got, want, (size_t)n * sizeof *got);
}

/* Bits of earlier calls (`before`) stay, and only this batch's sequences gain any. */
static void expect_positions(const uint64_t *words, uint64_t before, const double *x) {
  for (int64_t n = 0; n < N; n++)
    for (int64_t h = 0; h < H; h++) {
      uint64_t want[WORDS] = {before, before};
      for (int64_t t = 0; t < S && n >= FIRST && n < FIRST + B; t++)
        if (is_outlier(x[((n - FIRST) * S + t) * H + h])) want[t / 64] |= (uint64_t)1 << t % 64;
      assert_memory_equal(words + (n * H + h) * WORDS, want, sizeof want);
    }
}

static void *filled_positions(uint64_t word) {
  uint64_t *words = host_memory(N * H * WORDS, sizeof *words);
  for (int i = 0; i < N * H * WORDS; i++) words[i] = word;
  return uploaded(words, N * H * WORDS * sizeof *words);
}

static void hash_statistics(const mo_site_statistics *s) {
  hash(s->count, B * H * sizeof *s->count);
  hash(s->sum_abs, B * H * sizeof *s->sum_abs);
  hash(s->first, B * H * sizeof *s->first);
  hash(s->sum, B * sizeof *s->sum);
  hash(s->sum_squares, B * sizeof *s->sum_squares);
  uint64_t sum = 0; /* the list may come in any order */
  for (int64_t i = 0; i < s->n_outliers; i++) {
    uint32_t bits;
    memcpy(&bits, &s->outliers[i].value, sizeof bits);
    sum += ((uint64_t)(uint32_t)s->outliers[i].feature << 32 | bits) * UINT64_C(0x9e3779b97f4a7c15) >> 7;
  }
  hash(&sum, sizeof sum);
}

static mo_site_statistics statistics_of(const void *x, uint64_t *positions) {
  mo_site_statistics s;
  ok(op->site_statistics(be, x, B, S, H, threshold, positions, FIRST, NULL));
  ok(op->site_results(be, &s));
  assert_int_equal(s.n_sequences, B);
  assert_int_equal(s.rows, B * S);
  hash_statistics(&s);
  return s;
}

static void statistics_by_definition(void **state) {
  (void)state;
  double *x = site_values();
  void *values = activations(x, B * S * H), *positions = filled_positions(0);
  mo_site_statistics s = statistics_of(values, positions);
  expect_cells(&s, x);
  expect_sequences(&s, x);
  expect_outliers(&s, x);
  expect_positions(downloaded(positions, N * H * WORDS * sizeof(uint64_t)), 0, x);
}

static void positions_accumulate(void **state) {
  (void)state;
  uint64_t before = 0x0100000000000010u;
  double *x = site_values();
  void *values = activations(x, B * S * H), *positions = filled_positions(before);
  statistics_of(values, positions);
  statistics_of(values, positions);
  expect_positions(downloaded(positions, N * H * WORDS * sizeof(uint64_t)), before, x);
}

static void nothing_above_the_threshold(void **state) {
  (void)state;
  double *x = doubles(B * S * H);
  for (int i = 0; i < B * S * H; i++) x[i] = uniform(-5.9, 5.9);
  void *values = activations(x, B * S * H), *positions = filled_positions(0);
  mo_site_statistics s = statistics_of(values, positions);
  assert_int_equal(s.n_outliers, 0);
  expect_cells(&s, x);
  expect_positions(downloaded(positions, N * H * WORDS * sizeof(uint64_t)), 0, x);
}

/* Twice: the second call's counts are not added to the first's. */
static void counts_of_rows(void **state) {
  (void)state;
  double *x = site_values();
  int32_t *want = host_memory(B * S, sizeof *want);
  void *values = activations(x, B * S * H), *positions = filled_positions(0), *counts; /* rounds x */
  for (int i = 0; i < B * S * H; i++) want[i / H] += is_outlier(x[i]);
  mo_site_statistics s;
  ok(op->alloc(be, B * S * sizeof(int32_t), &counts));
  for (int i = 0; i < 2; i++) {
    ok(op->site_statistics(be, values, B, S, H, threshold, positions, FIRST, counts));
    ok(op->site_results(be, &s));
    assert_memory_equal(downloaded(counts, B * S * sizeof(int32_t)), want, B * S * sizeof *want);
  }
  op->free(be, counts);
}

/* Of equal magnitudes a positive value counts, then the earlier position, also across the tiles of a GPU. */
static void positions_of_ties(void **state) {
  (void)state;
  static const struct {
    int feature, position;
    double value;
  } outliers[] = {{0, 3, 8},  {0, 9, 8},   {1, 0, -8}, {1, 69, 8}, {2, 66, -8}, {2, 68, -8}, {3, 2, -8},
                  {3, 67, 7}, {4, 10, -8}, {4, 11, 8}, {4, 12, 8}, {5, 0, 6},   {5, 64, 6},  {66, 69, -6}};
  double *x = doubles(B * S * H);
  for (size_t i = 0; i < sizeof outliers / sizeof *outliers; i++)
    x[((B - 1) * S + outliers[i].position) * H + outliers[i].feature] = outliers[i].value;
  void *values = activations(x, B * S * H), *positions = filled_positions(0);
  mo_site_statistics s = statistics_of(values, positions);
  static const int expected[][2] = {{0, 3}, {1, 69}, {2, 66}, {3, 2}, {4, 11}, {5, 0}, {66, 69}};
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
    assert_int_equal(s.position[(B - 1) * H + expected[i][0]], expected[i][1]);
  expect_cells(&s, x);
}

/* A NaN is never an outlier value; an infinity is. */
static void values_that_are_not_finite(void **state) {
  (void)state;
  double *x = doubles(B * S * H);
  x[0 * H + 3] = NAN;
  x[1 * H + 3] = INFINITY;
  x[2 * H + 5] = -INFINITY;
  x[3 * H + 5] = 7;
  void *values = activations(x, B * S * H), *positions = filled_positions(0);
  mo_site_statistics s = statistics_of(values, positions);
  assert_int_equal(s.n_outliers, 3);
  assert_int_equal(s.count[3], 1);
  assert_int_equal(s.positive[3], 1);
  assert_int_equal(s.count[5], 2);
  assert_int_equal(s.positive[5], 1);
  assert_true(s.min[5] == -INFINITY && s.max[5] == 7 && s.max[3] == INFINITY);
  assert_int_equal(s.position[3], 1);
  assert_int_equal(s.position[5], 2);
  assert_int_equal(s.first[3], 0);
  assert_true(isnan(s.sum[0]) && s.sum[1] == 0);
  expect_positions(downloaded(positions, N * H * WORDS * sizeof(uint64_t)), 0, x);
}

/* --- next-token losses --- */

typedef struct {
  int64_t batch, length, vocab, width;
} nll_case;

/* slack: float32 sums; in bf16 runs also a logit of the target on the other side of a rounding boundary. */
static void naive_nll(const nll_case *c, const double *x, const double *w, const int32_t *ids, double *nll,
                      double *slack, double *likeliest) {
  double *logits = doubles(c->vocab), *errors = doubles(c->vocab);
  for (int64_t i = 0; i < c->batch * (c->length - 1); i++) {
    int64_t row = i / (c->length - 1) * c->length + i % (c->length - 1);
    double top = -INFINITY, sum = 0, largest = 0;
    naive_linear(x + row * c->width, 1, w, c->vocab, c->width, NULL, logits, errors);
    for (int64_t v = 0; v < c->vocab; v++) {
      logits[v] = rounded(logits[v]);
      top = fmax(top, logits[v]);
      largest = fmax(largest, errors[v]);
    }
    for (int64_t v = 0; v < c->vocab; v++) sum += exp(logits[v] - top);
    likeliest[i] = 1 / sum;
    nll[i] = top + log(sum) - logits[ids[row + 1]];
    slack[i] = 2 * largest + 1e-6 * (fabs(top) + fabs(nll[i]) + 1);
  }
}

/* integers: logits are multiples of 1/4 that bf16 holds exactly. */
static void check_nll(nll_case c, double scale, bool integers) {
  int64_t rows = c.batch * c.length, n = c.batch * (c.length - 1);
  double *x = doubles(rows * c.width), *w = doubles(c.vocab * c.width), *want = doubles(n + 1), *slack = doubles(n + 1);
  int32_t *ids = host_memory(rows, sizeof *ids);
  float *nll = host_memory(n + 1, sizeof *nll), *top = host_memory(n + 1, sizeof *top);
  double *likeliest = doubles(n + 1);
  for (int64_t i = 0; i < rows * c.width; i++) x[i] = integers ? (double)random_below(5) - 2 : uniform(-scale, scale);
  for (int64_t i = 0; i < c.vocab * c.width; i++) w[i] = integers ? (double)random_below(5) / 4 - 0.5 : uniform(-1, 1);
  for (int64_t i = 0; i < rows; i++) ids[i] = (int32_t)random_below(c.vocab);
  ids[rows - 1] = (int32_t)c.vocab - 1;
  void *hidden = activations(x, rows * c.width);
  mo_weight lm_head = weight_of(MO_BF16, c.vocab, c.width, w);
  naive_nll(&c, x, w, ids, want, slack, likeliest);
  nll[n] = top[n] = 123;
  ok(op->nll(be, &lm_head, hidden, ids, c.batch, c.length, nll, top));
  hash(nll, (size_t)n * sizeof *nll);
  hash(top, (size_t)n * sizeof *top);
  assert_true(nll[n] == 123 && top[n] == 123);
  int64_t off = 0;
  for (int64_t i = 0; i < n; i++) {
    double error = fabs(nll[i] - want[i]), step = bf16 && !integers ? 0x1p-7 * (scale * (double)c.width) : 0;
    if (!(error <= slack[i] + step)) fail_msg("nll %lld is %.9g, expected %.9g", (long long)i, (double)nll[i], want[i]);
    /* A change of logits changes the probability by that factor. */
    double far = likeliest[i] * expm1(2 * (slack[i] + step));
    if (!(fabs(top[i] - likeliest[i]) <= far))
      fail_msg("largest probability %lld is %.9g, expected %.9g", (long long)i, (double)top[i], likeliest[i]);
    off += !(error <= slack[i] + (step > 0 ? 1e-4 : 0));
  }
  assert_true(off <= 1 + n / 50);
}

static void nll_of_exact_logits(void **state) {
  (void)state;
  check_nll((nll_case){2, 9, 300, 8}, 1, true);
  check_nll((nll_case){1, 2, 1, 8}, 1, true);
}

static void nll_of_many_tokens(void **state) {
  (void)state;
  check_nll((nll_case){2, 5, 2051, 12}, 1, true);
  check_nll((nll_case){1, 1030, 1027, 4}, 1, true);
  check_nll((nll_case){1, 1025, 1024, 4}, 1, true);
}

static void nll_of_random_logits(void **state) {
  (void)state;
  check_nll((nll_case){3, 21, 130, 40}, 1, false);
  check_nll((nll_case){1, 40, 1500, 24}, 3, false);
}

/* Logits of some hundred: neither infinity nor NaN. */
static void nll_of_large_logits(void **state) {
  (void)state;
  check_nll((nll_case){1, 20, 200, 16}, 60, false);
}

static void nll_of_single_tokens(void **state) {
  (void)state;
  check_nll((nll_case){4, 1, 50, 8}, 1, true);
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      VARIANTS(statistics_by_definition),    VARIANTS(positions_accumulate),       VARIANTS(counts_of_rows),
      VARIANTS(nothing_above_the_threshold), VARIANTS(values_that_are_not_finite), VARIANTS(nll_of_exact_logits),
      VARIANTS(nll_of_many_tokens),          VARIANTS(nll_of_random_logits),       VARIANTS(nll_of_large_logits),
      VARIANTS(nll_of_single_tokens),        VARIANTS(positions_of_ties),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
