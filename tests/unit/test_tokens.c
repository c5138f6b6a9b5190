/* Token files: what is read, and everything that is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <hdf5.h>

#include "moe_outliers/tokens.h"

#define PATH "tokens.h5"

enum { N = 5, S = 7, VOCAB = 100 };

static int32_t id_at(int64_t n, int64_t s) { return (int32_t)((n * 31 + s * 7) % VOCAB); }

/* Write /tokens of the given type, rank and shape from `ids`, chunked and compressed if `packed`. */
static void write_tokens(hid_t type, int rank, const hsize_t *dims, hid_t memory_type, const void *ids, bool packed) {
  hid_t file = H5Fcreate(PATH, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), space = H5Screate_simple(rank, dims, NULL);
  hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  const hsize_t chunk[] = {2, 3};
  if (packed) assert_true(H5Pset_chunk(creation, 2, chunk) >= 0 && H5Pset_deflate(creation, 4) >= 0);
  hid_t dataset = H5Dcreate2(file, "tokens", type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  assert_true(dataset >= 0);
  if (ids) assert_true(H5Dwrite(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids) >= 0);
  H5Dclose(dataset);
  H5Pclose(creation);
  H5Sclose(space);
  assert_true(H5Fclose(file) >= 0);
}

/* A good file, with one id changed if place >= 0. */
static void write_good(hid_t type, bool packed, int place, int32_t id) {
  int32_t ids[N * S];
  const hsize_t dims[] = {N, S};
  for (int i = 0; i < N * S; i++) ids[i] = id_at(i / S, i % S);
  if (place >= 0) ids[place] = id;
  write_tokens(type, 2, dims, H5T_NATIVE_INT32, ids, packed);
}

static void put_attribute(const char *name, const char *value, bool variable) {
  hid_t file = H5Fopen(PATH, H5F_ACC_RDWR, H5P_DEFAULT), dataset = H5Dopen2(file, "tokens", H5P_DEFAULT);
  hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
  assert_true(H5Tset_size(type, variable ? H5T_VARIABLE : strlen(value)) >= 0);
  if (!variable) H5Tset_strpad(type, H5T_STR_NULLPAD);
  hid_t attribute = H5Acreate2(dataset, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(H5Awrite(attribute, type, variable ? (const void *)&value : value) >= 0);
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(type);
  H5Dclose(dataset);
  H5Fclose(file);
}

static void assert_error(const char *text) {
  char line[2048];
  snprintf(line, sizeof line, "%s", mo_error_message());
  mo_error_clear();
  if (!strstr(line, text)) fail_msg("'%s' is not in the error '%s'", text, line);
}

static void assert_refused(int64_t skip, int64_t n, int64_t length, const char *text) {
  mo_tokens tokens;
  assert_int_equal(mo_tokens_read(&tokens, PATH, skip, n, length, VOCAB), MO_INVALID);
  assert_null(tokens.ids);
  assert_error(text);
}

static void assert_read(int64_t skip, int64_t n, int64_t length) {
  mo_tokens tokens;
  if (mo_tokens_read(&tokens, PATH, skip, n, length, VOCAB) != MO_OK) fail_msg("%s", mo_error_message());
  assert_int_equal(tokens.n_sequences, n);
  assert_int_equal(tokens.length, length);
  for (int64_t i = 0; i < n; i++)
    for (int64_t s = 0; s < length; s++) assert_int_equal(tokens.ids[i * length + s], id_at(skip + i, s));
  mo_tokens_free(&tokens);
  assert_null(tokens.ids);
}

static void every_part_can_be_read(void **state) {
  (void)state;
  write_good(H5T_STD_I32LE, false, -1, 0);
  for (int64_t skip = 0; skip < N; skip++)
    for (int64_t n = 1; skip + n <= N; n++)
      for (int64_t length = 1; length <= S; length++) assert_read(skip, n, length);
}

static void big_endian_and_packed_files_are_read(void **state) {
  (void)state;
  write_good(H5T_STD_I32BE, false, -1, 0);
  assert_read(1, 3, 5);
  write_good(H5T_STD_I32LE, true, -1, 0);
  assert_read(1, 3, 5);
}

static void attributes_do_not_matter(void **state) {
  (void)state;
  write_good(H5T_STD_I32LE, false, -1, 0);
  put_attribute("tokenizer", "some/tokenizer", true);
  put_attribute("dataset", "fineweb", false);
  assert_read(0, N, S);
}

static void too_few_or_too_short(void **state) {
  (void)state;
  write_good(H5T_STD_I32LE, false, -1, 0);
  assert_refused(0, N + 1, S, "too few sequences (" PATH ": /tokens has 5, data.skip 0 + data.sequences 6");
  assert_refused(2, N - 1, S, "too few sequences");
  assert_refused(INT64_MAX, 1, S, "too few sequences");
  assert_refused(0, N, S + 1, "sequences too short (" PATH ": /tokens has 7 tokens each, data.length is 8");
  assert_refused(0, INT64_MAX / 64, S, "too few sequences");
}

static void senseless_sizes(void **state) {
  (void)state;
  assert_refused(-1, 1, 1, "data.skip -1");
  assert_refused(0, 0, 1, "data.sequences 0");
  assert_refused(0, 1, -5, "data.length -5");
  assert_refused(0, INT64_MAX, INT64_MAX, "bad size");
}

static void ids_outside_the_vocabulary(void **state) {
  (void)state;
  write_good(H5T_STD_I32LE, false, 3 * S + 4, VOCAB);
  assert_refused(0, N, S, "token id 100 is outside the vocabulary 0..99 (" PATH ": /tokens sequence 3, position 4)");
  assert_refused(3, 1, 5, "/tokens sequence 3, position 4");
  assert_read(0, 3, S); /* it is not in the part that is read */
  assert_read(3, 2, 4);
  write_good(H5T_STD_I32LE, false, 0, -1);
  assert_refused(0, 1, 1, "token id -1 is outside the vocabulary 0..99 (" PATH ": /tokens sequence 0, position 0)");
  write_good(H5T_STD_I32LE, false, 0, VOCAB - 1);
  mo_tokens tokens;
  assert_int_equal(mo_tokens_read(&tokens, PATH, 0, 1, 1, VOCAB), MO_OK);
  assert_int_equal(tokens.ids[0], VOCAB - 1);
  mo_tokens_free(&tokens);
}

static void other_types(void **state) {
  (void)state;
  const hid_t types[] = {H5T_STD_I64LE, H5T_STD_U32LE, H5T_STD_I16LE, H5T_STD_U8LE, H5T_IEEE_F32LE, H5T_STD_B32LE};
  const hsize_t dims[] = {N, S};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    write_tokens(types[i], 2, dims, types[i], NULL, false);
    assert_refused(0, 1, 1, "/tokens is not of type int32 (" PATH ")");
  }
  hid_t narrow = H5Tcopy(H5T_STD_I32LE);
  assert_true(H5Tset_precision(narrow, 20) >= 0);
  write_tokens(narrow, 2, dims, narrow, NULL, false);
  assert_refused(0, 1, 1, "not of type int32");
  H5Tclose(narrow);
}

static void other_ranks(void **state) {
  (void)state;
  const hsize_t dims[] = {N, S, 1};
  write_tokens(H5T_STD_I32LE, 1, dims, H5T_NATIVE_INT32, NULL, false);
  assert_refused(0, 1, 1, "/tokens has 1 dimensions, not 2");
  write_tokens(H5T_STD_I32LE, 3, dims, H5T_NATIVE_INT32, NULL, false);
  assert_refused(0, 1, 1, "/tokens has 3 dimensions, not 2");
  const hsize_t empty[] = {0, S};
  write_tokens(H5T_STD_I32LE, 2, empty, H5T_NATIVE_INT32, NULL, false);
  assert_refused(0, 1, 1, "/tokens has 0");
}

static void no_dataset(void **state) {
  (void)state;
  H5Fclose(H5Fcreate(PATH, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
  assert_refused(0, 1, 1, "no dataset /tokens (" PATH ")");
  hid_t file = H5Fcreate(PATH, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  H5Gclose(H5Gcreate2(file, "tokens", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  H5Fclose(file);
  assert_refused(0, 1, 1, "cannot open dataset /tokens (" PATH);
  file = H5Fcreate(PATH, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  H5Lcreate_soft("/nowhere", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
  H5Fclose(file);
  assert_refused(0, 1, 1, "cannot open dataset /tokens (" PATH);
}

static void not_a_token_file(void **state) {
  (void)state;
  unlink(PATH);
  assert_refused(0, 1, 1, "cannot open file (" PATH ": No such file or directory)");
  mo_tokens tokens;
  assert_int_equal(mo_tokens_read(&tokens, "/dev/null", 0, 1, 1, VOCAB), MO_INVALID);
  assert_error("not a plain file (/dev/null)");
  FILE *file = fopen(PATH, "w");
  assert_non_null(file);
  fclose(file);
  assert_refused(0, 1, 1, "cannot open file (" PATH "; HDF5: ");
  file = fopen(PATH, "w");
  assert_non_null(file);
  fputs("{\"tokens\": [1, 2, 3]}\n", file);
  fclose(file);
  assert_refused(0, 1, 1, "cannot open file (" PATH "; HDF5: file signature not found)");
}

static void truncated_files(void **state) {
  (void)state;
  for (int packed = 0; packed < 2; packed++) {
    write_good(H5T_STD_I32LE, packed, -1, 0);
    FILE *file = fopen(PATH, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long bytes = ftell(file);
    fclose(file);
    for (long keep = bytes - 1; keep > 0; keep -= 1 + bytes / 100) {
      assert_int_equal(truncate(PATH, keep), 0);
      assert_refused(0, N, S, "cannot open file (" PATH "; HDF5: ");
    }
  }
}

/* Bytes of the raw data, which comes last, may be anything: then ids are out of range or other good ids. */
static void damaged_compressed_data(void **state) {
  (void)state;
  for (long back = 1; back <= 60; back++) {
    mo_tokens tokens;
    write_good(H5T_STD_I32LE, true, -1, 0);
    FILE *file = fopen(PATH, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, -back, SEEK_END), 0);
    fputc(0xa5, file);
    fclose(file);
    mo_status status = mo_tokens_read(&tokens, PATH, 0, N, S, VOCAB);
    if (status == MO_OK) {
      mo_tokens_free(&tokens);
    } else {
      assert_int_equal(status, MO_INVALID);
      assert_error(PATH);
    }
  }
}

static int tidy(void **state) {
  (void)state;
  return unlink(PATH);
}

static void the_dataset_is_a_note(void **state) {
  (void)state;
  write_good(H5T_STD_I32LE, false, -1, 0);
  assert_null(mo_tokens_dataset(PATH));
  put_attribute("dataset", "Zo\xc3\xab's corpus", true);
  char *note = mo_tokens_dataset(PATH);
  assert_string_equal(note, "Zo\xc3\xab's corpus");
  free(note);
  write_good(H5T_STD_I32LE, false, -1, 0);
  put_attribute("dataset", "fixed", false);
  note = mo_tokens_dataset(PATH);
  assert_string_equal(note, "fixed");
  free(note);
  assert_null(mo_tokens_dataset("absent.h5"));
  assert_string_equal(mo_error_message(), ""); /* nobody shall be told that a note is missing */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_part_can_be_read),
      cmocka_unit_test(big_endian_and_packed_files_are_read),
      cmocka_unit_test(attributes_do_not_matter),
      cmocka_unit_test(the_dataset_is_a_note),
      cmocka_unit_test(too_few_or_too_short),
      cmocka_unit_test(senseless_sizes),
      cmocka_unit_test(ids_outside_the_vocabulary),
      cmocka_unit_test(other_types),
      cmocka_unit_test(other_ranks),
      cmocka_unit_test(no_dataset),
      cmocka_unit_test(not_a_token_file),
      cmocka_unit_test(truncated_files),
      cmocka_unit_test(damaged_compressed_data),
  };
  return cmocka_run_group_tests(tests, NULL, tidy);
}
