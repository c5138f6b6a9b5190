#include "moe_outliers/tokens.h"

#include <stdlib.h>
#include <string.h>

#include "moe_outliers/random.h"
#include "results/h5.h"
#include "results/probe.h"

#define REMEDY "give a token file with a dataset /tokens, int32 [n, length]"

static mo_status check_type(const mo_h5_file *file, hid_t dataset) {
  hid_t type = H5Dget_type(dataset);
  if (type < 0) return mo_h5_fail(file, "read", "/tokens");
  mo_status status = MO_OK;
  htri_t little = H5Tequal(type, H5T_STD_I32LE), big = H5Tequal(type, H5T_STD_I32BE);
  if (little < 0 || big < 0)
    status = mo_h5_fail(file, "read", "/tokens");
  else if (!little && !big)
    status = MO_FAIL(MO_INVALID, "/tokens is not of type int32 (%s): %s", file->path, REMEDY);
  return mo_h5_close(file, status, type);
}

/* Check the shape and select the wanted box of the file's dataset. */
static mo_status select_box(const mo_h5_file *file, hid_t space, int64_t skip, int64_t n, int64_t length) {
  const hsize_t start[] = {(hsize_t)skip, 0}, count[] = {(hsize_t)n, (hsize_t)length};
  hsize_t dims[2] = {0};
  int rank = H5Sget_simple_extent_ndims(space);
  if (rank < 0) return mo_h5_fail(file, "read", "/tokens");
  if (rank != 2) return MO_FAIL(MO_INVALID, "/tokens has %d dimensions, not 2 (%s): %s", rank, file->path, REMEDY);
  if (H5Sget_simple_extent_dims(space, dims, NULL) < 0) return mo_h5_fail(file, "read", "/tokens");
  /* skip and n are not negative: their sum cannot wrap around as hsize_t. */
  if (dims[0] < start[0] + count[0])
    return MO_FAIL(MO_INVALID,
                   "too few sequences (%s: /tokens has %llu, data.skip %lld + data.sequences %lld are asked for): ask "
                   "for fewer or make a larger file",
                   file->path, (unsigned long long)dims[0], (long long)skip, (long long)n);
  if (dims[1] < count[1])
    return MO_FAIL(
        MO_INVALID,
        "sequences too short (%s: /tokens has %llu tokens each, data.length is %lld): ask for fewer or make a "
        "file with longer ones",
        file->path, (unsigned long long)dims[1], (long long)length);
  if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) < 0)
    return mo_h5_fail(file, "read", "/tokens");
  return MO_OK;
}

static mo_status read_ids(mo_tokens *tokens, const mo_h5_file *file, hid_t dataset, int64_t skip) {
  const int64_t n = tokens->n_sequences, length = tokens->length;
  const hsize_t count[] = {(hsize_t)n, (hsize_t)length};
  hid_t memory = H5I_INVALID_HID, space = H5Dget_space(dataset);
  if (space < 0) return mo_h5_fail(file, "read", "/tokens");
  mo_status status;
  MO_TRY_TO(done, select_box(file, space, skip, n, length));
  tokens->ids = mo_alloc((size_t)n, (size_t)length * sizeof *tokens->ids);
  if (!tokens->ids) {
    status = MO_FAILED;
    goto done;
  }
  if ((memory = H5Screate_simple(2, count, NULL)) < 0 ||
      H5Dread(dataset, H5T_NATIVE_INT32, memory, space, H5P_DEFAULT, tokens->ids) < 0)
    status = mo_h5_fail(file, "read", "/tokens");
done:
  status = mo_h5_close(file, status, memory);
  return mo_h5_close(file, status, space);
}

static mo_status check_ids(const mo_tokens *tokens, const char *path, int64_t skip, int64_t vocab) {
  for (int64_t n = 0; n < tokens->n_sequences; n++)
    for (int64_t s = 0; s < tokens->length; s++) {
      int32_t id = tokens->ids[n * tokens->length + s];
      if (id < 0 || id >= vocab)
        return MO_FAIL(MO_INVALID,
                       "token id %d is outside the vocabulary 0..%lld (%s: /tokens sequence %lld, position %lld): make "
                       "the file with this model's tokenizer",
                       (int)id, (long long)vocab - 1, path, (long long)(skip + n), (long long)s);
    }
  return MO_OK;
}

