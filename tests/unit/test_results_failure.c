/* A disk that fills up, stood in for by a limit on file sizes: a clear error, no hang, no file, and a clean end of the
 * program with files that HDF5 could not close. ranks: 3 */
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

#include "test_results_fixture.h"

#define PATH "full.h5"

static fixture shared;

static void limit_file_size(rlim_t bytes) {
  struct rlimit limit;
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
  limit.rlim_cur = bytes;
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* `status` is the failure of rank `failed`, which the others learn; `text` is in its error line. */
static void assert_failed(mo_status status, int failed, const char *text) {
  limit_file_size(RLIM_INFINITY);
  assert_int_equal(status, rank() == failed ? MO_FAILED : MO_PEER_FAILED);
  if (rank() == failed)
    assert_error(text);
  else
    assert_string_equal(mo_error_message(), "");
}

static void assert_nothing_left(void) {
  wait_for_all();
  assert_false(exists(PATH));
  assert_false(exists(PATH ".partial"));
  wait_for_all();
}

static void no_room_to_begin_with(void **state) {
  (void)state;
  const rlim_t limits[] = {0, 100, 4096, 6000};
  for (int i = 0; i < 4; i++) {
    mo_results *results;
    limit_file_size(limits[i]);
    mo_status status = mo_results_create(&results, PATH, comm, together, &shared.header, &shared.tokens, NULL, 0);
    assert_null(results);
    assert_failed(status, 0, "(" PATH ".partial");
    assert_nothing_left();
  }
}

static void no_room_for_activations(void **state) {
  (void)state;
  const int64_t layers[] = {0, 1, 2, 3, 4};
  mo_results *results;
  fixture large = shared;
  large.header.hidden_size = 100000;
  limit_file_size(1 << 20);
  mo_status status = mo_results_create(&results, PATH, comm, together, &large.header, &large.tokens, layers, 5);
  assert_failed(status, 0, "(" PATH ".partial");
  assert_nothing_left();
}

static void no_room_for_tables(void **state) {
  (void)state;
  for (rlim_t limit = 8192; limit <= 32768; limit += 8192) {
    mo_results *results = create(&shared, PATH);
    limit_file_size(limit);
    mo_status status = write_all(results, &shared);
    assert_failed(status, 0, "(" PATH ".partial");
    mo_results_discard(results);
    assert_nothing_left();
  }
}

/* The last rank alone cannot write, in the middle of the independent writes. */
static void one_rank_cannot_write(void **state) {
  (void)state;
  int last = mo_comm_size(comm) - 1;
  mo_results *results = create(&shared, PATH);
  if (rank() == last) limit_file_size(4096);
  mo_status status = write_all(results, &shared);
  assert_failed(status, last, "(" PATH ".partial; HDF5: ");
  mo_results_discard(results);
  assert_nothing_left();
}

static void activations_cannot_be_written(void **state) {
  (void)state;
  const int64_t layers[] = {2};
  static float values[N * S * H];
  mo_results *results;
  if (together == MO_TOGETHER_OFF && mo_comm_size(comm) > 1) return; /* nothing is written before the tables */
  assert_ok(mo_results_create(&results, PATH, comm, together, &shared.header, &shared.tokens, layers, 1));
  if (shared.owner[2] == rank()) {
    limit_file_size(100);
    assert_int_equal(mo_results_write_activations(results, 2, MO_SITE_LN_MLP, 0, N, values), MO_FAILED);
    limit_file_size(RLIM_INFINITY);
    assert_error("cannot write /activations/002/ln_mlp (" PATH ".partial; HDF5: ");
  }
  wait_for_all();
  mo_results_discard(results);
  assert_nothing_left();
}

static mo_status give_nothing(void *context, mo_results *results) {
  (void)context;
  (void)results;
  return rank() == mo_comm_size(comm) - 1 ? MO_FAIL(MO_FAILED, "none here (test): none") : MO_OK;
}

/* The last rank's turn fails when the others have had theirs. */
static void activations_are_not_there(void **state) {
  (void)state;
  const int64_t layers[] = {2};
  mo_results *results;
  if (together != MO_TOGETHER_OFF || mo_comm_size(comm) == 1) return;
  assert_ok(mo_results_create(&results, PATH, comm, together, &shared.header, &shared.tokens, layers, 1));
  mo_results_set_activations(results, give_nothing, NULL);
  assert_failed(write_all(results, &shared), mo_comm_size(comm) - 1, "none here");
  mo_results_discard(results);
  assert_nothing_left();
}

static void no_room_to_finish(void **state) {
  (void)state;
  mo_results *results = create(&shared, PATH);
  assert_ok(write_all(results, &shared));
  wait_for_all();
  limit_file_size(8192);
  mo_status status = mo_results_finish(results);
  assert_failed(status, 0, "(" PATH ".partial; HDF5: File too large)");
  assert_nothing_left();
}

static void a_folder_that_vanishes(void **state) {
  (void)state;
  mo_results *results;
  mo_status status =
      mo_results_create(&results, "no_such_folder/" PATH, comm, together, &shared.header, &shared.tokens, NULL, 0);
  assert_failed(status, 0, "(no_such_folder/" PATH ".partial; HDF5: No such file or directory)");
}

static void missing_expert_counts_are_an_error(void **state) {
  (void)state;
  fixture f = shared;
  f.analysis.expert_tokens = NULL;
  mo_results *results = create(&f, PATH);
  assert_failed(write_all(results, &f), 0, "no expert counts");
  mo_results_discard(results);
  assert_nothing_left();
}

static void a_later_run_succeeds(void **state) {
  (void)state;
  write_file(&shared, PATH);
  assert_true(has(PATH, "features"));
  wait_for_all();
  if (is_root()) assert_int_equal(unlink(PATH), 0);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(no_room_to_begin_with),
      cmocka_unit_test(no_room_for_activations),
      cmocka_unit_test(no_room_for_tables),
      cmocka_unit_test(one_rank_cannot_write),
      cmocka_unit_test(activations_cannot_be_written),
      cmocka_unit_test(activations_are_not_there),
      cmocka_unit_test(no_room_to_finish),
      cmocka_unit_test(a_folder_that_vanishes),
      cmocka_unit_test(missing_expert_counts_are_an_error),
      cmocka_unit_test(a_later_run_succeeds),
  };
  signal(SIGXFSZ, SIG_IGN);
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) return 1;
  fixture_new(&shared);
  int failed = 0;
  for (together = MO_TOGETHER_AUTO; together <= MO_TOGETHER_OFF; together++)
    failed += cmocka_run_group_tests(tests, NULL, NULL);
  fixture_free(&shared);
  mo_comm_close(comm);
  return failed;
}
