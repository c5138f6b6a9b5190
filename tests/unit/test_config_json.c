/* mo_config_json: the config of a run as JSON, and texts that are none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moe_outliers/config.h"

static void assert_json(const char *text, const char *expected) {
  char *json;
  if (mo_config_json(&json, text, "x.h5: config") != MO_OK) fail_msg("%s", mo_error_message());
  assert_string_equal(json, expected);
  free(json);
}

static void assert_refused(const char *text, const char *error) {
  char *json = (char *)1;
  mo_error_clear();
  assert_int_equal(mo_config_json(&json, text, "x.h5: config"), MO_INVALID);
  assert_null(json);
  if (!strstr(mo_error_message(), error)) fail_msg("'%s' is not in the error '%s'", error, mo_error_message());
  assert_non_null(strstr(mo_error_message(), "x.h5: config"));
  assert_null(strchr(mo_error_message(), '\n'));
  mo_error_clear();
}

static void config_of_a_run(void **state) {
  (void)state;
  mo_config config;
  const char *const overrides[] = {"model.name=a \"b\" \\", "analysis.threshold=0.1", "engine.micro_batch=1",
                                   "deployment.max_hours=2"};
  assert_int_equal(mo_config_parse(&config,
                                   "model: { path = \"m\"; }; data: { tokens = \"t.h5\"; sequences = 3; };"
                                   "output: { path = \"r.h5\"; activations = ( 0, 2 ); };",
                                   "test.cfg", NULL, overrides, 4, true),
                   MO_OK);
  char *json;
  assert_int_equal(mo_config_json(&json, config.text, "config"), MO_OK);
  const char *const parts[] = {"{\n  \"model\": {\n    \"name\": \"a \\\"b\\\" \\\\\",\n    \"path\": \"m\"",
                               "\n  \"data\": {\n    \"tokens\": \"t.h5\",\n    \"sequences\": 3,\n",
                               "\n    \"threshold\": 0.1,\n",
                               "\n    \"perplexity\": true",
                               "\n    \"precision\": \"bf16\",\n",
                               "\n    \"device_memory_gb\": 0.0,\n",
                               "\n    \"micro_batch\": 1,\n",
                               "\n    \"activations\": [0, 2],\n",
                               "\n    \"max_hours\": 2.0"};
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
    if (!strstr(json, parts[i])) fail_msg("%s is not in %s", parts[i], json);
  assert_string_equal(json + strlen(json) - strlen("\n  }\n}\n"), "\n  }\n}\n");
  free(json);
  mo_config_free(&config);
}

static void groups_and_lists(void **state) {
  (void)state;
  assert_json("", "{}\n");
  assert_json("a: { }; b = ( ); c = [ ];", "{\n  \"a\": {},\n  \"b\": [],\n  \"c\": []\n}\n");
  assert_json("a = ( 1, ( \"x\", false ), { b = 2; } );",
              "{\n  \"a\": [1, [\"x\", false], {\n      \"b\": 2\n    }]\n}\n");
}

static void numbers(void **state) {
  (void)state;
  assert_json("a = 3000000000L;", "{\n  \"a\": 3000000000\n}\n");
  assert_json("a = -7;", "{\n  \"a\": -7\n}\n");
  assert_json("a = 6.0;", "{\n  \"a\": 6.0\n}\n");
  assert_json("a = 0.1;", "{\n  \"a\": 0.1\n}\n");
  assert_json("a = 0.30000000000000004;", "{\n  \"a\": 0.30000000000000004\n}\n");
  assert_json("a = 1e300;", "{\n  \"a\": 1e+300\n}\n");
  assert_json("a = -1e400;", "{\n  \"a\": -1e999\n}\n");
}

static void texts(void **state) {
  (void)state;
  assert_json("a = \"\\\"\\\\/\\t\\x01\x7f\";", "{\n  \"a\": \"\\\"\\\\/\\t\\u0001\\u007f\"\n}\n");
  assert_json("a = \"\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x8d\";", "{\n  \"a\": \"\\u00e9\\u20ac\\ud83d\\udc0d\"\n}\n");
  /* no character, a character in too many bytes, half a surrogate pair, beyond the last one, cut off */
  assert_json(
      "a = \"\x80|\xc0\xaf|\xed\xa0\x80|\xf4\x90\x80\x80|\xe2\x82\";",
      "{\n  \"a\": \"\\ufffd|\\ufffd\\ufffd|\\ufffd\\ufffd\\ufffd|\\ufffd\\ufffd\\ufffd\\ufffd|\\ufffd\\ufffd\"\n}\n");
}

static void texts_that_are_no_config(void **state) {
  (void)state;
  assert_refused("a = ;", "syntax error (x.h5: config:1)");
  assert_refused("a = 1;\n a = 2;", "duplicate setting name");
  assert_refused("a = 4294967297;", "4294967297");
  assert_refused("\n \t@include \"/etc/passwd\"\n", "@include");
  assert_refused("a = ((((((((((((((((((((((((((((((((((((((((1))))))))))))))))))))))))))))))))))))))));",
                 "nested deeper than 32");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(config_of_a_run), cmocka_unit_test(groups_and_lists),         cmocka_unit_test(numbers),
      cmocka_unit_test(texts),           cmocka_unit_test(texts_that_are_no_config),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
