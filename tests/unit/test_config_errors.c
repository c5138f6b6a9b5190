/* What is refused, and that the error line names the thing, its file and line, and what to do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <libconfig.h>

#include "moe_outliers/config.h"

typedef struct {
  const char *text;  /* of test.cfg, after the required keys on line 1 */
  const char *error; /* whole line, or its beginning if it ends in "..." */
} refusal;

static const char REQUIRED[] = "model: { path = \"m\"; }; data: { tokens = \"t\"; }; output: { path = \"o\"; };\n";

static void expect_error(const char *expected) {
  char got[1000];
  snprintf(got, sizeof got, "%s", mo_error_message());
  mo_error_clear();
  size_t n = strlen(expected);
  bool beginning = n > 3 && strcmp(expected + n - 3, "...") == 0;
  bool same = beginning ? strncmp(got, expected, n - 3) == 0 : strcmp(got, expected) == 0;
  if (!same) fail_msg("got:      %s\nexpected: %s", got, expected);
}

static void expect_refused(const char *text, const char *error) {
  mo_config config;
  if (mo_config_parse(&config, text, "test.cfg", NULL, NULL, 0, true) != MO_INVALID) fail_msg("accepted: %s", text);
  expect_error(error);
}

static void expect_all_refused(const refusal *refusals, size_t n) {
  for (size_t i = 0; i < n; i++) {
    char text[2048];
    snprintf(text, sizeof text, "%s%s", REQUIRED, refusals[i].text);
    expect_refused(text, refusals[i].error);
  }
}
#define EXPECT_ALL_REFUSED(refusals) expect_all_refused(refusals, sizeof(refusals) / sizeof(refusals)[0])

static void test_unknown_names(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"\nanalysis: {\n treshold = 5.0;\n};",
       "unknown key \"treshold\" in section \"analysis\" (test.cfg:4): did you mean \"threshold\"?"},
      {"analysis: { treshold = 5.0; };",
       "unknown key \"treshold\" in section \"analysis\" (test.cfg:2): did you mean \"threshold\"?"},
      {"engine: { raeders = 1; };",
       "unknown key \"raeders\" in section \"engine\" (test.cfg:2): did you mean \"readers\"?"},
      {"\nanalisis: { };", "unknown section \"analisis\" (test.cfg:3): did you mean \"analysis\"?"},
      {"threshold = 5.0;",
       "unknown section \"threshold\" (test.cfg:2): the sections are model, data, analysis, engine, "
       "output, deployment"},
      {"engine: { warp = 1; };",
       "unknown key \"warp\" in section \"engine\" (test.cfg:2): its keys are device, precision, device_memory_gb, "
       "host_memory_gb, micro_batch, partition, readers, threads, verify, checkpoint_seconds, "
       "cache, network_patience"},
      {"engine: { Device = \"cpu\"; };",
       "unknown key \"Device\" in section \"engine\" (test.cfg:2): did you mean \"device\"?"},
      {"deployment: { gpu = 1; };",
       "unknown key \"gpu\" in section \"deployment\" (test.cfg:2): did you mean \"gpus\"?"},
      {"engine: { a234567890123456789012345678901234567890 = 1; };",
       "unknown key \"a234567890123456789012345678901234567890\" in section \"engine\" (test.cfg:2): its keys are..."},
  };
  EXPECT_ALL_REFUSED(refusals);
}

