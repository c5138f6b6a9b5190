/* The ledger: durable, whole after kill -9, one driver at a time; what runs cost and the budget they share. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "pod/ledger_json.h"
#include "pod/money.h"
#include "pod/pod.h"

static char folder[64];
static pod_settings settings;

static int begin(void **state) {
  (void)state;
  strcpy(folder, "/tmp/moe-pod-ledger-XXXXXX");
  if (!mkdtemp(folder)) return -1;
  static char path[128];
  snprintf(path, sizeof path, "%s/a/b", folder);
  settings = (pod_settings){.state = path};
  mo_error_clear();
  return 0;
}

static int end(void **state) {
  (void)state;
  char command[160];
  snprintf(command, sizeof command, "rm -rf %s", folder);
  return system(command);
}

static pod_ledger *opened(bool write) {
  pod_ledger *ledger = NULL;
  if (pod_ledger_open(&ledger, &settings, write) != MO_OK) fail_msg("%s", mo_error_message());
  return ledger;
}

static pod_run sample(const char *key) {
  pod_run run = {.id = "pod1",
                 .config = "configs/a b.cfg",
                 .gpus = 2,
                 .pods = 1,
                 .port = 2222,
                 .attempts = 3,
                 .step = STEP_SENT,
                 .price = 0.1,
                 .created = 1764000000.125,
                 .deadline = 1764003600,
                 .spent = 1.0 / 3,
                 .slurm = true};
  snprintf(run.key, sizeof run.key, "%s", key);
  snprintf(run.name, sizeof run.name, POD_PREFIX "%s-1", key);
  snprintf(run.error, sizeof run.error, "a \"quoted\"\nline, \xc3\xa4");
  return run;
}

static void write_file(const char *text) {
  char path[160];
  snprintf(path, sizeof path, "%s/ledger.json", settings.state);
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  fclose(file);
}

static void assert_error(const char *part) {
  if (!strstr(mo_error_message(), part)) fail_msg("\"%s\" is not in: %s", part, mo_error_message());
  mo_error_clear();
}

static void test_what_is_put_is_there_again(void **state) {
  (void)state;
  pod_ledger *ledger = opened(true);
  pod_run run = sample("one"), other = sample("two"), found;
  run.overrides = json_pack("[s, s]", "a.b=1", "output.path=x y");
  assert_int_equal(pod_ledger_put(ledger, &run), MO_OK);
  assert_int_equal(pod_ledger_put(ledger, &other), MO_OK);
  run.step = STEP_BROUGHT;
  assert_int_equal(pod_ledger_put(ledger, &run), MO_OK);
  pod_ledger_close(ledger);

  ledger = opened(false);
  pod_run *all = NULL;
  int n = 0;
  assert_int_equal(pod_ledger_all(ledger, &all, &n), MO_OK);
  assert_int_equal(n, 2);
  assert_string_equal(all[0].key, "one");
  assert_string_equal(all[1].key, "two");
  free(all);
  assert_true(pod_ledger_get(ledger, "one", &found));
  assert_true(json_equal(found.overrides, run.overrides));
  json_decref(run.overrides);
  run.overrides = found.overrides = NULL;
  assert_memory_equal(&found.price, &run.price, sizeof run.price);
  assert_true(found.created == run.created && found.spent == run.spent && found.deadline == run.deadline);
  assert_string_equal(found.error, run.error);
  assert_string_equal(found.config, run.config);
  assert_int_equal(found.step, STEP_BROUGHT);
  assert_int_equal(found.port, 2222);
  assert_true(found.slurm && !found.cluster);
  assert_false(pod_ledger_get(ledger, "three", &found));
  pod_ledger_close(ledger);
}

static void test_forgotten_and_for_reading(void **state) {
  (void)state;
  pod_ledger *ledger = opened(true);
  pod_run run = sample("one"), found;
  assert_int_equal(pod_ledger_put(ledger, &run), MO_OK);
  assert_int_equal(pod_ledger_forget(ledger, "none"), MO_OK);
  assert_int_equal(pod_ledger_forget(ledger, "one"), MO_OK);
  assert_false(pod_ledger_get(ledger, "one", &found));
  pod_ledger_close(ledger);
  ledger = opened(false);
  assert_int_equal(pod_ledger_put(ledger, &run), MO_FAILED);
  assert_error("opened for reading");
  pod_ledger_close(ledger);
}

static void test_nothing_is_made_by_reading(void **state) {
  (void)state;
  bool busy = true;
  pod_ledger *ledger = opened(false);
  pod_run *all = NULL;
  int n = 1;
  assert_int_equal(pod_ledger_all(ledger, &all, &n), MO_OK);
  assert_int_equal(n, 0);
  free(all);
  pod_ledger_close(ledger);
  assert_int_equal(pod_ledger_busy(&settings, &busy), MO_OK);
  assert_false(busy);
  assert_int_not_equal(access(settings.state, F_OK), 0);
}

static void test_one_driver_at_a_time(void **state) {
  (void)state;
  bool busy = false;
  pod_ledger *ledger = opened(true), *second = NULL;
  assert_int_equal(pod_ledger_open(&second, &settings, true), MO_INVALID);
  assert_error("another moe-pod drives");
  assert_int_equal(pod_ledger_busy(&settings, &busy), MO_OK);
  assert_true(busy);
  second = opened(false);
  pod_ledger_close(second);
  pod_ledger_close(ledger);
  assert_int_equal(pod_ledger_busy(&settings, &busy), MO_OK);
  assert_false(busy);
  pod_ledger_close(opened(true));
}

/* Never "nothing runs". */
static void test_a_damaged_file_is_an_error(void **state) {
  (void)state;
  static const char *const texts[] = {"",
                                      "{",
                                      "[]",
                                      "{\"version\": 1}",
                                      "{\"version\": 2, \"runs\": []}",
                                      "{\"version\": 1, \"runs\": {}}",
                                      "{\"version\": 1, \"runs\": [{\"key\": \"x\"}]}",
                                      "{\"version\": 1, \"runs\": [7]}"};
  pod_ledger_close(opened(true));
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    pod_ledger *ledger = NULL;
    write_file(texts[i]);
    assert_int_equal(pod_ledger_open(&ledger, &settings, false), MO_FAILED);
    assert_error("ledger.json");
  }
  write_file("{\"version\": 1, \"runs\": []}");
  pod_ledger_close(opened(true));
}

