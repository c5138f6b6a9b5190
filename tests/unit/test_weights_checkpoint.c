/* Checkpoint folders: one file, shards behind an index, links, and what must be refused. */
#include <sys/stat.h>

#include "test_weights_fixture.h"

#define INDEX "model.safetensors.index.json"
#define SINGLE "model.safetensors"

static const fixture_tensor a = {"a", "F32", 4, 2, {3, 5}}, b = {"b", "BF16", 2, 1, {7}}, c = {"c", "U8", 1, 1, {11}};

static void refused(const char *folder, const char *part) {
  mo_checkpoint *checkpoint;
  expect_error(mo_checkpoint_open(&checkpoint, folder), MO_INVALID, part);
  assert_null(checkpoint);
}

static mo_checkpoint *opened(const char *folder) {
  mo_checkpoint *checkpoint;
  expect_ok(mo_checkpoint_open(&checkpoint, folder));
  return checkpoint;
}

static void holds(const mo_checkpoint *checkpoint, const fixture_tensor *t, const char *file) {
  const mo_tensor *found = mo_checkpoint_find(checkpoint, t->name);
  assert_non_null(found);
  assert_int_equal(found->bytes, fixture_bytes(t));
  assert_non_null(strstr(mo_checkpoint_file(checkpoint, found->file), file));
  uint8_t buffer[256];
  expect_ok(mo_checkpoint_read(checkpoint, found->file, found->offset, found->bytes, buffer));
  assert_true(fixture_equal(t->name, buffer, 0, found->bytes));
}

/* Two shards: x with a and c, y with b. */
static char *two_shards(void) {
  char *folder = fixture_folder();
  fixture_tensor x[] = {a, c};
  fixture_safetensors(folder, "x.safetensors", x, 2);
  fixture_safetensors(folder, "y.safetensors", &b, 1);
  return folder;
}

static void index_is(const char *folder, const char *map) {
  char text[1000];
  snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":85},\"weight_map\":{%s}}", map);
  fixture_text(folder, INDEX, text);
}

#define X(name) "\"" name "\":\"x.safetensors\""
#define Y(name) "\"" name "\":\"y.safetensors\""

static void single_file(void **state) {
  (void)state;
  char *folder = fixture_folder();
  fixture_tensor all[] = {c, a, b};
  fixture_safetensors(folder, SINGLE, all, 3);
  mo_checkpoint *checkpoint = opened(folder);
  assert_int_equal(mo_checkpoint_tensor_count(checkpoint), 3);
  assert_string_equal(mo_checkpoint_tensor(checkpoint, 0)->name, "a");
  assert_string_equal(mo_checkpoint_tensor(checkpoint, 2)->name, "c");
  assert_string_equal(mo_checkpoint_directory(checkpoint), folder);
  assert_null(mo_checkpoint_find(checkpoint, "d"));
  for (int i = 0; i < 3; i++) holds(checkpoint, &all[i], SINGLE);
  mo_checkpoint_close(checkpoint);
  fixture_remove(folder);
}

static void shards_behind_an_index(void **state) {
  (void)state;
  char *folder = two_shards();
  index_is(folder, X("a") "," Y("b") "," X("c"));
  mo_checkpoint *checkpoint = opened(folder);
  assert_int_equal(mo_checkpoint_tensor_count(checkpoint), 3);
  assert_int_equal(mo_checkpoint_ignored(checkpoint), 0);
  holds(checkpoint, &a, "x.safetensors");
  holds(checkpoint, &b, "y.safetensors");
  holds(checkpoint, &c, "x.safetensors");
  mo_checkpoint_close(checkpoint);
  fixture_remove(folder);
}

static void links_are_followed(void **state) {
  (void)state;
  char *folder = fixture_folder(), path[512];
  fixture_safetensors(folder, "blob", &a, 1);
  fixture_path(path, folder, SINGLE);
  assert_int_equal(symlink("blob", path), 0);
  mo_checkpoint *checkpoint = opened(folder);
  holds(checkpoint, &a, SINGLE);
  mo_checkpoint_close(checkpoint);
  fixture_remove(folder);
}