static mo_status read_dataset(mo_tokens *tokens, const mo_h5_file *file, int64_t skip) {
  htri_t exists = H5Lexists(file->id, "tokens", H5P_DEFAULT);
  if (exists < 0) return mo_h5_fail(file, "read", "/tokens");
  if (!exists) return MO_FAIL(MO_INVALID, "no dataset /tokens (%s): %s", file->path, REMEDY);
  hid_t dataset = H5Dopen2(file->id, "tokens", H5P_DEFAULT);
  if (dataset < 0) return mo_h5_fail(file, "open dataset", "/tokens");
  mo_status status = check_type(file, dataset);
  if (status == MO_OK) status = read_ids(tokens, file, dataset, skip);
  return mo_h5_close(file, status, dataset);
}

static mo_status check_sizes(int64_t skip, int64_t n_sequences, int64_t length, int64_t vocab) {
  if (skip < 0 || n_sequences < 1 || length < 1 || length > INT64_MAX / 4 / n_sequences || vocab < 1)
    return MO_FAIL(MO_INVALID,
                   "bad size (data.skip %lld, data.sequences %lld, data.length %lld): give positive numbers",
                   (long long)skip, (long long)n_sequences, (long long)length);
  return MO_OK;
}

mo_status mo_tokens_read(mo_tokens *tokens, const char *path, int64_t skip, int64_t n_sequences, int64_t length,
                         int64_t vocab) {
  *tokens = (mo_tokens){.n_sequences = n_sequences, .length = length};
  MO_TRY(check_sizes(skip, n_sequences, length, vocab));
  mo_h5_file file = {.path = path, .code = MO_INVALID, .remedy = REMEDY};
  MO_TRY(mo_h5_setup());
  MO_TRY(mo_h5_open(&file, H5F_ACC_RDONLY));
  mo_status status = read_dataset(tokens, &file, skip);
  status = mo_h5_close(&file, status, file.id);
  if (status == MO_OK) status = check_ids(tokens, path, skip, vocab);
  if (status != MO_OK) mo_tokens_free(tokens);
  return status;
}

/* HDF5 hangs or crashes on damaged strings of variable length: to be tried in a child process first. */
static mo_status read_note(const char *path, char **note) {
  mo_h5_file file = {.path = path, .code = MO_INVALID, .remedy = REMEDY};
  *note = NULL;
  MO_TRY(mo_h5_setup());
  MO_TRY(mo_h5_open(&file, H5F_ACC_RDONLY));
  hid_t dataset = H5Dopen2(file.id, "tokens", H5P_DEFAULT);
  mo_status status =
      dataset < 0 ? mo_h5_fail(&file, "open dataset", "/tokens") : mo_h5_get_text(&file, dataset, "dataset", "", note);
  status = mo_h5_close(&file, status, dataset);
  return mo_h5_close(&file, status, file.id);
}

static void try_note(const char *path, void *context) {
  (void)context;
  char *note;
  if (read_note(path, &note) == MO_OK) free(note);
}

char *mo_tokens_dataset(const char *path) {
  char *note = NULL;
  mo_status status = mo_probe(try_note, NULL, path, REMEDY);
  if (status == MO_OK) status = read_note(path, &note);
  if (status == MO_OK && note[0]) return note;
  if (status != MO_OK) mo_error_clear();
  free(note);
  return NULL;
}

mo_status mo_tokens_synthetic(mo_tokens *tokens, uint64_t seed, int64_t skip, int64_t n_sequences, int64_t length,
                              int64_t vocab) {
  *tokens = (mo_tokens){.n_sequences = n_sequences, .length = length};
  MO_TRY(check_sizes(skip, n_sequences, length, vocab));
  tokens->ids = mo_alloc((size_t)n_sequences, (size_t)length * sizeof *tokens->ids);
  if (!tokens->ids) return MO_FAILED;
  for (int64_t n = 0; n < n_sequences; n++) {
    uint64_t key = mo_mix64(mo_mix64(seed) + (uint64_t)(skip + n));
    for (int64_t s = 0; s < length; s++)
      tokens->ids[n * length + s] = (int32_t)(mo_mix64(key + (uint64_t)s) % (uint64_t)vocab);
  }
  return MO_OK;
}

void mo_tokens_free(mo_tokens *tokens) {
  free(tokens->ids);
  *tokens = (mo_tokens){0};
}
