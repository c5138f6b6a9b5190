/* The environment, .env, and what is taken out of texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "pod/pod.h"

static const char *const NAMES[] = {"RUNPOD_API_KEY", "HF_TOKEN",       "MOE_POD_API",
                                    "MOE_POD_SSH",    "MOE_POD_RSYNC",  "MOE_POD_IDENTITY",
                                    "MOE_POD_STATE",  "MOE_POD_SOURCE", "OTHER"};

static int clear(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) unsetenv(NAMES[i]);
  setenv("HOME", "/nowhere", 1);
  unlink(".env");
  return 0;
}

static void write_env(const char *text, mode_t mode) {
  FILE *file = fopen(".env", "w");
  assert_non_null(file);
  fputs(text, file);
  fclose(file);
  assert_int_equal(chmod(".env", mode), 0);
}

static pod_settings read_settings(void) {
  pod_settings settings;
  if (pod_settings_read(&settings) != MO_OK) fail_msg("%s", mo_error_message());
  return settings;
}

static void expect_refused(const char *text) {
  pod_settings settings;
  assert_int_equal(pod_settings_read(&settings), MO_INVALID);
  if (!strstr(mo_error_message(), text)) fail_msg("got \"%s\", not \"%s\"", mo_error_message(), text);
  mo_error_clear();
}

static void test_defaults(void **state) {
  (void)state;
  char folder[4096];
  pod_settings settings = read_settings();
  assert_null(settings.api_key);
  assert_null(settings.hf_token);
  assert_null(settings.identity);
  assert_string_equal(settings.api, "https://api.runpod.io");
  assert_string_equal(settings.ssh, "ssh");
  assert_string_equal(settings.rsync, "rsync");
  assert_string_equal(settings.state, ".moe-pod");
  assert_string_equal(settings.source, getcwd(folder, sizeof folder));
  assert_string_equal(settings.warning, "");
  pod_settings_free(&settings);
}

static void test_env_file(void **state) {
  (void)state;
  write_env(
      "# keys\n\n  export RUNPOD_API_KEY = \"rpa_from_file\"  # mine\nHF_TOKEN='hf_#from_file'\r\nMOE_POD_STATE=my "
      "state # here\n"
      "MOE_POD_SSH=\nOTHER=value\nMOE_POD_API=https://example.org/base//",
      0600);
  setenv("HF_TOKEN", "", 1);
  pod_settings settings = read_settings();
  assert_string_equal(settings.api_key, "rpa_from_file");
  assert_string_equal(settings.hf_token, "hf_#from_file");
  assert_string_equal(settings.state, "my state");
  assert_string_equal(settings.ssh, "ssh");
  assert_string_equal(settings.api, "https://example.org/base");
  assert_string_equal(settings.warning, "");
  assert_null(getenv("OTHER"));
  assert_null(getenv("RUNPOD_API_KEY")); /* no program that is started inherits it */
  assert_null(getenv("HF_TOKEN"));
  pod_settings_free(&settings);
}

static void test_environment_comes_first(void **state) {
  (void)state;
  write_env("RUNPOD_API_KEY=rpa_from_file\n", 0644);
  setenv("RUNPOD_API_KEY", "rpa_exported", 1);
  pod_settings settings = read_settings();
  assert_string_equal(settings.api_key, "rpa_exported");
  assert_string_equal(settings.warning, "others may read .env, which holds keys: chmod 600 .env");
  pod_settings_free(&settings);
}

static void test_refused(void **state) {
  (void)state;
  write_env("A=1\nrpa_just_the_key\n", 0600);
  expect_refused("line is not understood (.env:2): write NAME=VALUE");
  write_env("RUNPOD_API_KEY=\"rpa_open\n", 0600);
  expect_refused("(.env:1)");
  unlink(".env");
  assert_int_equal(mkdir(".env", 0700), 0);
  expect_refused("(.env)");
  assert_int_equal(rmdir(".env"), 0);
  setenv("RUNPOD_API_KEY", "rpa_with a blank", 1);
  expect_refused("not a key: of 8 to 512 characters without blanks (RUNPOD_API_KEY");
  setenv("RUNPOD_API_KEY", "rpa_with\r\nHost: x", 1);
  expect_refused("not a key");
  setenv("RUNPOD_API_KEY", "short", 1);
  expect_refused("not a key");
  setenv("MOE_POD_IDENTITY", "/no/such/key", 1);
  expect_refused("private key cannot be read: No such file or directory (MOE_POD_IDENTITY, /no/such/key)");
}