static void test_wrong_types(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"analysis: { threshold = \"six\"; };", "analysis.threshold is a string (test.cfg:2): give a number above 0"},
      {"analysis: { thresholds = 5.0; };",
       "analysis.thresholds is a number with a fraction (test.cfg:2): give 1 to 8 numbers above 0 like ( 4.0, 6.0 )"},
      {"analysis: { thresholds = ( 5.0, \"6\" ); };",
       "element 1 of analysis.thresholds is a string (test.cfg:2): give 1 to 8 numbers above 0 like ( 4.0, 6.0 )"},
      {"analysis: { bootstrap = 10.0; };",
       "analysis.bootstrap is a number with a fraction (test.cfg:2): give a whole number from 0 to 10000000"},
      {"analysis: { perplexity = 1; };", "analysis.perplexity is a whole number (test.cfg:2): give true or false"},
      {"analysis: { threshold = true; };", "analysis.threshold is true or false (test.cfg:2): give a number above 0"},
      {"engine: { device = 0; };",
       "engine.device is a whole number (test.cfg:2): give one of \"auto\", \"cpu\", \"cuda\", \"check\""},
      {"engine: { threads = { }; };", "engine.threads is a group (test.cfg:2): give a whole number from 0 to 256"},
      {"engine: { threads = ( 1 ); };", "engine.threads is a list (test.cfg:2): give a whole number from 0 to 256"},
      {"engine = 3;", "\"engine\" is not a section (test.cfg:2): write engine: { key = value; };"},
      {"deployment: { gpus = \"two\"; };",
       "deployment.gpus is a string (test.cfg:2): give a whole number from 0 to 1024"},
      {"deployment: { gpu_filter = 100; };",
       "deployment.gpu_filter is a whole number (test.cfg:2): give a string in double quotes"},
  };
  EXPECT_ALL_REFUSED(refusals);
  expect_refused("model: { path = [ \"m\" ]; };",
                 "model.path is an array (test.cfg:1): give a string in double quotes");
}

static void test_ranges(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"analysis: { threshold = 0.0; };", "analysis.threshold = 0 is out of range (test.cfg:2): give a number above 0"},
      {"analysis: { threshold = 0; };", "analysis.threshold = 0 is out of range (test.cfg:2): give a number above 0"},
      {"analysis: { threshold = -6; };", "analysis.threshold = -6 is out of range..."},
      {"analysis: { threshold = 1e999; };", "analysis.threshold = inf is out of range..."},
      {"analysis: { threshold = -1e999; };", "analysis.threshold = -inf is out of range..."},
      {"analysis: { thresholds = [ 5.0, -1.0 ]; };",
       "analysis.thresholds = -1 is out of range (test.cfg:2): give 1..."},
      {"analysis: { thresholds = ( 5, 0 ); };", "analysis.thresholds = 0 is out of range (test.cfg:2): give 1 to 8..."},
      {"analysis: { thresholds = ( ); };", "analysis.thresholds has 0 elements (test.cfg:2): give 1 to 8 numbers..."},
      {"analysis: { thresholds = [ 1, 2, 3, 4, 5, 6, 7, 8, 9 ]; };",
       "analysis.thresholds has 9 elements (test.cfg:2)..."},
      {"analysis: { thresholds = ( 5.0, 6, 5 ); };",
       "analysis.thresholds has 5 twice (test.cfg:2): give each number once"},
      {"analysis: { threshold = 6.0; thresholds = ( 5.0, 6.0 ); };",
       "analysis.threshold = 6 is not the first of analysis.thresholds, 5 (test.cfg): give only one of them"},
      {"analysis: { min_layer_fraction = 1.0001; };",
       "analysis.min_layer_fraction = 1.0001 is out of range (test.cfg:2): give a number from 0 to 1"},
      {"analysis: { min_position_fraction = -0.1; };", "analysis.min_position_fraction = -0.1 is out of range..."},
      {"analysis: { systematic_fraction = 2; };", "analysis.systematic_fraction = 2 is out of range..."},
      {"analysis: { bootstrap = 10000001; };", "analysis.bootstrap = 10000001 is out of range..."},
      {"analysis: { seed = -1; };", "analysis.seed = -1 is out of range..."},
      {"analysis: { seed = 99999999999999999999999L; };", "analysis.seed = 9223372036854775807 is out of range..."},
      {"analysis: { seed = 9007199254740992L; };", "analysis.seed = 9007199254740992 is out of range..."},
      {"analysis: { seed = 0x1000000000; };", "analysis.seed is hexadecimal (test.cfg:2): give a decimal number"},
      {"engine: { readers = 257; };",
       "engine.readers = 257 is out of range (test.cfg:2): give a whole number from 0 to 256"},
      {"engine: { threads = -1; };", "engine.threads = -1 is out of range..."},
      {"engine: { device_memory_gb = -1.0; };", "engine.device_memory_gb = -1 is out of range..."},
      {"engine: { micro_batch = 17; };",
       "engine.micro_batch = 17 is above data.sequences = 16 (test.cfg): give at most that, or 0 to let the program "
       "choose"},
      {"deployment: { max_price = -1; };", "deployment.max_price = -1 is out of range..."},
  };
  EXPECT_ALL_REFUSED(refusals);
  expect_refused("data: { sequences = 0; };",
                 "data.sequences = 0 is out of range (test.cfg:1): give a whole number from 1 to 1048576");
  expect_refused("data: { length = 1048577; };", "data.length = 1048577 is out of range...");
  expect_refused("data: { skip = -1; };", "data.skip = -1 is out of range...");
}

