/* The order of tasks within a block: every task once, as early as it can be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "../../src/pipeline/schedule.h"

enum { MICROS = 4, STAGES = 6 };

static mo_schedule schedule;

static int open_schedule(void **state) {
  (void)state;
  return mo_schedule_open(&schedule, STAGES, MICROS) != MO_OK;
}

static int close_schedule(void **state) {
  (void)state;
  mo_schedule_close(&schedule);
  return 0;
}

static void begin(int64_t first, int64_t end, const int64_t *start, bool here) {
  mo_schedule_begin(&schedule, first, end, start);
  for (int64_t m = 0; m < MICROS; m++) {
    assert_false(schedule.here[m]);
    schedule.here[m] = here;
  }
}

static const int64_t from_the_start[MICROS];

/* The tasks that can be done with stages below `loaded`, as a string of micro-batches. */
static void expect_picks(int64_t loaded, const char *micros) {
  for (; *micros; micros++) {
    assert_int_equal(mo_schedule_pick(&schedule, loaded), *micros - '0');
    mo_schedule_done(&schedule, *micros - '0');
  }
  assert_int_equal(mo_schedule_pick(&schedule, loaded), -1);
}

static void expect_leaving(const char *micros) {
  for (; *micros; micros++) assert_int_equal(mo_schedule_hand_on(&schedule), *micros - '0');
  assert_int_equal(mo_schedule_hand_on(&schedule), -1);
}

static void weights_come_slowly(void **state) {
  (void)state;
  begin(2, 5, from_the_start, true);
  expect_picks(2, "");
  expect_picks(3, "0123");
  assert_true(mo_schedule_is_through(&schedule, 2));
  assert_false(mo_schedule_is_through(&schedule, 3));
  expect_picks(4, "0123");
  expect_leaving("");
  expect_picks(5, "0123");
  assert_int_equal(schedule.n_left, 0);
  expect_leaving("0123");
}

static void weights_are_there(void **state) {
  (void)state;
  begin(2, 5, from_the_start, true);
  expect_picks(5, "000111222333");
}

static void stage_comes_between(void **state) {
  (void)state;
  begin(0, 2, from_the_start, true);
  assert_int_equal(mo_schedule_pick(&schedule, 1), 0);
  mo_schedule_done(&schedule, 0);
  assert_int_equal(mo_schedule_pick(&schedule, 2), 0); /* the lowest goes on at once */
  mo_schedule_done(&schedule, 0);
  expect_leaving("0");
  expect_picks(2, "112233");
  expect_leaving("123");
}

static void rows_come_late(void **state) {
  (void)state;
  begin(1, 3, from_the_start, false);
  assert_int_equal(mo_schedule_awaited(&schedule), 0);
  expect_picks(3, "");
  schedule.here[0] = true;
  assert_int_equal(mo_schedule_awaited(&schedule), 1);
  expect_picks(3, "00");
  schedule.here[1] = schedule.here[2] = true;
  assert_int_equal(mo_schedule_awaited(&schedule), 3);
  expect_picks(2, "12"); /* wherever work can go on, it does */
  schedule.here[3] = true;
  assert_int_equal(mo_schedule_awaited(&schedule), -1);
  expect_picks(3, "1233");
  assert_true(mo_schedule_is_through(&schedule, 1) && mo_schedule_is_through(&schedule, 2));
}

/* A continued run: micro-batches begin anywhere, also behind the block, and still leave in their order. */
static void begun_before(void **state) {
  (void)state;
  const int64_t start[MICROS] = {1, 6, 4, 3};
  begin(2, 5, start, true);
  assert_int_equal(schedule.n_left, 3);
  assert_false(mo_schedule_is_through(&schedule, 2));
  expect_picks(2, "");
  expect_leaving("");
  expect_picks(3, "0");
  assert_true(mo_schedule_is_through(&schedule, 2));
  assert_int_equal(mo_schedule_pick(&schedule, 5), 0);
  expect_picks(5, "00233");
  assert_int_equal(schedule.n_left, 0);
  expect_leaving("0123");
}

static void nothing_left(void **state) {
  (void)state;
  const int64_t start[MICROS] = {5, 6, 5, 7};
  begin(2, 5, start, false);
  assert_int_equal(schedule.n_left, 0);
  assert_int_equal(mo_schedule_awaited(&schedule), -1);
  expect_picks(5, "");
  expect_leaving("0123");
}

/* Whatever comes in which order, the tasks are the same. */
static void random_arrivals(void **state) {
  (void)state;
  srand(1);
  for (int round = 0; round < 500; round++) {
    int64_t start[MICROS], loaded, tasks = 0, left = 0, leaving = 0;
    int64_t first = rand() % 3, end = first + 1 + rand() % 3;
    for (int m = 0; m < MICROS; m++) {
      start[m] = rand() % (STAGES + 1);
      int64_t begins = start[m] < first ? first : start[m];
      left += begins < end ? end - begins : 0;
    }
    mo_schedule_begin(&schedule, first, end, start);
    for (loaded = first; schedule.n_left > 0; loaded += loaded < end && rand() % 3 == 0) {
      int64_t awaited = mo_schedule_awaited(&schedule), micro = mo_schedule_pick(&schedule, loaded);
      if (awaited >= 0 && rand() % 2) schedule.here[awaited] = true;
      for (int64_t m = 0; m < MICROS; m++)
        if (m != micro && (micro < 0 || m < micro))
          assert_false(schedule.here[m] && m != awaited && schedule.next[m] < loaded && schedule.next[m] < end);
      if (micro >= 0) {
        assert_true(schedule.next[micro] >= start[micro] && schedule.next[micro] < loaded);
        mo_schedule_done(&schedule, micro);
        tasks++;
      }
      for (int64_t m; (m = mo_schedule_hand_on(&schedule)) >= 0; leaving++) assert_int_equal(m, leaving);
    }
    for (int64_t m; (m = mo_schedule_hand_on(&schedule)) >= 0; leaving++) assert_int_equal(m, leaving);
    assert_int_equal(tasks, left);
    assert_int_equal(leaving, MICROS);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(weights_come_slowly), cmocka_unit_test(weights_are_there), cmocka_unit_test(stage_comes_between),
      cmocka_unit_test(rows_come_late),      cmocka_unit_test(begun_before),      cmocka_unit_test(nothing_left),
      cmocka_unit_test(random_arrivals),
  };
  return cmocka_run_group_tests(tests, open_schedule, close_schedule);
}
