/* Overrides, -s section.key=value. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moe_outliers/config.h"

static const char TEXT[] =
    "model: { path = \"m\"; }; data: { tokens = \"t\"; };\n"
    "output: { path = \"o\"; activations = ( 1, 2 ); }; analysis: { threshold = 4.0; };\n";

static mo_config parsed(const char *override) {
  mo_config config;
  if (mo_config_parse(&config, TEXT, "test.cfg", NULL, &override, 1, true) != MO_OK)
    fail_msg("%s: %s", override, mo_error_message());
  return config;
}

static void expect_path(const char *override, const char *path) {
  mo_config config = parsed(override);
  assert_string_equal(config.output.path, path);
  mo_config_free(&config);
}

static void expect_refused(const char *override, const char *beginning) {
  mo_config config;
  if (mo_config_parse(&config, TEXT, "test.cfg", NULL, &override, 1, true) != MO_INVALID)
    fail_msg("accepted: %s", override);
  if (strncmp(mo_error_message(), beginning, strlen(beginning)) != 0)
    fail_msg("got:      %s\nexpected: %s", mo_error_message(), beginning);
  mo_error_clear();
}

static void test_numbers(void **state) {
  (void)state;
  mo_config config = parsed("analysis.threshold=5.25");
  assert_true(config.analysis.threshold == 5.25);
  mo_config_free(&config);
  config = parsed(" analysis . threshold = 3 ");
  assert_true(config.analysis.threshold == 3.0);
  mo_config_free(&config);
  config = parsed("analysis.thresholds=4, 8.5");
  assert_int_equal(config.analysis.n_thresholds, 2);
  assert_true(config.analysis.threshold == 4.0 && config.analysis.thresholds[1] == 8.5);
  mo_config_free(&config);
  config = parsed("data.length=17");
  assert_int_equal(config.data.length, 17);
  mo_config_free(&config);
  config = parsed("analysis.perplexity=false");
  assert_false(config.analysis.perplexity);
  mo_config_free(&config);
}

static void test_strings_quoted_or_not(void **state) {
  (void)state;
  expect_path("output.path=a b/c.h5", "a b/c.h5");
  expect_path("output.path=\"a b/c.h5\"", "a b/c.h5");
  expect_path("output.path=12", "12");
  expect_path("output.path=a=b.c", "a=b.c");
  expect_path("output.path=\"a\\\"b\"", "a\"b");
  expect_path("output.path=\xc3\xa4.h5", "\xc3\xa4.h5");
  mo_config config = parsed("engine.device=cpu");
  assert_int_equal(config.engine.device, MO_DEVICE_CPU);
  mo_config_free(&config);
  config = parsed("engine.precision=\"fp32\"");
  assert_int_equal(config.engine.precision, MO_PRECISION_FP32);
  mo_config_free(&config);
}

static void expect_activations(const char *override, bool all, int64_t n, int64_t last) {
  mo_config config = parsed(override);
  assert_int_equal(config.output.all_activations, all);
  assert_int_equal(config.output.n_activations, n);
  if (n > 0) assert_int_equal(config.output.activations[n - 1], last);
  mo_config_free(&config);
}

static void test_activations(void **state) {
  (void)state;
  expect_activations("output.activations=all", true, 0, 0);
  expect_activations("output.activations=\"all\"", true, 0, 0);
  expect_activations("output.activations=( 9, 3 )", false, 2, 9);
  expect_activations("output.activations=[9,3]", false, 2, 9);
  expect_activations("output.activations=9,3,4", false, 3, 9);
  expect_activations("output.activations=( )", false, 0, 0);
}

static void test_the_last_one_wins(void **state) {
  (void)state;
  const char *const overrides[] = {"output.path=first", "output.activations=all", "output.path=second",
                                   "output.activations=5"};
  mo_config config;
  assert_int_equal(mo_config_parse(&config, TEXT, "test.cfg", NULL, overrides, 4, true), MO_OK);
  assert_string_equal(config.output.path, "second");
  assert_false(config.output.all_activations);
  assert_int_equal(config.output.n_activations, 1);
  mo_config_free(&config);
}

static void test_required_key_may_come_from_an_override(void **state) {
  (void)state;
  const char *const overrides[] = {"model.path=m"};
  mo_config config;
  assert_int_equal(mo_config_parse(&config, "", "test.cfg", NULL, overrides, 1, false), MO_OK);
  assert_string_equal(config.model.path, "m");
  mo_config_free(&config);
}

static void test_refusals_name_the_override(void **state) {
  (void)state;
  expect_refused("analysis.treshold=5",
                 "unknown key \"treshold\" in section \"analysis\" (-s analysis.treshold=5): did you mean \"thr");
  expect_refused("analisis.threshold=5",
                 "unknown section \"analisis\" (-s analisis.threshold=5): did you mean \"analysis\"?");
  expect_refused("analysis.threshold", "wrong override (-s analysis.threshold): write -s section.key=value");
  expect_refused("threshold=5", "wrong override (-s threshold=5): write -s section.key=value");
  expect_refused("threshold=5.0", "wrong override (-s threshold=5.0): write -s section.key=value");
  expect_refused("", "wrong override (-s ): write -s section.key=value");
  expect_refused("analysis.threshold=",
                 "analysis.threshold cannot be read (-s analysis.threshold=): give a number above 0");
  expect_refused("analysis.threshold=nan", "analysis.threshold cannot be read (-s analysis.threshold=nan)");
  expect_refused("analysis.threshold=-1", "analysis.threshold = -1 is out of range (-s analysis.threshold=-1)");
  expect_refused("analysis.threshold=1; data = 3",
                 "analysis.threshold cannot be read (-s analysis.threshold=1; data = 3)");
  expect_refused("data.length=4294967297", "whole number beyond 2147483647 without an L at its end (-s data.length=42");
  expect_refused("data.length=7.0", "data.length is a number with a fraction (-s data.length=7.0)");
  expect_refused("output.path=", "output.path is empty (-s output.path=): give result file (HDF5)");
  expect_refused("output.path=\"\"", "output.path is empty");
  expect_refused("output.path=\"a\" = \"b\"", "output.path cannot be read");
  expect_refused("engine.device=gpu", "engine.device = \"gpu\" is unknown (-s engine.device=gpu): give one of");
  expect_refused("output.activations=some", "output.activations = \"some\" is unknown");
  expect_refused("output.activations=1,x", "output.activations cannot be read");
  expect_refused("output.path=a\nb", "control character in an override (-s output.path=a?b): give plain text");
  expect_refused("output.path=\xff", "output.path has a control character or is not UTF-8");
}

static void test_override_replaces_what_the_file_says_wrongly(void **state) {
  (void)state;
  const char *const overrides[] = {"engine.micro_batch=0"};
  mo_config config;
  static const char text[] = "model: { path = \"m\"; }; engine: { micro_batch = 99; };";
  assert_int_equal(mo_config_parse(&config, text, "test.cfg", NULL, overrides, 1, false), MO_OK);
  assert_int_equal(config.engine.micro_batch, 0);
  mo_config_free(&config);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_numbers),
      cmocka_unit_test(test_strings_quoted_or_not),
      cmocka_unit_test(test_activations),
      cmocka_unit_test(test_the_last_one_wins),
      cmocka_unit_test(test_required_key_may_come_from_an_override),
      cmocka_unit_test(test_refusals_name_the_override),
      cmocka_unit_test(test_override_replaces_what_the_file_says_wrongly),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