/* libconfig would read 4294967297 as 1. */
static void test_numbers_that_libconfig_cuts(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"\nanalysis: { seed = 4294967297; };",
       "whole number beyond 2147483647 without an L at its end (test.cfg:3): write 4294967297L"},
      {"analysis: { threshold = 2147483648; };", "whole number beyond 2147483647 without..."},
      {"analysis: { seed = -99999999999; };", "whole number beyond 2147483647..."},
      {"analysis: { seed = 0004294967297; };", "whole number beyond 2147483647..."},
      {"output: { activations = ( 1,4294967297 ); };", "whole number beyond 2147483647..."},
      {"a = \"\\\"4294967297\"; b = 4294967297;", "whole number beyond 2147483647..."},
      {"/* # */ b = 4294967297;", "whole number beyond 2147483647..."},
  };
  EXPECT_ALL_REFUSED(refusals);
}

static void test_numbers_that_libconfig_keeps(void **state) {
  (void)state;
  static const char *const texts[] = {
    "analysis: { seed = 4294967297L; };",
    "analysis: { threshold = 4294967297.0; };",
    "analysis: { threshold = 4294967297e1; };",
    "analysis: { threshold = .4294967297; };",
    "analysis: { threshold = 0.4294967297e+2; };",
    "# 4294967297\n// 4294967297\n/* 4294967297 */",
    "deployment: { gpu_filter = \"\\\" 4294967297\"; };",
#if LIBCONFIG_VER_MINOR == 5 /* later versions take it for a syntax error */
    "analysis: { seed = 00002147483647; };",
#endif
  };
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
    char text[512];
    mo_config config;
    snprintf(text, sizeof text, "%s%s", REQUIRED, texts[i]);
    if (mo_config_parse(&config, text, "test.cfg", NULL, NULL, 0, true) != MO_OK) fail_msg("%s", mo_error_message());
    mo_config_free(&config);
  }
}

static void test_choices_and_strings(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"engine: { device = \"gpu\"; };",
       "engine.device = \"gpu\" is unknown (test.cfg:2): give one of \"auto\", \"cpu\", \"cuda\", \"check\""},
      {"engine: { precision = \"\"; };",
       "engine.precision = \"\" is unknown (test.cfg:2): give one of \"bf16\", \"fp32\""},
      {"engine: { partition = \"AUTO\"; };", "engine.partition = \"AUTO\" is unknown..."},
      {"deployment: { cloud_type = \"a\\nb\"; };", "deployment.cloud_type has a control character or is not UTF-8..."},
      {"deployment: { cloud_type = \"\xc3(\"; };", "deployment.cloud_type has a control character or is not UTF-8..."},
      {"deployment: { cloud_type = \"\xed\xa0\x80\"; };", "deployment.cloud_type has a control character or is not..."},
  };
  EXPECT_ALL_REFUSED(refusals);
  expect_refused("model: { path = \"\"; };",
                 "model.path is empty (test.cfg:1): give folder with config.json and *.safetensors, its address "
                 "(hf://, https://), or synthetic:SEED");
}