/* Every field is needed: one that is missing or of another type is not guessed. */
static void test_a_run_without_a_field_makes_no_sense(void **state) {
  (void)state;
  pod_run run = sample("one"), found;
  json_t *whole = pod_run_to_json(&run);
  const char *name;
  json_t *value;
  assert_true(pod_run_from_json(whole, &found));
  json_object_foreach(whole, name, value) {
    json_t *copy = json_deep_copy(whole);
    json_object_del(copy, name);
    bool may_lack = strcmp(name, "doubtful") == 0; /* files of a former version do */
    if (pod_run_from_json(copy, &found) != may_lack) fail_msg("without %s", name);
    json_object_set_new(copy, name, json_null());
    if (pod_run_from_json(copy, &found)) fail_msg("%s null", name);
    json_decref(copy);
  }
  char *too_long = calloc(1, 1000);
  memset(too_long, 'x', 999);
  json_object_set_new(whole, "name", json_string(too_long));
  assert_false(pod_run_from_json(whole, &found));
  free(too_long);
  json_decref(whole);
}

/* What was edited by hand is not made into paths, commands, or an end. */
static void test_values_that_make_no_sense(void **state) {
  (void)state;
  static const struct {
    const char *name, *value;
  } wrong[] = {{"overrides", "[1]"},   {"overrides", "[\"a.b=1\", null]"},
               {"name", "\"mine\""},   {"key", "\"../../x\""},
               {"key", "\"a b\""},     {"remote", "\"/x; rm y\""},
               {"gpus", "0"},          {"gpus", "1025"},
               {"pods", "-1"},         {"port", "65536"},
               {"port", "9999999999"}, {"deadline", "0"},
               {"id", "\"../pod\""},   {"deadline", "1763999999"}};
  pod_run run = sample("one"), found;
  json_t *whole = pod_run_to_json(&run);
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    json_t *copy = json_deep_copy(whole);
    json_object_set_new(copy, wrong[i].name, json_loads(wrong[i].value, JSON_DECODE_ANY, NULL));
    if (pod_run_from_json(copy, &found)) fail_msg("%s %s", wrong[i].name, wrong[i].value);
    json_decref(copy);
  }
  json_decref(whole);
}

/* jansson is the judge of what is UTF-8. */
static void test_clean(void **state) {
  (void)state;
  char good[] = "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", half[] = "a\xe2\x82", text[8];
  pod_clean(good);
  assert_string_equal(good, "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80");
  pod_clean(half);
  assert_string_equal(half, "a??");
  unsigned random = 1;
  for (int i = 0; i < 200000; i++) {
    for (size_t k = 0; k + 1 < sizeof text; k++) {
      random = random * 1664525u + 1013904223u;
      text[k] = (char)(random >> 24 < 64 ? random >> 16 & 0x7f : random >> 16 | 0x80);
    }
    text[sizeof text - 1] = '\0';
    json_t *before = json_string(text);
    char copy[sizeof text];
    memcpy(copy, text, sizeof text);
    pod_clean(copy);
    if (before) assert_string_equal(copy, text);
    json_t *after = json_string(copy);
    if (!after) fail_msg("not cleaned");
    json_decref(before);
    json_decref(after);
  }
}

