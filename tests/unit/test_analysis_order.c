/* Quartiles of a feature's outlier values. ranks: 3 (layers dealt round robin, rank 0 compares) */
#include "test_analysis_reference.h"

static mo_comm *comm;

enum { L = 3, LIMIT = 32768 };

/* Quartiles of the n values, dealt to the 2L sites in turn as feature 1 of 3, in sequences of at most 512 positions;
 * feature 2 has the same values with the other sign. On rank 0; NaN elsewhere. */
static mo_feature row_of(const float *values, int64_t n, int64_t B) {
  int64_t columns = (n + 2 * L - 1) / (2 * L), S = columns < 512 ? columns : 512, N = (columns + S - 1) / S;
  dense d = dense_new(L, N, S, 3);
  for (int64_t i = 0; i < n; i++) {
    int64_t place = i % (2 * L), column = i / (2 * L);
    *at(&d, place, column / S, column % S, 1) = values[i];
    *at(&d, place, column / S, column % S, 2) = -values[i];
  }
  mo_analysis analysis = analyse(&d, comm, B, B % 2 == 0);
  mo_feature row = {.q1 = NAN, .median = NAN, .q3 = NAN};
  if (mo_comm_rank(comm) == 0) {
    assert_int_equal(analysis.n_features, 2);
    row = analysis.features[0];
    assert_int_equal(row.feature, 1);
    assert_int_equal(row.total_occurrences, n);
    assert_same(analysis.features[1].median, -row.median);
  }
  mo_analysis_free(&analysis);
  free(d.x);
  return row;
}

static void check_quartiles(const float *values, int64_t n, double q1, double median, double q3) {
  for (int64_t B = 1; B <= 2; B++) {
    mo_feature row = row_of(values, n, B);
    if (mo_comm_rank(comm) != 0) continue;
    assert_same(row.q1, (float)q1);
    assert_same(row.median, (float)median);
    assert_same(row.q3, (float)q3);
  }
}

/* As sorted and interpolated by the reference, after rounding to bf16 if asked for. */
static void check_sorted(const float *values, int64_t n, bool rounded) {
  float *sorted = malloc((size_t)n * sizeof *sorted);
  assert_non_null(sorted);
  for (int64_t i = 0; i < n; i++) {
    /* ldexp/rint form of bf16 rounding: 8 significant bits, ties to even */
    int exponent;
    double fraction = frexp((double)values[i], &exponent);
    sorted[i] = rounded ? (float)ldexp(rint(ldexp(fraction, 8)), exponent - 8) : values[i];
  }
  qsort(sorted, (size_t)n, sizeof *sorted, float_compare);
  check_quartiles(values, n, (double)quantile_of(sorted, n, 0.25), (double)quantile_of(sorted, n, 0.5),
                  (double)quantile_of(sorted, n, 0.75));
  free(sorted);
}

static void closed_forms(void **state) {
  (void)state;
  const float values[] = {10, 6, 9, 8, 7};
  check_quartiles(values, 5, 7, 8, 9);
  check_quartiles(values, 1, 10, 10, 10);
  check_quartiles(values, 2, 7, 8, 9);        /* 6, 10 */
  check_quartiles(values, 4, 7.5, 8.5, 9.25); /* 6, 8, 9, 10 */
}

/* numpy.quantile(values[:n].astype(float64), [.25, .5, .75]).astype(float32), NumPy 2.4 */
static void numpy_values(void **state) {
  (void)state;
  const float values[] = {0x1.468c0cp+6f,  -0x1.98e80ap+6f, 0x1.0b9550p+4f,  -0x1.6b5f60p+4f,
                          -0x1.21b210p+4f, -0x1.13f6e0p+3f, -0x1.4332a2p+6f, -0x1.28df9ap+3f,
                          -0x1.14de42p+5f, 0x1.09d708p+7f,  0x1.2101c2p+3f};
  check_quartiles(values, 6, -0x1.58f40cp+4, -0x1.abad80p+3, 0x1.4c6240p+3);
  check_quartiles(values, 7, -0x1.9e0a7ap+5, -0x1.21b210p+4, 0x1.0333c0p+2);
  check_quartiles(values, 10, -0x1.fa253cp+4, -0x1.b621dcp+3, 0x1.4c6240p+3);
  check_quartiles(values, 11, -0x1.ca8df2p+4, -0x1.28df9ap+3, 0x1.9c1630p+3);
}