/* The key is not sent in clear to another machine. */
static void test_addresses(void **state) {
  (void)state;
  static const struct {
    const char *api;
    bool good;
  } cases[] = {{"https://api.runpod.io/", true},
               {"http://127.0.0.1:80", true},
               {"http://localhost:8080/x", true},
               {"http://[::1]:5", true},
               {"http://api.runpod.io", false},
               {"http://127.0.0.1.evil.org", false},
               {"http://localhost@evil", false},
               {"https://", false},
               {"ftp://127.0.0.1", false},
               {"api.runpod.io", false},
               {"https://x y", false},
               {"https://a?b", false}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    pod_settings settings;
    setenv("MOE_POD_API", cases[i].api, 1);
    mo_status status = pod_settings_read(&settings);
    if ((status == MO_OK) != cases[i].good) fail_msg("%s", cases[i].api);
    if (status == MO_OK) pod_settings_free(&settings);
    mo_error_clear();
  }
}

static void test_identity(void **state) {
  (void)state;
  setenv("HOME", ".", 1);
  (void)mkdir(".ssh", 0700);
  fclose(fopen(".ssh/id_rsa", "w"));
  fclose(fopen(".ssh/id_ecdsa", "w"));
  pod_settings settings = read_settings();
  assert_string_equal(settings.identity, "./.ssh/id_ecdsa");
  pod_settings_free(&settings);
  setenv("MOE_POD_IDENTITY", "~/.ssh/id_rsa", 1);
  settings = read_settings();
  assert_string_equal(settings.identity, "./.ssh/id_rsa");
  pod_settings_free(&settings);
  unlink(".ssh/id_rsa");
  unlink(".ssh/id_ecdsa");
}

static void test_redact(void **state) {
  (void)state;
  const pod_settings settings = {.api_key = (char *)"12345678", .hf_token = (char *)"abcabcabc"};
  char text[] = "12345678 x12345678y1234567812345678 abcabcabcabc 1234567", none[] = "nothing", empty[] = "";
  pod_redact(&settings, text);
  assert_string_equal(text, "*** x***y****** ***abc 1234567");
  pod_redact(&settings, none);
  assert_string_equal(none, "nothing");
  pod_redact(&settings, empty);
  assert_string_equal(empty, "");
  const pod_settings nobody = {0};
  pod_redact(&nobody, none);
  assert_string_equal(none, "nothing");
}

static void test_seconds(void **state) {
  (void)state;
  unsetenv("MOE_POD_PATIENCE");
  assert_true(pod_seconds_of(POD_PATIENCE) == 300);
  setenv("MOE_POD_PATIENCE", "0.5", 1);
  assert_true(pod_seconds_of(POD_PATIENCE) == 0.5);
  static const char *const bad[] = {"", "x", "-1", "0", "5s", "nan", "1e99"};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    setenv("MOE_POD_PATIENCE", bad[i], 1);
    assert_true(pod_seconds_of(POD_PATIENCE) == 300);
  }
  unsetenv("MOE_POD_PATIENCE");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_defaults, clear),
      cmocka_unit_test_setup(test_env_file, clear),
      cmocka_unit_test_setup(test_environment_comes_first, clear),
      cmocka_unit_test_setup(test_refused, clear),
      cmocka_unit_test_setup(test_addresses, clear),
      cmocka_unit_test_setup(test_identity, clear),
      cmocka_unit_test_setup(test_redact, clear),
      cmocka_unit_test_setup(test_seconds, clear),
  };
  return cmocka_run_group_tests(tests, NULL, clear);
}
