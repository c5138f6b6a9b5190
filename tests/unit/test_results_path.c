/* mo_results_check_path: what is refused before anything is computed, and that nothing stays behind. */
#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>

#include "test_results_fixture.h"

static void touch(const char *path) {
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fclose(file);
}

static int count_entries(const char *folder) {
  int n = 0;
  DIR *directory = opendir(folder);
  assert_non_null(directory);
  while (readdir(directory)) n++;
  closedir(directory);
  return n;
}

static void assert_refused(const char *path, bool overwrite, const char *text) {
  assert_int_equal(mo_results_check_path(path, overwrite), MO_INVALID);
  assert_error(text);
}

static int make_folder(void **state) {
  (void)state;
  return mkdir("folder", 0777);
}

static int remove_folder(void **state) {
  (void)state;
  return rmdir("folder");
}

static void new_names_are_accepted(void **state) {
  (void)state;
  int before = count_entries("."), inside = count_entries("folder");
  assert_ok(mo_results_check_path("new.h5", false));
  assert_ok(mo_results_check_path("new.h5", true));
  assert_ok(mo_results_check_path("./folder/new.h5", false));
  assert_ok(mo_results_check_path("folder//new.h5", false));
  assert_int_equal(count_entries("."), before);
  assert_int_equal(count_entries("folder"), inside);
}

static void existing_files_need_overwrite(void **state) {
  (void)state;
  touch("folder/old.h5");
  assert_refused("folder/old.h5", false, "the result file exists (folder/old.h5)");
  assert_refused("folder/old.h5", false, "output.overwrite = true");
  assert_ok(mo_results_check_path("folder/old.h5", true));
  assert_int_equal(unlink("folder/old.h5"), 0);
  assert_int_equal(symlink("nowhere", "folder/link.h5"), 0);
  assert_refused("folder/link.h5", false, "the result file exists (folder/link.h5)");
  assert_int_equal(unlink("folder/link.h5"), 0);
}

static void leftover_partial_files_are_accepted(void **state) {
  (void)state;
  touch("folder/new.h5.partial");
  assert_ok(mo_results_check_path("folder/new.h5", false));
  assert_int_equal(unlink("folder/new.h5.partial"), 0);
}

static void folders_are_refused(void **state) {
  (void)state;
  for (int overwrite = 0; overwrite < 2; overwrite++) {
    assert_refused("folder", overwrite, "is a folder (folder)");
    assert_refused("folder/", overwrite, "is a folder (folder/)");
    assert_refused("", overwrite, "is empty");
  }
  assert_int_equal(mkdir("folder/x.h5.partial", 0777), 0);
  assert_refused("folder/x.h5", true, "is a folder (folder/x.h5.partial)");
  assert_int_equal(rmdir("folder/x.h5.partial"), 0);
}

static void devices_are_refused(void **state) {
  (void)state;
  assert_refused("/dev/null", true, "not a plain file (/dev/null)");
  assert_int_equal(mkfifo("folder/pipe", 0666), 0);
  assert_refused("folder/pipe", true, "not a plain file (folder/pipe)");
  assert_int_equal(unlink("folder/pipe"), 0);
}

static void missing_folders_are_named(void **state) {
  (void)state;
  assert_refused("no/such/new.h5", false,
                 "the output folder does not exist (no/such): create it with mkdir -p \"no/such\"");
  assert_false(exists("no"));
  touch("folder/file");
  assert_refused("folder/file/new.h5", false, "(folder/file)");
  assert_refused("folder/file/deeper/new.h5", false, "(folder/file/deeper");
  assert_int_equal(unlink("folder/file"), 0);
}

static void unwritable_folders_are_named(void **state) {
  (void)state;
  /* Root ignores mode bits, but nobody makes files in /proc. */
  assert_refused("/proc/new.h5", false, "cannot write to the output folder (/proc: ");
}

static void long_names_are_refused(void **state) {
  (void)state;
  char name[256];
  memset(name, 'x', sizeof name - 1);
  name[250] = '\0'; /* fits, but not with ".partial" */
  assert_refused(name, false, "File name too long");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(new_names_are_accepted),
      cmocka_unit_test(existing_files_need_overwrite),
      cmocka_unit_test(leftover_partial_files_are_accepted),
      cmocka_unit_test(folders_are_refused),
      cmocka_unit_test(devices_are_refused),
      cmocka_unit_test(missing_folders_are_named),
      cmocka_unit_test(unwritable_folders_are_named),
      cmocka_unit_test(long_names_are_refused),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