static void tensors_outside_the_index_are_counted(void **state) {
  (void)state;
  char *folder = two_shards();
  index_is(folder, X("a") "," Y("b"));
  mo_checkpoint *checkpoint = opened(folder);
  assert_int_equal(mo_checkpoint_tensor_count(checkpoint), 2);
  assert_int_equal(mo_checkpoint_ignored(checkpoint), 1);
  assert_null(mo_checkpoint_find(checkpoint, "c"));
  holds(checkpoint, &b, "y.safetensors");
  mo_checkpoint_close(checkpoint);
  fixture_remove(folder);
}

static void index_against_shards(void **state) {
  (void)state;
  char *folder = two_shards();
  index_is(folder, X("a") "," X("b"));
  refused(folder, "tensor \"b\" is not in x.safetensors");
  index_is(folder, X("a") "," X("b") "," Y("c"));
  refused(folder, "tensor \"b\" is in y.safetensors, the index says x.safetensors");
  index_is(folder, X("a") "," Y("b") "," X("d"));
  refused(folder, "tensor \"d\" is not in x.safetensors");
  fixture_tensor twice[] = {b, c};
  fixture_safetensors(folder, "y.safetensors", twice, 2);
  index_is(folder, X("a") "," Y("b") "," X("c"));
  refused(folder, "duplicate tensor \"c\" in x.safetensors and y.safetensors");
  fixture_remove(folder);
}

static void missing_shard(void **state) {
  (void)state;
  char *folder = two_shards();
  index_is(folder, X("a") ",\"z\":\"z.safetensors\"");
  refused(folder, "shard z.safetensors is missing");
  index_is(folder, X("a") ",\"z\":\"z.safetensors\"");
  refused(folder, "hf download MODEL z.safetensors");
  fixture_remove(folder);
}

static void shard_names_stay_in_the_folder(void **state) {
  (void)state;
  static const char *const names[] = {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", ""};
  char *folder = two_shards(), map[200];
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    snprintf(map, sizeof map, "\"a\":\"%s\"", names[i]);
    index_is(folder, map);
    refused(folder, "no file name in its folder");
  }
  fixture_remove(folder);
}

static void bad_index(void **state) {
  (void)state;
  char *folder = two_shards();
  fixture_text(folder, INDEX, "");
  refused(folder, "no JSON");
  fixture_text(folder, INDEX, "{\"weight_map\":");
  refused(folder, "no JSON");
  fixture_text(folder, INDEX, "[]");
  refused(folder, "no \"weight_map\"");
  fixture_text(folder, INDEX, "{\"weight_map\":{}}");
  refused(folder, "no \"weight_map\"");
  index_is(folder, "\"a\":1");
  refused(folder, "entry \"a\" is no file name");
  index_is(folder, X("a") "," Y("a"));
  refused(folder, "distinct names");
  fixture_remove(folder);
}

static void no_safetensors(void **state) {
  (void)state;
  refused("weights-no-such-folder", "cannot open the checkpoint folder");
  char *folder = fixture_folder(), path[512];
  refused(folder, "neither " INDEX " nor " SINGLE);
  fixture_text(folder, "pytorch_model.bin", "x");
  refused(folder, "convert it");
  fixture_text(folder, "model-00001-of-00002.safetensors", "x");
  refused(folder, "fetch these files too");
  fixture_path(path, folder, "pytorch_model.bin");
  refused(path, "is no folder");
  fixture_remove(folder);
}

static void not_regular_files(void **state) {
  (void)state;
  char *folder = fixture_folder(), path[512];
  fixture_path(path, folder, SINGLE);
  assert_int_equal(mkfifo(path, 0600), 0);
  refused(folder, "not a regular file");
  assert_int_equal(unlink(path), 0);
  assert_int_equal(mkdir(path, 0700), 0);
  refused(folder, "not a regular file");
  fixture_remove(folder);
}

