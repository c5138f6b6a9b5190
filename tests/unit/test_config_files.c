/* Files that are no config, and includes that go wrong. */
#include <fcntl.h>
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

#include "moe_outliers/config.h"

/* Each test works in a folder of its own, which is the working directory then. */
static int enter_folder(void **state) {
  char *folder = strdup("/tmp/mo_config_XXXXXX");
  *state = folder;
  return folder && mkdtemp(folder) && chdir(folder) == 0 ? 0 : -1;
}

static int leave_folder(void **state) {
  static const char *const names[] = {"a.cfg", "b.cfg", "pipe"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) (void)unlink(names[i]);
  (void)rmdir("folder");
  int status = chdir("/") == 0 && rmdir(*state) == 0 ? 0 : -1;
  free(*state);
  return status;
}

static void write_file(const char *path, const char *data, size_t size) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static void write_text(const char *path, const char *text) { write_file(path, text, strlen(text)); }

static void expect_refused(const char *path, const char *beginning) {
  mo_config config;
  assert_int_equal(mo_config_read(&config, path, NULL, 0, false), MO_INVALID);
  char message[1000];
  snprintf(message, sizeof message, "%s", mo_error_message());
  mo_error_clear();
  /* libconfig 1.7 puts the folder of includes before their names. */
  char *folder = strstr(message, "(./");
  if (folder && !strstr(beginning, "(./")) memmove(folder + 1, folder + 3, strlen(folder + 3) + 1);
  if (strncmp(message, beginning, strlen(beginning)) != 0) fail_msg("got:      %s\nexpected: %s", message, beginning);
}

static void test_absent(void **state) {
  (void)state;
  expect_refused("absent.cfg", "config file cannot be read: No such file or directory (absent.cfg): check the path");
  expect_refused("", "config file cannot be read: No such file or directory ()");
}

static void test_unreadable(void **state) {
  (void)state;
  write_text("a.cfg", "");
  assert_int_equal(chmod("a.cfg", 0), 0);
  if (access("a.cfg", R_OK) == 0) skip(); /* root reads everything */
  expect_refused("a.cfg", "config file cannot be read: Permission denied (a.cfg)");
}

static void test_folder(void **state) {
  (void)state;
  assert_int_equal(mkdir("folder", 0700), 0);
  expect_refused("folder", "config file is a folder (folder): give a file");
}

static void test_pipe_does_not_block(void **state) {
  (void)state;
  assert_int_equal(mkfifo("pipe", 0600), 0);
  expect_refused("pipe", "config file is not a regular file (pipe)");
  expect_refused("/dev/zero", "config file is not a regular file (/dev/zero)");
}

static void test_huge(void **state) {
  (void)state;
  write_text("a.cfg", "");
  assert_int_equal(truncate("a.cfg", (1 << 20) + 1), 0);
  expect_refused("a.cfg", "config file has 1048577 bytes (a.cfg): give one of at most 1048576 bytes");
}

static void test_zero_byte(void **state) {
  (void)state;
  write_file("a.cfg", "model: {\0};", 11);
  expect_refused("a.cfg", "config file has a zero byte (a.cfg, byte 8): give a text file");
}

static void test_empty(void **state) {
  (void)state;
  write_text("a.cfg", "");
  expect_refused("a.cfg", "missing key \"path\" in section \"model\" (a.cfg)");
}

static void test_error_in_an_included_file_names_it(void **state) {
  (void)state;
  write_text("a.cfg", "\n@include \"b.cfg\"\n");
  write_text("b.cfg", "\n\nengine: { threds = 1; };");
  expect_refused("a.cfg", "unknown key \"threds\" in section \"engine\" (b.cfg:3): did you mean \"threads\"?");
  write_text("b.cfg", "\nengine: { ;");
  expect_refused("a.cfg", "syntax error (b.cfg:2)");
}

static void test_line_after_an_include(void **state) {
  (void)state;
  write_text("a.cfg", "@include \"b.cfg\"\n\nfoo = 1;");
  write_text("b.cfg", "model: {\n path = \"m\";\n};\n\n\n\n");
  expect_refused("a.cfg", "unknown section \"foo\" (a.cfg:3)");
}

static void test_absent_include(void **state) {
  (void)state;
  write_text("a.cfg", "\n@include \"b.cfg\"\n");
  expect_refused("a.cfg", "cannot open include file (a.cfg:2): give a path relative to the folder of the config file");
}

static void test_include_of_a_folder(void **state) {
  (void)state;
  assert_int_equal(mkdir("folder", 0700), 0);
  write_text("a.cfg", "\n@include \"folder\"\n");
  expect_refused("a.cfg", "config file is a folder (./folder)");
}

static void test_include_with_a_backslash(void **state) {
  (void)state;
  write_text("a.cfg", "\n@include \"folder\\b.cfg\"\n");
  expect_refused("a.cfg", "backslash in an @include path (a.cfg:2): write / between folders");
}

static void test_include_loop(void **state) {
  (void)state;
  write_text("a.cfg", "@include \"b.cfg\"\n");
  write_text("b.cfg", "@include \"a.cfg\"\n");
  expect_refused("a.cfg", "include file nesting too deep (");
}

static void test_include_that_doubles_each_time(void **state) {
  (void)state;
  write_text("a.cfg", "@include \"a.cfg\"\n@include \"a.cfg\"\n");
  expect_refused("a.cfg", "more than 64 includes (");
}

static void test_include_in_a_comment_is_none(void **state) {
  (void)state;
  write_text("a.cfg", "/*\n@include \"absent.cfg\"\n*/\n# @include \"absent.cfg\"\nmodel: { path = \"m\"; };\n");
  mo_config config;
  assert_int_equal(mo_config_read(&config, "a.cfg", NULL, 0, false), MO_OK);
  mo_config_free(&config);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, enter_folder, leave_folder)

int main(void) {
  const struct CMUnitTest tests[] = {
      IN_FOLDER(test_absent),
      IN_FOLDER(test_unreadable),
      IN_FOLDER(test_folder),
      IN_FOLDER(test_pipe_does_not_block),
      IN_FOLDER(test_huge),
      IN_FOLDER(test_zero_byte),
      IN_FOLDER(test_empty),
      IN_FOLDER(test_error_in_an_included_file_names_it),
      IN_FOLDER(test_line_after_an_include),
      IN_FOLDER(test_absent_include),
      IN_FOLDER(test_include_of_a_folder),
      IN_FOLDER(test_include_with_a_backslash),
      IN_FOLDER(test_include_loop),
      IN_FOLDER(test_include_that_doubles_each_time),
      IN_FOLDER(test_include_in_a_comment_is_none),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
