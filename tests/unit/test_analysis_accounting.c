/* Lost, repeated and contradictory input is an error. ranks: 3 (each rank plays the same part) */
#include "test_analysis_reference.h"

static mo_comm *comm;

static int clear_error(void **state) {
  (void)state;
  mo_error_clear();
  return 0;
}

static void assert_error(mo_status status, mo_status expected, const char *text) {
  assert_int_equal(status, expected);
  if (!strstr(mo_error_message(), text)) fail_msg("message is: %s", mo_error_message());
  mo_error_clear();
}

static dense small(void) {
  dense d = dense_new(2, 5, 7, 3);
  fill_random(&d, 11);
  return d;
}

static mo_status add(mo_accumulator *accumulator, const dense *d, int64_t layer, mo_site site, int64_t first,
                     int64_t B) {
  reduced r = reduce_batch(d, 0, first < 0 || first + B > d->N ? 0 : first, B);
  mo_status status = mo_accumulator_add(accumulator, layer, site, first, &r.s);
  reduced_free(&r);
  return status;
}

static void batch_added_twice(void **state) {
  (void)state;
  dense d = small();
  mo_accumulator *accumulator;
  assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
  assert_int_equal(add(accumulator, &d, 1, MO_SITE_LN_MLP, 0, 2), MO_OK);
  assert_int_equal(add(accumulator, &d, 1, MO_SITE_LN_ATTN, 0, 2), MO_OK);
  assert_error(add(accumulator, &d, 1, MO_SITE_LN_MLP, 1, 2), MO_FAILED,
               "sequence 1 was added twice (layer 1 ln_mlp): ");
  mo_accumulator_free(accumulator);
  free(d.x);
}

static void places_out_of_range(void **state) {
  (void)state;
  dense d = small();
  mo_accumulator *accumulator;
  const mo_site_row *rows;
  int64_t n_rows;
  assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
  assert_error(add(accumulator, &d, 2, MO_SITE_LN_ATTN, 0, 1), MO_FAILED, "layer 2 is not in 0..1");
  assert_error(add(accumulator, &d, -1, MO_SITE_LN_ATTN, 0, 1), MO_FAILED, "layer -1 is not in 0..1");
  assert_error(add(accumulator, &d, 0, MO_SITE_LN_ATTN, 4, 2), MO_FAILED,
               "2 sequences from 4 are not in 0..4 (ln_attn)");
  assert_error(add(accumulator, &d, 0, MO_SITE_LN_MLP, -1, 2), MO_FAILED,
               "2 sequences from -1 are not in 0..4 (ln_mlp)");
  assert_error(add(accumulator, &d, 0, MO_SITE_LN_MLP, 0, 0), MO_FAILED, "0 sequences from 0");
  assert_error(mo_accumulator_check_layer(accumulator, 2), MO_FAILED, "layer 2 is not in 0..1");
  assert_error(mo_accumulator_site_rows(accumulator, 5, MO_SITE_LN_ATTN, &rows, &n_rows), MO_FAILED,
               "layer 5 is not in 0..1");
  mo_accumulator_free(accumulator);
  free(d.x);
}

/* Statistics spoilt by `spoil` are refused with `text`. */
static void refuse(void (*spoil)(mo_site_statistics *), const char *text) {
  dense d = dense_new(1, 1, 2, 3);
  for (int i = 0; i < 2 * 2 * 3; i++) d.x[i] = 7;
  mo_accumulator *accumulator;
  assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
  reduced r = reduce_batch(&d, 0, 0, 1);
  spoil(&r.s);
  assert_error(mo_accumulator_add(accumulator, 0, MO_SITE_LN_ATTN, 0, &r.s), MO_FAILED, text);
  reduced_free(&r);
  mo_accumulator_free(accumulator);
  free(d.x);
}

static void lose_outlier(mo_site_statistics *s) { s->n_outliers--; }
static void count_too_many(mo_site_statistics *s) { s->count[1] = 3; }
static void count_below_zero(mo_site_statistics *s) { s->count[2] = -1; }
static void more_positive(mo_site_statistics *s) { s->positive[0] = 3; }
static void outside_feature(mo_site_statistics *s) { s->outliers[4].feature = 3; }
static void negative_feature(mo_site_statistics *s) { s->outliers[4].feature = -1; }
static void nan_outlier(mo_site_statistics *s) { s->outliers[5].value = NAN; }