static void test_activations(void **state) {
  (void)state;
#define OUTPUT(value) "model: { path = \"m\"; };\noutput: { activations = " value "; };"
#define GIVE "give layer numbers from 0 to 65535 like ( 0, 3 ), or \"all\""
  expect_refused(OUTPUT("( 1, \"x\" )"), "element 1 of output.activations is a string (test.cfg:2): " GIVE);
  expect_refused(OUTPUT("( 1.0 )"), "element 0 of output.activations is a number with a fraction (test.cfg:2): " GIVE);
  expect_refused(OUTPUT("( ( ) )"), "element 0 of output.activations is a list (test.cfg:2): " GIVE);
  expect_refused(OUTPUT("( -1 )"), "output.activations = -1 is out of range (test.cfg:2): " GIVE);
  expect_refused(OUTPUT("( 65536 )"), "output.activations = 65536 is out of range...");
  expect_refused(OUTPUT("3"), "output.activations is a whole number (test.cfg:2): " GIVE);
  expect_refused(OUTPUT("\"none\""), "output.activations = \"none\" is unknown (test.cfg:2): " GIVE);
  expect_refused(OUTPUT("\"\""), "output.activations = \"\" is unknown...");
}

static void test_missing(void **state) {
  (void)state;
  expect_refused("",
                 "missing key \"path\" in section \"model\" (test.cfg): add it, or use -s model.path=VALUE; it is the "
                 "folder with config.json and *.safetensors, its address (hf://, https://), or synthetic:SEED");
  expect_refused("model: { path = \"m\"; };", "missing key \"tokens\" in section \"data\" (test.cfg)...");
  expect_refused("model: { path = \"m\"; }; data: { tokens = \"t\"; };",
                 "missing key \"path\" in section \"output\" (test.cfg)...");
}

static void test_syntax(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"\nengine: { device = ; };",
       "syntax error (test.cfg:3): look for a missing quote, bracket or value here or just before"},
      {"analysis: { threshold = nan; };", "syntax error (test.cfg:2)..."},
      {"engine: { device = \"cpu;\n };", "syntax error (test.cfg:..."},
      {"engine: {", "syntax error (test.cfg:..."},
      {"engine: {\n threads = 1;\n threads = 2; };", "duplicate setting name (test.cfg:4): keep one of the two"},
      {"engine: { }; engine: { };", "duplicate setting name (test.cfg:2): keep one of the two"},
      {"output: { };", "duplicate setting name (test.cfg:2): keep one of the two"},
  };
  EXPECT_ALL_REFUSED(refusals);
  expect_refused("output: {\n activations = [ 1, \"x\" ]; };",
                 "mismatched element type in array (test.cfg:2): give elements of one type");
}

static void test_deep_nesting_is_an_error_not_a_crash(void **state) {
  (void)state;
  enum { DEPTH = 200000 };
  static char text[DEPTH + 64];
  int used = snprintf(text, sizeof text, "output: { activations = ");
  memset(text + used, '(', DEPTH);
  text[used + DEPTH] = '\0';
  expect_refused(text, "memory exhausted (test.cfg:1)...");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_unknown_names),
      cmocka_unit_test(test_wrong_types),
      cmocka_unit_test(test_ranges),
      cmocka_unit_test(test_numbers_that_libconfig_cuts),
      cmocka_unit_test(test_numbers_that_libconfig_keeps),
      cmocka_unit_test(test_choices_and_strings),
      cmocka_unit_test(test_activations),
      cmocka_unit_test(test_missing),
      cmocka_unit_test(test_syntax),
      cmocka_unit_test(test_deep_nesting_is_an_error_not_a_crash),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
