/* The bar and the numbers of a progress line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "../../src/common/meter.h"

static void durations(void **state) {
  (void)state;
  static const struct {
    double seconds;
    const char *text;
  } cases[] = {{0, "0 s"},       {0.4, "0 s"},    {99.4, "99 s"},      {99.5, "2 min"}, {150, "2 min"}, {600, "10 min"},
               {5969, "99 min"}, {5970, "1.7 h"}, {360000, "100.0 h"}, {NAN, "?"},      {INFINITY, "?"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char text[MO_DURATION_BYTES];
    assert_string_equal(mo_meter_duration(text, cases[i].seconds), cases[i].text);
  }
}

static void time_left(void **state) {
  (void)state;
  assert_true(isnan(mo_meter_left(5, 0, 100)));
  assert_true(mo_meter_left(5, 25, 100) == 15);
  assert_true(mo_meter_left(5, 100, 100) == 0);
  assert_true(mo_meter_left(5, 101, 100) == 0); /* rounding */
}

/* 100 bytes a second for 30 s, then nothing: the rate is that of the last 10 to 20 s. */
static void rate(void **state) {
  (void)state;
  mo_meter meter;
  mo_meter_start(&meter, 1000);
  assert_true(mo_meter_rate(&meter, 1000, 0) == 0);
  for (int t = 1; t <= 30; t++) assert_true(fabs(mo_meter_rate(&meter, 1000 + t, 100 * t) - 100) < 1e-9);
  double before = 100;
  for (int t = 31; t <= 60; t++) {
    double now = mo_meter_rate(&meter, 1000 + t, 3000);
    assert_true(now <= before && now >= 0);
    if (t == 41) assert_true(now < 60);
    if (t > 50) assert_true(now == 0);
    before = now;
  }
}

static void bar(void **state) {
  (void)state;
  char line[512];
  mo_meter_bar(line, sizeof line, 80, 0.5, "12/24 layers");
  assert_string_equal(line, "[###############...............]  50 %  12/24 layers");
  mo_meter_bar(line, sizeof line, 80, 0, "x");
  assert_string_equal(line, "[..............................]   0 %  x");
  mo_meter_bar(line, sizeof line, 80, 1, "x");
  assert_string_equal(line, "[##############################] 100 %  x");
  mo_meter_bar(line, sizeof line, 80, NAN, "x");
  assert_string_equal(line, "[..............................]   0 %  x");
}

/* Whatever the terminal's width: never as many columns, so that the cursor stays in the line. */
static void fits(void **state) {
  (void)state;
  static const char text[] = "46/48 layers  stalled for 12 s at byte 8392704 of model-00001-of-00012";
  for (int columns = 2; columns < 200; columns++) {
    char line[512];
    mo_meter_bar(line, sizeof line, columns, 0.3, text);
    assert_true((int)strlen(line) < columns);
    if (columns > 90) assert_non_null(strstr(line, text));
    assert_int_equal(line[0] == '[', columns >= (int)strlen(text) + 11 + 8);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(durations), cmocka_unit_test(time_left), cmocka_unit_test(rate),
      cmocka_unit_test(bar),       cmocka_unit_test(fits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
