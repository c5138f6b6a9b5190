/* mo_results_read refuses everything but a finished result file, with one clear line and without crashing. */
#include <stdio.h>

#include "test_results_fixture.h"

#define PATH "good.h5"
#define BAD "bad.h5"

static unsigned char *good; /* the bytes of a good file */
static size_t good_bytes;

static void store(const unsigned char *data, size_t bytes) {
  FILE *file = fopen(BAD, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, bytes, file), bytes);
  assert_int_equal(fclose(file), 0);
}

static void assert_refused(const char *path, const char *text) {
  mo_results_file file;
  assert_int_equal(mo_results_read(&file, path), MO_INVALID);
  assert_null(file.features);
  assert_error(path);
  assert_int_equal(mo_results_read(&file, path), MO_INVALID);
  assert_error(text);
}

static void a_good_file_is_read(void **state) {
  (void)state;
  mo_results_file file;
  store(good, good_bytes);
  assert_ok(mo_results_read(&file, BAD));
  assert_int_equal(file.n_features, N_FEATURES);
  mo_results_file_free(&file);
  assert_null(file.features);
}

static void files_that_are_not_there(void **state) {
  (void)state;
  assert_refused("absent.h5", "No such file");
  assert_refused(".", "not a plain file");
}

static void files_that_are_not_hdf5(void **state) {
  (void)state;
  unsigned char noise[5000];
  uint32_t x = 12345;
  for (size_t i = 0; i < sizeof noise; i++) noise[i] = (unsigned char)((x = x * 1664525u + 1013904223u) >> 24);
  store(noise, 0);
  assert_refused(BAD, "file signature not found");
  store(noise, sizeof noise);
  assert_refused(BAD, "file signature not found");
  memcpy(noise, good, 8);
  store(noise, sizeof noise);
  assert_refused(BAD, BAD);
}

static void truncated_files(void **state) {
  (void)state;
  for (size_t bytes = 0; bytes < good_bytes; bytes += 1 + good_bytes / 150) {
    store(good, bytes);
    assert_refused(BAD, "cannot open file");
  }
  store(good, good_bytes - 1);
  assert_refused(BAD, "truncated file");
}

/* Change a copy of the good file: delete `name` (attribute if `attribute`), or set the attribute to `value`. */
static void change(const char *name, bool attribute, int value) {
  store(good, good_bytes);
  hid_t file = open_file(BAD, H5F_ACC_RDWR);
  if (!attribute) {
    assert_true(H5Ldelete(file, name, H5P_DEFAULT) >= 0);
  } else if (value < 0) {
    assert_true(H5Adelete(file, name) >= 0);
  } else {
    hid_t a = H5Aopen(file, name, H5P_DEFAULT);
    assert_true(H5Awrite(a, H5T_NATIVE_INT, &value) >= 0);
    H5Aclose(a);
  }
  assert_true(H5Fclose(file) >= 0);
}

static void unfinished_files(void **state) {
  (void)state;
  change("complete", true, 0);
  assert_refused(BAD, "unfinished result (" BAD ": attribute complete is 0)");
  change("complete", true, 2);
  assert_refused(BAD, "unfinished result");
}

static void other_formats_and_versions(void **state) {
  (void)state;
  change("format_version", true, 2);
  assert_refused(BAD, "result format version 2, this program reads 1");
  change("format", true, -1);
  assert_refused(BAD, "not a moe-outliers result file");
}

static void missing_attributes(void **state) {
  (void)state;
  const char *const names[] = {"format_version", "complete",        "model_name", "architecture", "precision",
                               "device",         "started",         "finished",   "n_layers",     "hidden_size",
                               "n_sequences",    "sequence_length", "n_ranks",    "threshold"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    change(names[i], true, -1);
    assert_refused(BAD, names[i]);
  }
}

static void missing_objects(void **state) {
  (void)state;
  const char *const names[] = {"/features", "/summary", "/summary/outlier_features", "/summary/classification",
                               "/perplexity/perplexity"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    change(names[i], false, 0);
    assert_refused(BAD, names[i]);
  }
}

/* Put a new /features of `n` rows with the one column `column`, or of plain numbers if that is NULL. */
static void replace_features(const char *column, hsize_t n) {
  change("/features", false, 0);
  hid_t file = open_file(BAD, H5F_ACC_RDWR), space = H5Screate_simple(1, &n, NULL);
  hid_t type = column ? H5Tcreate(H5T_COMPOUND, 4) : H5Tcopy(H5T_STD_I32LE);
  if (column) assert_true(H5Tinsert(type, column, 0, H5T_STD_I32LE) >= 0);
  hid_t dataset = H5Dcreate2(file, "features", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(dataset >= 0);
  H5Dclose(dataset);
  H5Sclose(space);
  H5Tclose(type);
  assert_true(H5Fclose(file) >= 0);
}

static void wrong_tables(void **state) {
  (void)state;
  replace_features(NULL, 3);
  assert_refused(BAD, "/features is not a table");
  replace_features("feature", 3);
  assert_refused(BAD, "/features has no column sites_hit");
}

static void scalars_of_the_wrong_shape(void **state) {
  (void)state;
  hsize_t two = 2;
  change("/summary/features_hit", false, 0);
  hid_t file = open_file(BAD, H5F_ACC_RDWR), space = H5Screate_simple(1, &two, NULL);
  H5Dclose(H5Dcreate2(file, "/summary/features_hit", H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  H5Sclose(space);
  H5Fclose(file);
  assert_refused(BAD, "features_hit has the wrong shape");
}

static void more_rows_than_features(void **state) {
  (void)state;
  change("hidden_size", true, N_FEATURES - 1);
  assert_refused(BAD, "/features has 3 rows for a hidden size of 2");
}

/* Later versions add columns; this reader takes those it knows by name. */
static void unknown_objects_are_ignored(void **state) {
  (void)state;
  mo_results_file read;
  store(good, good_bytes);
  hid_t file = open_file(BAD, H5F_ACC_RDWR), space = H5Screate(H5S_SCALAR);
  H5Dclose(H5Dcreate2(file, "/summary/news", H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  H5Sclose(space);
  H5Fclose(file);
  assert_ok(mo_results_read(&read, BAD));
  mo_results_file_free(&read);
}

static int prepare(void **state) {
  (void)state;
  fixture f;
  fixture_new(&f);
  write_file(&f, PATH);
  fixture_free(&f);
  FILE *file = fopen(PATH, "rb");
  assert_non_null(file);
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  good_bytes = (size_t)ftell(file);
  rewind(file);
  good = malloc(good_bytes);
  assert_non_null(good);
  assert_int_equal(fread(good, 1, good_bytes, file), good_bytes);
  fclose(file);
  return 0;
}

static int tidy(void **state) {
  (void)state;
  free(good);
  return unlink(PATH) + unlink(BAD);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_good_file_is_read),
      cmocka_unit_test(files_that_are_not_there),
      cmocka_unit_test(files_that_are_not_hdf5),
      cmocka_unit_test(truncated_files),
      cmocka_unit_test(unfinished_files),
      cmocka_unit_test(other_formats_and_versions),
      cmocka_unit_test(missing_attributes),
      cmocka_unit_test(missing_objects),
      cmocka_unit_test(wrong_tables),
      cmocka_unit_test(scalars_of_the_wrong_shape),
      cmocka_unit_test(more_rows_than_features),
      cmocka_unit_test(unknown_objects_are_ignored),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) return 1;
  int failed = cmocka_run_group_tests(tests, prepare, tidy);
  mo_comm_close(comm);
  return failed;
}