static void contradictory_statistics(void **state) {
  (void)state;
  refuse(lose_outlier, "5 outlier values listed, 6 counted (layer 0 ln_attn): ");
  refuse(count_too_many, "3 outlier values, 2 positive, at 2 positions (sequence 0, feature 1): ");
  refuse(count_below_zero, "-1 outlier values");
  refuse(more_positive, "2 outlier values, 3 positive");
  refuse(outside_feature, "outlier 4 of 6 has feature 3");
  refuse(negative_feature, "outlier 4 of 6 has feature -1");
  refuse(nan_outlier, "outlier 5 of 6 has feature 2, value nan");
}

static void layer_with_missing_rows(void **state) {
  (void)state;
  dense d = small();
  mo_accumulator *accumulator;
  assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
  assert_error(mo_accumulator_check_layer(accumulator, 0), MO_FAILED,
               "0 token rows seen instead of 35 (layer 0 ln_attn): ");
  add_site(accumulator, &d, 0, 5, false);
  assert_int_equal(add(accumulator, &d, 0, MO_SITE_LN_MLP, 0, 4), MO_OK);
  assert_error(mo_accumulator_check_layer(accumulator, 0), MO_FAILED,
               "28 token rows seen instead of 35 (layer 0 ln_mlp): ");
  assert_int_equal(add(accumulator, &d, 0, MO_SITE_LN_MLP, 4, 1), MO_OK);
  assert_int_equal(mo_accumulator_check_layer(accumulator, 0), MO_OK);
  mo_accumulator_free(accumulator);
  free(d.x);
}

/* All sequences were there, but the backend saw a row too many in one. */
static void layer_with_an_extra_row(void **state) {
  (void)state;
  dense d = small();
  mo_accumulator *accumulator;
  assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
  add_site(accumulator, &d, 2, 5, false);
  reduced r = reduce_batch(&d, 3, 0, 5);
  r.s.rows++;
  assert_int_equal(mo_accumulator_add(accumulator, 1, MO_SITE_LN_MLP, 0, &r.s), MO_OK);
  reduced_free(&r);
  assert_error(mo_accumulator_check_layer(accumulator, 1), MO_FAILED,
               "36 token rows seen instead of 35 (layer 1 ln_mlp)");
  mo_accumulator_free(accumulator);
  free(d.x);
}

/* Reduce fails with `text` on every rank, and leaves nothing. */
static void reduce_fails(mo_accumulator *accumulator, const char *text) {
  mo_analysis analysis;
  assert_error(mo_analysis_reduce(&analysis, accumulator, comm), MO_FAILED, text);
  assert_null(analysis.features);
  assert_null(analysis.nll);
  mo_accumulator_free(accumulator);
}

static void site_of_no_rank(void **state) {
  (void)state;
  dense d = small();
  mo_accumulator *accumulator;
  assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
  for (int64_t place = 0; place < 3 && mo_comm_rank(comm) == 0; place++) add_site(accumulator, &d, place, 5, false);
  if (mo_comm_rank(comm) == 0) assert_int_equal(add(accumulator, &d, 1, MO_SITE_LN_MLP, 0, 3), MO_OK);
  reduce_fails(accumulator, "sequence 3 was seen 0 times (layer 1 ln_mlp): ");
  free(d.x);
}

static void rows_lost_by_reduction(void **state) {
  (void)state;
  dense d = small();
  mo_accumulator *accumulator;
  assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
  for (int64_t place = 0; place < 4 && mo_comm_rank(comm) == 0; place++) {
    reduced r = reduce_batch(&d, place, 0, 5);
    r.s.rows -= place == 3;
    assert_int_equal(mo_accumulator_add(accumulator, place / 2, (mo_site)(place % 2), 0, &r.s), MO_OK);
    reduced_free(&r);
  }
  reduce_fails(accumulator, "34 token rows seen instead of 35 (layer 1 ln_mlp)");
  free(d.x);
}

static void layer_of_two_ranks(void **state) {
  (void)state;
  if (mo_comm_size(comm) == 1) return; /* one rank finds the repeat itself: batch_added_twice */
  dense d = small();
  mo_accumulator *accumulator;
  assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
  for (int64_t place = 0; place < 4 && mo_comm_rank(comm) < 2; place++) add_site(accumulator, &d, place, 5, false);
  reduce_fails(accumulator, "sequence 0 was seen 2 times (layer 0 ln_attn): ");
  free(d.x);
}

