/* Where the largest values are, against a search through all values. ranks: 3 (layers are dealt to them) */
#include "test_analysis_reference.h"

static mo_comm *comm;

static bool is_root(void) { return mo_comm_rank(comm) == 0; }

/* The value of sequence n at a site that counts; false if it is no outlier value. */
static bool best_of(const dense *d, int64_t place, int64_t n, int64_t h, mo_top_value *best) {
  int64_t s = top_position(d, place, n, h);
  best->sequence = (int32_t)n;
  best->position = (int32_t)s;
  best->value = *at(d, place, n, s, h);
  return is_outlier(d, best->value);
}

/* Does sequence a come before b at this site. */
static bool comes_before(const mo_top_value *a, const mo_top_value *b) {
  float x = fabsf(a->value), y = fabsf(b->value);
  return x != y ? x > y : a->sequence < b->sequence;
}

/* Rows of one feature at one site from *row on; advances it. */
static void check_site(const dense *d, int64_t place, int32_t h, const mo_top_value **row) {
  mo_top_value of[64];
  int32_t n = 0;
  for (int64_t sequence = 0; sequence < d->N; sequence++) n += best_of(d, place, sequence, h, &of[n]);
  for (int32_t rank = 0; rank < n && rank < MO_TOP_VALUES; rank++, ++*row) {
    const mo_top_value *expected = NULL;
    for (int32_t i = 0; i < n; i++) {
      int32_t before = 0;
      for (int32_t k = 0; k < n; k++) before += comes_before(&of[k], &of[i]);
      if (before == rank) expected = &of[i];
    }
    assert_int_equal((*row)->feature, h);
    assert_int_equal((*row)->layer, place / 2);
    assert_int_equal((*row)->site, place % 2);
    assert_int_equal((*row)->rank, rank);
    assert_int_equal((*row)->sequence, expected->sequence);
    assert_int_equal((*row)->position, expected->position);
    assert_int_equal((*row)->token, 1000 * expected->sequence + expected->position);
    assert_same((*row)->value, expected->value);
  }
}

static const mo_feature *row_of(const mo_analysis *analysis, int64_t h) {
  for (int64_t i = 0; i < analysis->n_features; i++)
    if (analysis->features[i].feature == h) return &analysis->features[i];
  return NULL;
}

static double first_share(const dense *d, int64_t h) {
  int64_t first = 0, all = 0;
  for (int64_t place = 0; place < 2 * d->L; place++)
    for (int64_t n = 0; n < d->N; n++)
      for (int64_t s = 0; s < d->S; s++) {
        bool hit = is_outlier(d, *at(d, place, n, s, h));
        all += hit;
        first += hit && s == 0;
      }
  return (double)first / (double)all;
}

static void check(dense *d, int64_t B, bool some) {
  mo_analysis analysis = analyse(d, comm, B, false);
  int32_t *ids = calloc((size_t)(d->N * d->S), sizeof *ids);
  assert_non_null(ids);
  for (int64_t i = 0; i < d->N * d->S; i++) ids[i] = (int32_t)(1000 * (i / d->S) + i % d->S);
  for (int64_t i = 0; i < analysis.n_top_values; i++) assert_int_equal(analysis.top_values[i].token, -1);
  mo_analysis_name_tokens(&analysis, ids, d->S);
  const mo_top_value *row = analysis.top_values;
  for (int32_t h = 0; h < d->H && is_root(); h++) {
    const mo_feature *feature = row_of(&analysis, h);
    if (feature) assert_same(feature->first_token_share, first_share(d, h));
    if (!feature || feature->classification == MO_NONE) continue;
    for (int64_t place = 0; place < 2 * d->L; place++) check_site(d, place, h, &row);
  }
  assert_int_equal(row - analysis.top_values, analysis.n_top_values);
  if (is_root()) assert_int_equal(analysis.n_top_values > 0, some);
  mo_analysis_free(&analysis);
  free(ids);
  free(d->x);
}

static void random_values(void **state) {
  (void)state;
  const int64_t sizes[][4] = {{3, 9, 7, 11}, {4, 3, 17, 67}, {7, 12, 65, 5}, {2, 1, 130, 9}, {1, 5, 1, 3}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (int64_t B = 1; B <= 3; B++) {
      dense d = dense_new(sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3]);
      fill_random(&d, 300 + i);
      check(&d, B < d.N ? B : d.N, true);
    }
}

/* All magnitudes are equal: the sign, the position and the sequence decide. */
static void ties(void **state) {
  (void)state;
  dense d = dense_new(2, 7, 6, 3);
  for (int64_t i = 0; i < 4 * 7 * 6 * 3; i++) d.x[i] = i * 7 % 5 < 3 ? -8.0f : i * 11 % 3 ? 8.0f : 1.0f;
  check(&d, 2, true);
}

static void nothing_qualifies(void **state) {
  (void)state;
  dense d = dense_new(8, 2, 100, 3);
  *at(&d, 5, 1, 0, 2) = -9.0f;
  check(&d, 1, false);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(random_values),
      cmocka_unit_test(ties),
      cmocka_unit_test(nothing_qualifies),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  mo_comm_close(comm);
  return failed;
}