static void damaged_files(void **state) {
  (void)state;
  char *folder = fixture_folder(), path[512];
  fixture_text(folder, SINGLE, "");
  refused(folder, "the file is empty");
  fixture_text(folder, SINGLE, "1234567");
  refused(folder, "only 7 bytes");
  fixture_text(folder, SINGLE, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n");
  refused(folder, "git-lfs pointer");
  fixture_text(folder, SINGLE, "\xff\xff\xff\xff\xff\xff\xff\xff{}");
  refused(folder, "exceeds the limit");
  fixture_file(folder, SINGLE, "\x01\xe1\xf5\x05\0\0\0\0{}", 10);
  refused(folder, "header length 100000001 exceeds the limit");
  fixture_file(folder, SINGLE, "\x03\0\0\0\0\0\0\0{}", 10);
  refused(folder, "the header has 3 bytes but the file only 10");
  fixture_file(folder, SINGLE, "\0\0\0\0\0\0\0\0", 8);
  refused(folder, "does not start with '{'");
  fixture_header(folder, SINGLE, "{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}", 8);
  refused(folder, "truncated");
  fixture_header(folder, SINGLE, "{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}", 12);
  refused(folder, "3 trailing bytes");
  fixture_path(path, folder, SINGLE);
  fixture_safetensors(folder, SINGLE, &a, 1);
  assert_int_equal(truncate(path, 100), 0);
  refused(folder, path); /* the line names the file */
  fixture_remove(folder);
}

/* Every prefix of a valid file is refused. */
static void every_truncation(void **state) {
  (void)state;
  char *folder = fixture_folder(), path[512];
  fixture_safetensors(folder, SINGLE, &b, 1);
  fixture_path(path, folder, SINGLE);
  struct stat info;
  assert_int_equal(stat(path, &info), 0);
  for (off_t n = info.st_size - 1; n >= 0; n--) {
    assert_int_equal(truncate(path, n), 0);
    refused(folder, path);
  }
  fixture_remove(folder);
}

static void reading_a_file_that_shrank(void **state) {
  (void)state;
  char *folder = fixture_folder(), path[512];
  fixture_safetensors(folder, SINGLE, &a, 1);
  mo_checkpoint *checkpoint = opened(folder);
  const mo_tensor *t = mo_checkpoint_find(checkpoint, "a");
  fixture_path(path, folder, SINGLE);
  assert_int_equal(truncate(path, t->offset + 10), 0);
  uint8_t buffer[256];
  char expected[600];
  snprintf(expected, sizeof expected, "file %s ends at byte %d, expected %d", path, (int)t->offset + 10,
           (int)(t->offset + t->bytes));
  expect_error(mo_checkpoint_read(checkpoint, t->file, t->offset, t->bytes, buffer), MO_FAILED, expected);
  expect_ok(mo_checkpoint_read(checkpoint, t->file, t->offset, 10, buffer));
  mo_checkpoint_close(checkpoint);
  fixture_remove(folder);
}

static void many_tensors(void **state) {
  (void)state;
  enum { N = 76000 };
  char *folder = fixture_folder();
  fixture_tensor *all = calloc(N, sizeof *all);
  assert_non_null(all);
  for (int i = 0; i < N; i++) {
    all[i] = (fixture_tensor){.dtype = "U8", .element = 1, .n_dims = 1, .shape = {1}};
    snprintf(all[i].name, sizeof all[i].name, "model.layers.%d.mlp.experts.%d.weight", i / 1000, i % 1000);
  }
  fixture_safetensors(folder, SINGLE, all, N);
  mo_checkpoint *checkpoint = opened(folder);
  assert_int_equal(mo_checkpoint_tensor_count(checkpoint), N);
  for (int i = 0; i < N; i += 997) holds(checkpoint, &all[i], SINGLE);
  mo_checkpoint_close(checkpoint);
  free(all);
  fixture_remove(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(single_file),
      cmocka_unit_test(shards_behind_an_index),
      cmocka_unit_test(links_are_followed),
      cmocka_unit_test(tensors_outside_the_index_are_counted),
      cmocka_unit_test(index_against_shards),
      cmocka_unit_test(missing_shard),
      cmocka_unit_test(shard_names_stay_in_the_folder),
      cmocka_unit_test(bad_index),
      cmocka_unit_test(no_safetensors),
      cmocka_unit_test(not_regular_files),
      cmocka_unit_test(damaged_files),
      cmocka_unit_test(every_truncation),
      cmocka_unit_test(reading_a_file_that_shrank),
      cmocka_unit_test(many_tensors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