static void positions_contradict_counts(void **state) {
  (void)state;
  for (int kind = 0; kind < 3; kind++) {
    dense d = dense_new(1, 1, 3, 2);
    for (int s = 0; s < 2; s++) *at(&d, 0, 0, s, 0) = *at(&d, 1, 0, s, 0) = 9; /* 4 values, 2 positions */
    mo_accumulator *accumulator;
    assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
    for (int64_t place = 0; place < 2 && mo_comm_rank(comm) == 0; place++) add_site(accumulator, &d, place, 1, false);
    const uint64_t words[3][2] = {{1, 0}, {3, 1}, {9, 0}}; /* too few, of a feature without values, beyond S */
    const char *texts[3] = {"1 positions hit by 4 outlier values at 2 sites (sequence 0, feature 0)",
                            "1 positions hit by 0 outlier values at 0 sites (sequence 0, feature 1)",
                            "2 positions hit by 4 outlier values at 2 sites (sequence 0, feature 0)"};
    mo_accumulator_add_positions(accumulator, 0, 1, words[kind]);
    if (mo_comm_rank(comm) == 0) {
      reduce_fails(accumulator, texts[kind]);
    } else { /* only rank 0 makes tables */
      mo_analysis analysis;
      assert_int_equal(mo_analysis_reduce(&analysis, accumulator, comm), MO_OK);
      mo_analysis_free(&analysis);
      mo_accumulator_free(accumulator);
    }
    free(d.x);
  }
}

static void losses_of_some_sequences(void **state) {
  (void)state;
  dense d = small();
  const float nll[5 * 6] = {0};
  mo_accumulator *accumulator = accumulate(&d, comm, 5, false);
  if (mo_comm_rank(comm) == 0) mo_accumulator_add_nll(accumulator, 0, 4, nll);
  reduce_fails(accumulator, "next-token losses of sequence 4 were seen 0 times (nll): ");
  accumulator = accumulate(&d, comm, 5, false);
  if (mo_comm_rank(comm) == 0) {
    mo_accumulator_add_nll(accumulator, 0, 5, nll);
    mo_accumulator_add_nll(accumulator, 2, 1, nll);
  }
  reduce_fails(accumulator, "next-token losses of sequence 2 were seen 2 times (nll): ");
  free(d.x);
}

static void losses_and_routing_out_of_range(void **state) {
  (void)state;
  dense d = small();
  const float nll[5 * 6] = {0};
  mo_accumulator *accumulator = accumulate(&d, comm, 5, false);
  mo_accumulator_add_nll(accumulator, 3, 3, nll);
  reduce_fails(accumulator, "3 sequences from 3 are not in 0..4 (nll): ");
  d.shape.n_experts = 2;
  const int64_t counts[2] = {1, 2};
  accumulator = accumulate(&d, comm, 5, false);
  mo_accumulator_add_routing(accumulator, 2, counts);
  reduce_fails(accumulator, "layer 2 is not in 0..1");
  free(d.x);
}

static void shapes_out_of_range(void **state) {
  (void)state;
  const mo_criteria criteria = {6.0, 0.25, 0.06, 1.0};
  const mo_analysis_shape shapes[] = {{0, 1, 1, 1, 0, criteria, {0, 0}, false, false},
                                      {1, 0, 1, 1, 0, criteria, {0, 0}, false, false},
                                      {1, 1, 0, 1, 0, criteria, {0, 0}, false, false},
                                      {1, 1, 1, -1, 0, criteria, {0, 0}, false, false},
                                      {1, 1, 1, 1, -1, criteria, {0, 0}, false, false},
                                      {INT64_MAX, 1, 1, 1, 0, criteria, {0, 0}, false, false},
                                      {1, INT32_MAX, INT32_MAX, INT32_MAX, 0, criteria, {0, 0}, false, false}};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    mo_accumulator *accumulator;
    assert_error(mo_accumulator_new(&accumulator, &shapes[i]), MO_INVALID, "is out of range (analysis)");
    assert_null(accumulator);
  }
}

static void free_of_nothing(void **state) {
  (void)state;
  mo_analysis analysis = {0};
  mo_accumulator_free(NULL);
  mo_analysis_free(NULL);
  mo_analysis_free(&analysis);
  mo_analysis_free(&analysis);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(batch_added_twice, clear_error),
      cmocka_unit_test_setup(places_out_of_range, clear_error),
      cmocka_unit_test_setup(contradictory_statistics, clear_error),
      cmocka_unit_test_setup(layer_with_missing_rows, clear_error),
      cmocka_unit_test_setup(layer_with_an_extra_row, clear_error),
      cmocka_unit_test_setup(site_of_no_rank, clear_error),
      cmocka_unit_test_setup(rows_lost_by_reduction, clear_error),
      cmocka_unit_test_setup(layer_of_two_ranks, clear_error),
      cmocka_unit_test_setup(positions_contradict_counts, clear_error),
      cmocka_unit_test_setup(losses_of_some_sequences, clear_error),
      cmocka_unit_test_setup(losses_and_routing_out_of_range, clear_error),
      cmocka_unit_test_setup(shapes_out_of_range, clear_error),
      cmocka_unit_test_setup(free_of_nothing, clear_error),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  mo_comm_close(comm);
  return failed;
}
