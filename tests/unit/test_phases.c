/* The account of where a run's time goes. */
#include "moe_outliers/phases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int begin(void **state) {
  (void)state;
  memset(mo_phases(), 0, MO_PHASE_COUNT * sizeof(int64_t));
  mo_phases_begin();
  return 0;
}

static void test_time_belongs_to_the_phase_that_ends(void **state) {
  (void)state;
  double start = now();
  usleep(20000);
  mo_phase_ends(MO_PHASE_MPI);
  usleep(30000);
  mo_phase_ends(MO_PHASE_PLAN);
  usleep(20000);
  mo_phase_ends(MO_PHASE_MPI);
  double passed = now() - start;
  const int64_t *account = mo_phases();
  assert_true(account[MO_PHASE_MPI] >= 40000 && account[MO_PHASE_PLAN] >= 30000);
  /* Nothing is counted twice. */
  assert_true((double)(account[MO_PHASE_MPI] + account[MO_PHASE_PLAN]) <= 1e6 * passed + 15000);
  assert_int_equal(account[MO_PHASE_RESUME], 0);
}

/* The test has run for less than a minute, and the kernel's clock has hundredths of a second. */
static void test_the_time_before_main_is_known(void **state) {
  (void)state;
  int64_t before = mo_phases()[MO_PHASE_LAUNCH];
  assert_true(before >= 0 && before < 60000000);
}

static void test_the_line(void **state) {
  char line[512];
  (void)state;
  memset(mo_phases(), 0, MO_PHASE_COUNT * sizeof(int64_t));
  mo_phase_took(MO_PHASE_MPI, 0.25);
  mo_phase_took(MO_PHASE_RESUME, 0.0004); /* too short to be named */
  mo_phase_took(MO_PHASE_RESULT, 0.0305);
  mo_phase_took(MO_PHASE_RESULT, 0.0305);
  mo_phase_took(MO_PHASE_STREAM, 1.5);
  mo_phases_describe(line, sizeof line);
  static const char expected[] =
      "outside the stream 0.31 s: MPI 0.250, result 0.061; the stream 1.50 s: rest 1.500; "
      "since the start of the process ";
  assert_memory_equal(line, expected, sizeof expected - 1);
  mo_phase_took(MO_PHASE_LIBRARIES, 0.5);
  mo_phases_describe(line, sizeof line);
  assert_non_null(strstr(line, "; beside both 0.50 s: libraries 0.500; since"));
}

static void test_a_short_buffer_holds_what_fits(void **state) {
  char line[24];
  (void)state;
  memset(line, 'x', sizeof line);
  mo_phases_describe(line, 20);
  assert_int_equal(strlen(line), 19);
  assert_memory_equal(line, "outside the stream ", 19);
  assert_int_equal(line[20], 'x');
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_time_belongs_to_the_phase_that_ends, begin),
      cmocka_unit_test_setup(test_the_time_before_main_is_known, begin),
      cmocka_unit_test_setup(test_the_line, begin),
      cmocka_unit_test_setup(test_a_short_buffer_holds_what_fits, begin),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