static void infinities(void **state) {
  (void)state;
  const float values[] = {7, INFINITY, 6, INFINITY, 8, -INFINITY}; /* sorted: -inf 6 7 8 inf inf */
  check_quartiles(values, 2, INFINITY, INFINITY, INFINITY);        /* 7, inf: between them all is inf */
  check_quartiles(values, 3, 6.5, 7, INFINITY);
  check_quartiles(values, 4, 6.75, INFINITY, INFINITY);
  check_quartiles(values, 6, 6.25, 7.5, INFINITY);
  check_quartiles(values + 4, 2, -INFINITY, -INFINITY, -INFINITY);
  check_quartiles((const float[]){INFINITY, -INFINITY}, 2, NAN, NAN, NAN); /* no value lies between */
}

static void many_repeats(void **state) {
  (void)state;
  enum { COUNT = 50000 };
  float *values = malloc(COUNT * sizeof *values);
  assert_non_null(values);
  uint64_t seed = 5;
  for (int i = 0; i < COUNT; i++)
    values[i] = (float)(6 + random_bits(&seed) % 20) * (random_bits(&seed) % 3 ? 1.0f : -0.5f * 4);
  check_sorted(values, COUNT, false);
  free(values);
}

/* bf16 numbers of both signs over many magnitudes, after the first ones also smaller and far larger ones, and some that are no
 * bf16 numbers. */
static void numbers_of_many_magnitudes(void **state) {
  (void)state;
  enum { COUNT = 60000, ALIKE = 20000 };
  float *values = malloc(COUNT * sizeof *values);
  assert_non_null(values);
  uint64_t seed = 9;
  for (int i = 0; i < COUNT; i++) {
    uint64_t kind = i < ALIKE ? 1 : random_bits(&seed) % 50;
    float value = ldexpf(1 + (float)(random_bits(&seed) % 128) / 128, 6 + (int)(random_bits(&seed) % 5));
    if (kind == 0) value /= 8;
    if (kind == 2) value = ldexpf(value, 20);
    if (kind == 3) value += 0.001f;
    values[i] = random_bits(&seed) % 3 ? value : -value;
  }
  check_sorted(values, COUNT, false);
  free(values);
}

/* n distinct values from 6 up, shuffled; none is a bf16 value. */
static float *distinct_values(int64_t n, uint64_t seed) {
  float *values = malloc((size_t)n * sizeof *values);
  assert_non_null(values);
  for (int64_t i = 0; i < n; i++) values[i] = 6.0f + ((float)i + 0.25f) / 4096.0f;
  for (int64_t i = n - 1; i > 0; i--) {
    int64_t j = (int64_t)(random_bits(&seed) % (uint64_t)(i + 1));
    float swap = values[i];
    values[i] = values[j];
    values[j] = swap;
  }
  return values;
}

static void exact_up_to_the_limit(void **state) {
  (void)state;
  float *values = distinct_values(LIMIT, 1);
  check_sorted(values, LIMIT, false);
  free(values);
}

/* On three ranks no rank is beyond the limit alone. */
static void rounded_beyond_the_limit(void **state) {
  (void)state;
  float *values = distinct_values(LIMIT + 1, 2);
  check_sorted(values, LIMIT + 1, true);
  free(values);
}

/* On three ranks each rank is beyond the limit alone. */
static void rounded_far_beyond_the_limit(void **state) {
  (void)state;
  float *values = distinct_values(4 * LIMIT, 3);
  check_sorted(values, 4 * LIMIT, true);
  free(values);
}

/* Two values of three, among them the first quartile and the median, lie half way between bf16 values. */
static void ties_round_to_even(void **state) {
  (void)state;
  float *values = distinct_values(3 * (LIMIT + 1), 6);
  for (int64_t i = 0; i < 3 * (LIMIT + 1); i++)
    if (i % 3 > 0) values[i] = i % 2 ? 6.015625f : 6.046875f; /* 6 + 1/64 becomes 6, 6 + 3/64 becomes 6 + 2/32 */
  check_sorted(values, 3 * (LIMIT + 1), true);
  free(values);
}

/* Beyond the limit on the ranks of layers 0 and 1 only, by a margin; the last layer has one value, repeated. */
static void rounded_by_some_ranks_only(void **state) {
  (void)state;
  enum { COUNT = 3 * LIMIT + 3 };
  float *values = distinct_values(COUNT, 4);
  for (int64_t i = 0; i < COUNT; i++)
    if (i % (2 * L) >= 2 * L - 2) values[i] = 6.0001f;
  check_sorted(values, COUNT, true);
  free(values);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(closed_forms),
      cmocka_unit_test(numpy_values),
      cmocka_unit_test(infinities),
      cmocka_unit_test(many_repeats),
      cmocka_unit_test(numbers_of_many_magnitudes),
      cmocka_unit_test(exact_up_to_the_limit),
      cmocka_unit_test(rounded_beyond_the_limit),
      cmocka_unit_test(rounded_far_beyond_the_limit),
      cmocka_unit_test(ties_round_to_even),
      cmocka_unit_test(rounded_by_some_ranks_only),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  mo_comm_close(comm);
  return failed;
}
