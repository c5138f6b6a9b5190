/* Other programs: their output, status and end. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "moe_outliers/clock.h"
#include "moe_outliers/threads.h"
#include "pod/pod.h"

static const pod_settings settings = {.api_key = (char *)"secret_key_1234", .hf_token = (char *)"hf_token_5678"};

static pod_result run(const char *script, const char *input, const char *log, double seconds) {
  char *arguments[] = {(char *)"sh", (char *)"-c", (char *)script, NULL};
  pod_result result;
  mo_status status = pod_process_run(&settings, arguments, input, log, seconds, NULL, &result);
  if (status != MO_OK) fail_msg("%s: %s", script, mo_error_message());
  return result;
}

static void expect_run(const char *script, const char *input, int status, const char *output) {
  pod_result result = run(script, input, NULL, 20);
  assert_string_equal(result.output, output);
  assert_int_equal(result.status, status);
  assert_false(result.timed_out);
  pod_result_free(&result);
}

static char *load(const char *path) {
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  char *text = calloc(1 << 20, 1);
  assert_non_null(text);
  (void)!fread(text, 1, (1 << 20) - 1, file);
  fclose(file);
  return text;
}

static void test_output(void **state) {
  (void)state;
  expect_run("echo out; echo err >&2; exit 3", NULL, 3, "out\nerr\n");
  expect_run("cat", "some\ninput", 0, "some\ninput");
  expect_run("cat", NULL, 0, "");
  expect_run("kill -9 $$", NULL, 128 + 9, "");
  expect_run("printf 'a\\0b'", NULL, 0, "a?b");
  expect_run("echo key secret_key_1234 and hf_token_5678.", NULL, 0, "key *** and ***.\n");
}

static void test_long_output_and_input(void **state) {
  (void)state;
  char *input = calloc(300001, 1);
  assert_non_null(input);
  memset(input, 'x', 300000);
  memcpy(input + 299000, "the end", 7);
  pod_result result = run("cat; echo; echo done", input, NULL, 20);
  assert_true(strlen(result.output) <= 64 << 10 && strlen(result.output) > 60 << 10);
  assert_non_null(strstr(result.output, "the end"));
  assert_string_equal(result.output + strlen(result.output) - 5, "done\n");
  pod_result_free(&result);
  result = run("exit 4", input, NULL, 20); /* which does not read it */
  assert_int_equal(result.status, 4);
  pod_result_free(&result);
  free(input);
}

/* Wherever the pieces that arrive are cut, the key is not in the log. */
static void test_log(void **state) {
  (void)state;
  unlink("process.log");
  pod_result result = run("echo one; printf secret_; sleep 0.2; printf 'key_12'; sleep 0.2; echo 34; echo two", NULL,
                          "process.log", 20);
  assert_string_equal(result.output, "one\n***\ntwo\n");
  pod_result_free(&result);
  result = run("i=0; while [ $i -lt 3000 ]; do printf 'abcdefgh secret_key_1234 '; i=$((i+1)); done", NULL,
               "process.log", 20);
  pod_result_free(&result);
  char *text = load("process.log");
  assert_memory_equal(text, "one\n***\ntwo\nabcdefgh *** ", 25);
  assert_int_equal(strlen(text), 12 + 3000 * 13);
  assert_null(strstr(text, "secret"));
  free(text);
  char *arguments[] = {(char *)"true", NULL};
  assert_int_equal(pod_process_run(&settings, arguments, NULL, "no/such/folder/log", 5, NULL, &result), MO_FAILED);
  assert_non_null(strstr(mo_error_message(), "log cannot be opened: No such file or directory (no/such/folder/log)"));
  mo_error_clear();
}

static void test_not_started(void **state) {
  (void)state;
  char *arguments[] = {(char *)"no-such-program-at-all", NULL};
  pod_result result;
  assert_int_equal(pod_process_run(&settings, arguments, NULL, NULL, 5, NULL, &result), MO_FAILED);
  assert_int_equal(result.status, -1);
  assert_non_null(strstr(mo_error_message(), "cannot be started: No such file or directory (no-such-program-at-all)"));
  mo_error_clear();
  pod_result_free(&result);
}

/* The program and what it has started end; what was put into a session of its own is not waited for. */
static void test_time_limit(void **state) {
  (void)state;
  double begin = mo_seconds();
  pod_result result = run("echo begun; sleep 30 & sleep 30; echo never", NULL, NULL, 2);
  assert_true(result.timed_out);
  assert_int_equal(result.status, 128 + SIGTERM);
  assert_string_equal(result.output, "begun\n");
  pod_result_free(&result);
  result = run("trap '' TERM; echo stubborn; while :; do sleep 0.2; done", NULL, NULL, 2);
  assert_int_equal(result.status, 128 + SIGKILL);
  pod_result_free(&result);
  result = run("setsid sleep 40 & echo left", NULL, NULL, 20);
  assert_string_equal(result.output, "left\n");
  pod_result_free(&result);
  assert_true(mo_seconds() - begin < 25);
}

static volatile bool stop;

static void *stop_soon(void *argument) {
  (void)argument;
  usleep(200000);
  stop = true;
  return NULL;
}

static void test_stop(void **state) {
  (void)state;
  char *arguments[] = {(char *)"sleep", (char *)"30", NULL};
  pod_result result;
  pthread_t thread;
  double begin = mo_seconds();
  assert_int_equal(mo_thread_start(&thread, stop_soon, NULL), 0);
  assert_int_equal(pod_process_run(&settings, arguments, NULL, NULL, 0, &stop, &result), MO_OK);
  pthread_join(thread, NULL);
  assert_int_equal(result.status, 128 + SIGTERM);
  assert_false(result.timed_out);
  assert_true(mo_seconds() - begin < 2);
  pod_result_free(&result);
}

/* Ctrl-C of a terminal goes to this process's group alone. */
static void test_group(void **state) {
  (void)state;
  pod_result result = run("ps -o pgid= -p $$ | tr -d ' '; echo $$", NULL, NULL, 20);
  long group = 0, pid = 0;
  assert_int_equal(sscanf(result.output, "%ld\n%ld", &group, &pid), 2);
  assert_int_equal(group, pid);
  pod_result_free(&result);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_output),     cmocka_unit_test(test_long_output_and_input),
      cmocka_unit_test(test_log),        cmocka_unit_test(test_not_started),
      cmocka_unit_test(test_time_limit), cmocka_unit_test(test_stop),
      cmocka_unit_test(test_group),
  };
  (void)signal(SIGPIPE, SIG_IGN); /* as main does */
  return cmocka_run_group_tests(tests, NULL, NULL);
}
