/* What moe-pod's runs are made of: checksums, quoting, the pod's answers, progress from a log, names of runs. */
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

#include "pod/files.h"
#include "pod/progress.h"
#include "pod/remote.h"

/* FIPS 180-4's examples, in pieces of every size. */
static void test_sha256(void **state) {
  (void)state;
  static const struct {
    const char *text, *sum;
  } examples[] = {{"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
                  {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
                  {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                   "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"}};
  for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
    for (size_t piece = 1; piece < 60; piece++) {
      char hex[POD_SHA256_BYTES];
      pod_sha256 sum;
      size_t n = strlen(examples[i].text);
      pod_sha256_begin(&sum);
      for (size_t at = 0; at < n; at += piece)
        pod_sha256_add(&sum, examples[i].text + at, n - at < piece ? n - at : piece);
      pod_sha256_end(&sum, hex);
      assert_string_equal(hex, examples[i].sum);
    }
}

static void test_files(void **state) {
  (void)state;
  char folder[] = "/tmp/moe-pod-files-XXXXXX", path[POD_PATH_BYTES], hex[POD_SHA256_BYTES], command[100], *text = NULL;
  size_t bytes = 0;
  assert_non_null(mkdtemp(folder));
  assert_int_equal(pod_path(path, "%s/x/y/z", folder), MO_OK);
  assert_int_equal(pod_make_folder_of(path), MO_OK);
  assert_int_equal(pod_write_durably(path, "abc", 3, 0600), MO_OK);
  assert_int_equal(pod_sha256_file(hex, path), MO_OK);
  assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  assert_int_equal(pod_read_file(&text, &bytes, path, 2), MO_OK); /* its end */
  assert_string_equal(text, "bc");
  free(text);
  assert_int_equal(pod_make_folders(path), MO_FAILED); /* a file is in the way */
  assert_non_null(strstr(mo_error_message(), "x/y/z"));
  mo_error_clear();
  assert_int_equal(pod_read_file(&text, &bytes, folder, 0), MO_OK);
  free(text);
  char *huge = calloc(1, 5000);
  memset(huge, 'a', 4999);
  assert_int_equal(pod_path(path, "%s", huge), MO_INVALID);
  mo_error_clear();
  free(huge);
  snprintf(command, sizeof command, "rm -rf %s", folder);
  assert_int_equal(system(command), 0);
}

/* A shell takes apart again what was put together. */
static void test_quoting(void **state) {
  (void)state;
  const char *words[] = {"printf", "<%s>", "plain-1.2/x", "two words", "", "it's", "\"$HOME\" `id` \\ *", "-e", "a\nb"};
  char *command = pod_quote(words, 9), said[200] = "";
  assert_non_null(command);
  FILE *pipe = popen(command, "r");
  assert_non_null(pipe);
  size_t n = fread(said, 1, sizeof said - 1, pipe);
  said[n] = '\0';
  assert_int_equal(pclose(pipe), 0);
  assert_string_equal(said, "<plain-1.2/x><two words><><it's><\"$HOME\" `id` \\ *><-e><a\nb>");
  free(command);
}

static void test_marks(void **state) {
  (void)state;
  static const char output[] =
      "Warning: something\nnot @moe-pod dir /x\n@moe-pod dir /a/b known\n@moe-pod ended 0 12\nlog\n";
  const char *mark = pod_mark(output, "dir");
  assert_non_null(mark);
  assert_memory_equal(mark, "/a/b known\n", 11);
  assert_non_null(pod_mark(output, "ended"));
  assert_null(pod_mark(output, "end"));
  assert_null(pod_mark(output, "log"));
  assert_memory_equal(pod_mark("@moe-pod done", ""), "done", 5);
  assert_non_null(pod_mark("@moe-pod done", "done"));
  assert_null(pod_mark("", ""));
}

static void test_progress(void **state) {
  (void)state;
  pod_progress p;
  pod_progress_parse("", &p);
  assert_int_equal(p.layers, 0);
  pod_progress_parse(
      "moe-outliers: layer 3/16 done  rank 0  19 %, 4.2 of 14 GB read, 5.21 GB/s, 37 s, ETA 112 s\n"
      "moe-outliers: layer 5/16 done  rank 1  31 %, 6.2 of 14 GB read, 5.5 GB/s, 47 s, ETA 1 h 52 min\n"
      "moe-outliers: nothing read for 12 s, byte 4096 of x: check the storage\n",
      &p);
  assert_int_equal(p.layer, 5);
  assert_int_equal(p.layers, 16);
  assert_true(p.share == 0.31 && p.rate == 5.5);
  assert_string_equal(p.left, "1 h 52 min");
  pod_progress_parse("moe-outliers: working: 7/16 layers done  44 %, 9 of 14 GB read, 0.25 GB/s, 60 s, ETA ?", &p);
  assert_int_equal(p.layer, 7);
  assert_true(p.share == 0.44 && p.rate == 0.25);
  pod_progress_parse("layer x/16 done\nlayer 1/\n", &p);
  assert_int_equal(p.layers, 0);
}

static void test_states(void **state) {
  (void)state;
  pod_run run = {.step = STEP_ENDED};
  assert_string_equal(pod_run_state(&run, false), "done");
  strcpy(run.error, "x");
  assert_string_equal(pod_run_state(&run, true), "failed");
  run = (pod_run){.step = STEP_NAMED};
  assert_string_equal(pod_run_state(&run, true), "waiting");
  run = (pod_run){.step = STEP_STARTED, .id = "x", .attempts = 1};
  assert_string_equal(pod_run_state(&run, true), "running");
  assert_string_equal(pod_run_state(&run, false), "left alone");
}

static void test_names_of_runs(void **state) {
  (void)state;
  assert_true(pod_is_meant("06_glm_45_air", "06_glm_45_air"));
  assert_true(pod_is_meant("06", "06_glm_45_air"));
  assert_true(pod_is_meant("configs/06_glm_45_air.cfg", "06_glm_45_air"));
  assert_false(pod_is_meant("0", "06_glm_45_air"));
  assert_false(pod_is_meant("06_glm", "06_glm_45_air"));
  assert_false(pod_is_meant("", "_x"));
  assert_false(pod_is_meant("demo2", "demo"));
}

static void test_plain_names(void **state) {
  (void)state;
  assert_true(pod_is_plain("configs/a-b_1.2+3=4@5"));
  assert_false(pod_is_plain("a b"));
  assert_false(pod_is_plain("-rf"));
  assert_false(pod_is_plain("a'b"));
  assert_false(pod_is_plain("$x"));
  assert_false(pod_is_plain(""));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sha256),        cmocka_unit_test(test_files),       cmocka_unit_test(test_quoting),
      cmocka_unit_test(test_marks),         cmocka_unit_test(test_progress),    cmocka_unit_test(test_states),
      cmocka_unit_test(test_names_of_runs), cmocka_unit_test(test_plain_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
