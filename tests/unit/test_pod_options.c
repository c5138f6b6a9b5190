/* The command line: options, operands, the configs that --models means, and errors. */
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

#include "pod/cli.h"

static mo_status nothing(const pod_settings *settings, const pod_options *options) {
  (void)settings, (void)options;
  return MO_OK;
}

static const pod_command SWEEP = {"sweep", nothing, "smpxbhclktnj", POD_ANY_NAMES, "config file", true, true};
static const pod_command RUN = {"run", nothing, "smxb", POD_ONE_NAME, "config file", true, true};
static const pod_command END = {"terminate", nothing, "aj", POD_SOME_NAMES, "id", false, true};
static const pod_command LIST = {"list", nothing, "j", POD_NO_NAMES, NULL, false, true};

/* words: separated by single blanks. */
static mo_status read_words(pod_arguments *arguments, const pod_command *command, const char *words) {
  static char copy[1024];
  char *argv[40] = {(char *)"command"}, *rest = NULL;
  int argc = 1;
  snprintf(copy, sizeof copy, "%s", words);
  for (char *word = strtok_r(copy, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) argv[argc++] = word;
  return pod_arguments_read(arguments, command, argc, argv);
}

static pod_arguments good(const pod_command *command, const char *words) {
  pod_arguments arguments;
  if (read_words(&arguments, command, words) != MO_OK) fail_msg("%s: %s", words, mo_error_message());
  return arguments;
}

static void bad(const pod_command *command, const char *words, const char *error) {
  pod_arguments arguments;
  assert_int_equal(read_words(&arguments, command, words), MO_INVALID);
  if (strcmp(mo_error_message(), error) != 0) fail_msg("got \"%s\", not \"%s\"", mo_error_message(), error);
  mo_error_clear();
  pod_arguments_free(&arguments);
}

static void expect_names(const char *words, const char *names) {
  pod_arguments arguments = good(&SWEEP, words);
  char text[1024] = "";
  for (int i = 0; i < arguments.options.n_names; i++) {
    strcat(text, i ? " " : "");
    strcat(text, arguments.options.names[i]);
  }
  assert_string_equal(text, names);
  pod_arguments_free(&arguments);
}

static void test_options(void **state) {
  (void)state;
  pod_arguments arguments = good(
      &SWEEP,
      "a.cfg --parallel 3 --max-price=0.5 -s data.skip=1 --budget 20 --json --set model.name=x --community -n --slurm "
      "--keep --terminate-on-interrupt --max-hours 2.5 -- -b.cfg");
  const pod_options *o = &arguments.options;
  assert_int_equal(o->parallel, 3);
  assert_true(o->max_price == 0.5 && o->budget == 20 && o->max_hours == 2.5);
  assert_true(o->json && o->community && o->dry_run && o->slurm && o->keep && o->terminate_on_interrupt);
  assert_false(o->watch || o->follow || o->all || o->yes);
  assert_int_equal(o->n_overrides, 2);
  assert_string_equal(o->overrides[0], "data.skip=1");
  assert_string_equal(o->overrides[1], "model.name=x");
  assert_int_equal(o->n_names, 2);
  assert_string_equal(o->names[1], "-b.cfg");
  pod_arguments_free(&arguments);
  arguments = good(&LIST, "");
  assert_int_equal(arguments.options.parallel, 1);
  assert_true(arguments.options.interval == 10);
  pod_arguments_free(&arguments);
  arguments = good(&LIST, "--json --help --nonsense");
  assert_true(arguments.help);
  pod_arguments_free(&arguments);
  arguments = good(&END, "--all");
  assert_true(arguments.options.all && arguments.options.n_names == 0);
  pod_arguments_free(&arguments);
}

static void test_models(void **state) {
  (void)state;
  expect_names("", "configs/01_a.cfg configs/02_b.cfg configs/11_c.cfg");
  expect_names("--models 02 11", "configs/02_b.cfg configs/11_c.cfg");
  expect_names("--models 02,01 --json", "configs/02_b.cfg configs/01_a.cfg");
  expect_names("--models=demo x.cfg", "x.cfg configs/demo.cfg");
  expect_names("x.cfg --models 01 y.cfg", "x.cfg y.cfg configs/01_a.cfg");
  expect_names("--models 01_a", "configs/01_a.cfg");
  bad(&SWEEP, "--models 03", "no config is called \"03\" (--models, configs/): give a number as 02, or a name");
  bad(&SWEEP, "--models 0", "no config is called \"0\" (--models, configs/): give a number as 02, or a name");
  bad(&RUN, "--models 01 02", "second config file \"configs/02_b.cfg\" (moe-pod run): give one");
  assert_int_equal(chdir("elsewhere"), 0);
  bad(&SWEEP, "", "no configs/NN_NAME.cfg here (moe-pod sweep): name config files, or change to the repository");
  assert_int_equal(chdir(".."), 0);
}

static void test_errors(void **state) {
  (void)state;
  bad(&SWEEP, "--nonsense", "unknown option --nonsense (moe-pod sweep): see moe-pod sweep --help");
  bad(&RUN, "a.cfg --parallel 2", "unknown option --parallel (moe-pod run): see moe-pod run --help");
  bad(&RUN, "a.cfg -q", "unknown option -q (moe-pod run): see moe-pod run --help");
  bad(&RUN, "a.cfg --max-price", "option --max-price has no value (moe-pod run): give dollars per GPU and hour");
  bad(&RUN, "a.cfg --max-price=-1",
      "--max-price \"-1\" is no number above 0 (moe-pod run): give dollars per GPU and hour");
  bad(&RUN, "a.cfg --budget 1x", "--budget \"1x\" is no number above 0 (moe-pod run): give dollars");
  bad(&SWEEP, "--parallel 0",
      "--parallel \"0\" is out of range or no number (moe-pod sweep): give a number of runs from 1 to 64");
  bad(&LIST, "--json=1", "option --json takes no value (moe-pod list): remove \"1\"");
  bad(&LIST, "x", "unexpected \"x\" (moe-pod list): remove it");
  bad(&RUN, "", "no config file (moe-pod run): give one, see moe-pod run --help");
  bad(&RUN, "a.cfg b.cfg", "second config file \"b.cfg\" (moe-pod run): give one");
  bad(&END, "", "no id (moe-pod terminate): give one, see moe-pod terminate --help");
}

/* Every command has a text of its own with examples. */
static void test_usage(void **state) {
  (void)state;
  static const char *const names[] = {"gpus",   "plan", "run",   "sweep",     "list",
                                      "status", "logs", "fetch", "terminate", "cleanup"};
  for (int i = -1; i < 10; i++) {
    char *text = NULL, start[64];
    size_t size;
    FILE *out = open_memstream(&text, &size);
    pod_print_usage(i < 0 ? NULL : names[i], out);
    fclose(out);
    snprintf(start, sizeof start, "Usage: moe-pod %s", i < 0 ? "COMMAND" : names[i]);
    assert_memory_equal(text, start, strlen(start));
    assert_non_null(strstr(text, "\nExamples:\n  moe-pod "));
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1)
      if (strcspn(line, "\n") > 120) fail_msg("a line of %zu characters: %s", strcspn(line, "\n"), line);
    free(text);
  }
}

static int make_folder(void **state) {
  (void)state;
  static const char *const files[] = {"01_a", "02_b", "11_c", "demo", "common", "dense_01_x"};
  (void)mkdir("configs", 0777);
  (void)mkdir("elsewhere", 0777);
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    char path[64];
    snprintf(path, sizeof path, "configs/%s.cfg", files[i]);
    FILE *file = fopen(path, "w");
    if (!file) return -1;
    fclose(file);
  }
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_options),
      cmocka_unit_test(test_models),
      cmocka_unit_test(test_errors),
      cmocka_unit_test(test_usage),
  };
  return cmocka_run_group_tests(tests, make_folder, NULL);
}
