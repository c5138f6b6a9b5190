/* Steps that take too long are told once, others not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "moe_outliers/clock.h"
#include "moe_outliers/watch.h"

static void count(void *context) { atomic_fetch_add((atomic_int *)context, 1); }

static void sleep_for(double seconds) { usleep((useconds_t)(1e6 * seconds)); }

static void a_long_step_is_told_once(void **state) {
  (void)state;
  mo_watch watch;
  atomic_int told = 0;
  mo_watch_begin(&watch, 0.05, count, &told);
  for (double end = mo_seconds() + 10; !told && mo_seconds() < end;) sleep_for(0.01);
  assert_int_equal(told, 1);
  mo_watch_step(&watch);
  sleep_for(0.15);
  mo_watch_end(&watch);
  assert_int_equal(told, 1);
}

static void short_steps_are_not_told(void **state) {
  (void)state;
  mo_watch watch;
  atomic_int told = 0;
  double began = mo_seconds();
  mo_watch_begin(&watch, 2, count, &told);
  for (int i = 0; i < 8; i++) {
    sleep_for(0.3); /* 2.4 s in all */
    mo_watch_step(&watch);
  }
  mo_watch_end(&watch);
  assert_true(mo_seconds() - began > 2);
  assert_int_equal(told, 0);
}

static void the_end_does_not_wait(void **state) {
  (void)state;
  mo_watch watch;
  atomic_int told = 0;
  double began = mo_seconds();
  mo_watch_begin(&watch, 100, count, &told);
  mo_watch_end(&watch);
  assert_true(mo_seconds() - began < 50);
  assert_int_equal(told, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_long_step_is_told_once),
      cmocka_unit_test(short_steps_are_not_told),
      cmocka_unit_test(the_end_does_not_wait),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
