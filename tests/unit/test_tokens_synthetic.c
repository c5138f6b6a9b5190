/* Random token ids: within the vocabulary, a function of seed, sequence and position alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "moe_outliers/tokens.h"

enum { VOCAB = 100 };

static mo_tokens make(uint64_t seed, int64_t skip, int64_t n, int64_t length, int64_t vocab) {
  mo_tokens tokens;
  assert_int_equal(mo_tokens_synthetic(&tokens, seed, skip, n, length, vocab), MO_OK);
  assert_int_equal(tokens.n_sequences, n);
  assert_int_equal(tokens.length, length);
  return tokens;
}

static void every_id_about_as_often(void **state) {
  (void)state;
  mo_tokens tokens = make(3, 0, 40, 500, VOCAB);
  int64_t counts[VOCAB] = {0};
  for (int i = 0; i < 40 * 500; i++) {
    assert_in_range(tokens.ids[i], 0, VOCAB - 1);
    counts[tokens.ids[i]]++;
  }
  double chi = 0;
  for (int i = 0; i < VOCAB; i++) chi += ((double)counts[i] - 200) * ((double)counts[i] - 200) / 200;
  assert_true(fabs(chi - (VOCAB - 1)) <= 5 * sqrt(2.0 * (VOCAB - 1)));
  mo_tokens_free(&tokens);
}

static void skip_and_length_cut_the_same_ids(void **state) {
  (void)state;
  mo_tokens all = make(3, 0, 9, 50, VOCAB), some = make(3, 4, 5, 20, VOCAB);
  for (int n = 0; n < 5; n++) assert_memory_equal(some.ids + n * 20, all.ids + (n + 4) * 50, 20 * sizeof *all.ids);
  mo_tokens_free(&all);
  mo_tokens_free(&some);
}

static void seeds_and_sequences_differ(void **state) {
  (void)state;
  mo_tokens a = make(0, 0, 2, 50, VOCAB), b = make(1, 0, 2, 50, VOCAB);
  assert_memory_not_equal(a.ids, b.ids, 50 * sizeof *a.ids);
  assert_memory_not_equal(a.ids, a.ids + 50, 50 * sizeof *a.ids);
  assert_memory_not_equal(a.ids + 50, b.ids, 50 * sizeof *a.ids); /* seeds are no shifts of one another */
  mo_tokens_free(&a);
  mo_tokens_free(&b);
}

static void large_and_smallest_vocabulary(void **state) {
  (void)state;
  mo_tokens one = make(5, 0, 1, 30, 1), large = make(5, 0, 1, 3000, INT32_MAX);
  for (int i = 0; i < 30; i++) assert_int_equal(one.ids[i], 0);
  for (int i = 0; i < 3000; i++) assert_true(large.ids[i] >= 0 && large.ids[i] < INT32_MAX);
  mo_tokens_free(&one);
  mo_tokens_free(&large);
}

static void senseless_sizes(void **state) {
  (void)state;
  const int64_t sizes[][3] = {{-1, 1, 1}, {0, 0, 1}, {0, 1, 0}, {0, INT64_MAX / 2, 4}};
  for (int i = 0; i < 4; i++) {
    mo_tokens tokens;
    assert_int_equal(mo_tokens_synthetic(&tokens, 0, sizes[i][0], sizes[i][1], sizes[i][2], VOCAB), MO_INVALID);
    assert_non_null(strstr(mo_error_message(), "bad size (data.skip "));
    assert_null(tokens.ids);
    mo_error_clear();
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_id_about_as_often),
      cmocka_unit_test(skip_and_length_cut_the_same_ids),
      cmocka_unit_test(seeds_and_sequences_differ),
      cmocka_unit_test(large_and_smallest_vocabulary),
      cmocka_unit_test(senseless_sizes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