/* A process that writes all the time is killed; what was said to be durable is there, and the file is whole. */
static void test_killed_while_it_writes(void **state) {
  (void)state;
  for (int round = 0; round < 12; round++) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
      pod_ledger *ledger = NULL;
      pod_run run = sample("one");
      if (pod_ledger_open(&ledger, &settings, true) != MO_OK) _exit(1);
      for (int i = 1;; i++) {
        run.attempts = i;
        if (pod_ledger_put(ledger, &run) != MO_OK || write(ends[1], &i, sizeof i) != sizeof i) _exit(1);
      }
    }
    close(ends[1]);
    int written = 0, last = 0, wait_status;
    usleep((useconds_t)(5000 + 3000 * round));
    kill(child, SIGKILL);
    waitpid(child, &wait_status, 0);
    assert_true(WIFSIGNALED(wait_status));
    while (read(ends[0], &written, sizeof written) == sizeof written) last = written;
    close(ends[0]);
    pod_ledger *ledger = opened(true);
    pod_run found;
    if (last > 0) {
      assert_true(pod_ledger_get(ledger, "one", &found));
      assert_true(found.attempts >= last && found.attempts <= last + 1);
    }
    pod_ledger_close(ledger);
  }
}

static void test_a_folder_that_cannot_be_made(void **state) {
  (void)state;
  pod_ledger *ledger = NULL;
  settings.state = "/proc/no/such";
  assert_int_equal(pod_ledger_open(&ledger, &settings, true), MO_FAILED);
  assert_error("/proc/no");
}

/* --- money --- */

static void test_cost(void **state) {
  (void)state;
  pod_run run = {.price = 3.6, .created = 1000, .spent = 0.5};
  assert_true(pod_run_cost(&run, 2000) == 0.5); /* no pod is known */
  strcpy(run.id, "x");
  assert_true(pod_run_cost(&run, 2000) == 1.5);
  assert_true(pod_run_cost(&run, 900) == 0.5);
}

static void test_budget_is_for_all_runs_together(void **state) {
  (void)state;
  char *keys[] = {"one", "two"};
  pod_ledger *ledger = opened(true);
  pod_purse *purse = NULL;
  assert_int_equal(pod_purse_open(&purse, ledger, 10, keys, 2), MO_OK);
  pod_run one = {.key = "one", .name = POD_PREFIX "1", .price = 36, .created = 1000, .expected = 6};
  one.gpus = one.pods = 1, one.deadline = 9000;
  pod_run two = {.key = "two", .name = POD_PREFIX "2", .price = 36, .created = 1000, .expected = 5};
  assert_int_equal(pod_purse_take(purse, &one, 1000), MO_OK);
  assert_int_equal(pod_purse_take(purse, &two, 1000), MO_INVALID);
  assert_error("budget of $10.00");
  assert_false(pod_ledger_get(ledger, "two", &two));
  two = (pod_run){.key = "two", .name = POD_PREFIX "2", .id = "p2", .price = 36, .created = 1000, .expected = 4};
  two.gpus = two.pods = 1, two.deadline = 9000;
  assert_int_equal(pod_purse_take(purse, &two, 1000), MO_OK);
  strcpy(one.id, "p1");
  assert_int_equal(pod_ledger_put(ledger, &one), MO_OK);
  assert_true(pod_purse_spent(purse, 1400) == 8);
  assert_int_equal(pod_purse_check(purse, 1199, false), MO_OK); /* $6.00 are kept for five minutes of both */
  assert_int_equal(pod_purse_check(purse, 1201, false), MO_FAILED);
  assert_error("budget is spent");
  pod_purse_close(purse);
  assert_int_equal(pod_purse_open(&purse, ledger, 0, keys, 2), MO_OK);
  assert_int_equal(pod_purse_check(purse, 1e9, true), MO_OK);
  pod_purse_close(purse);
  pod_ledger_close(ledger);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_what_is_put_is_there_again, begin, end),
      cmocka_unit_test_setup_teardown(test_forgotten_and_for_reading, begin, end),
      cmocka_unit_test_setup_teardown(test_values_that_make_no_sense, begin, end),
      cmocka_unit_test(test_clean),
      cmocka_unit_test_setup_teardown(test_nothing_is_made_by_reading, begin, end),
      cmocka_unit_test_setup_teardown(test_one_driver_at_a_time, begin, end),
      cmocka_unit_test_setup_teardown(test_a_damaged_file_is_an_error, begin, end),
      cmocka_unit_test_setup_teardown(test_a_run_without_a_field_makes_no_sense, begin, end),
      cmocka_unit_test_setup_teardown(test_killed_while_it_writes, begin, end),
      cmocka_unit_test_setup_teardown(test_a_folder_that_cannot_be_made, begin, end),
      cmocka_unit_test(test_cost),
      cmocka_unit_test_setup_teardown(test_budget_is_for_all_runs_together, begin, end),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
