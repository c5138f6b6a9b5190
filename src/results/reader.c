#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/results.h"
#include "results/h5.h"
#include "results/tables.h"

#define REMEDY "give a finished result file of moe-outliers run"

static mo_status read_root(mo_results_file *read, const mo_h5_file *file) {
  const hid_t root = file->id;
  int64_t version, complete;
  char *format;
  MO_TRY(mo_h5_get_text(file, root, "format", "", &format));
  bool ours = strcmp(format, "moe-outliers") == 0;
  free(format);
  if (!ours) return MO_FAIL(MO_INVALID, "not a moe-outliers result file (%s): %s", file->path, REMEDY);
  MO_TRY(mo_h5_get_i64(file, root, "format_version", &version));
  if (version != MO_FORMAT_VERSION)
    return MO_FAIL(MO_INVALID, "result format version %lld, this program reads %d (%s): use the program that wrote it",
                   (long long)version, MO_FORMAT_VERSION, file->path);
  MO_TRY(mo_h5_get_i64(file, root, "complete", &complete));
  if (complete != 1)
    return MO_FAIL(MO_INVALID, "unfinished result (%s: attribute complete is %lld): run the analysis again", file->path,
                   (long long)complete);
  MO_TRY(mo_h5_get_text(file, root, "model_name", NULL, &read->model_name));
  MO_TRY(mo_h5_get_text(file, root, "architecture", NULL, &read->architecture));
  MO_TRY(mo_h5_get_text(file, root, "precision", NULL, &read->precision));
  MO_TRY(mo_h5_get_text(file, root, "device", NULL, &read->device));
  MO_TRY(mo_h5_get_text(file, root, "started", NULL, &read->started));
  MO_TRY(mo_h5_get_text(file, root, "finished", NULL, &read->finished));
  MO_TRY(mo_h5_get_i64(file, root, "n_layers", &read->n_layers));
  MO_TRY(mo_h5_get_i64(file, root, "hidden_size", &read->hidden_size));
  MO_TRY(mo_h5_get_i64(file, root, "n_sequences", &read->n_sequences));
  MO_TRY(mo_h5_get_i64(file, root, "sequence_length", &read->sequence_length));
  MO_TRY(mo_h5_get_i64(file, root, "n_ranks", &read->n_ranks));
  return mo_h5_get_f64(file, root, "threshold", &read->threshold);
}

/* HDF5 leaves members that the file lacks untouched and says nothing: look for them first. */
static mo_status check_columns(const mo_h5_file *file, hid_t dataset, const mo_table *table, const char *name) {
  mo_status status = MO_OK;
  hid_t type = H5Dget_type(dataset);
  if (type < 0) return mo_h5_fail(file, "read", name);
  if (H5Tget_class(type) != H5T_COMPOUND)
    status = MO_FAIL(MO_INVALID, "%s is not a table (%s): %s", name, file->path, REMEDY);
  for (int c = 0; c < table->n_columns && status == MO_OK; c++)
    if (H5Tget_member_index(type, table->columns[c].name) < 0)
      status = MO_FAIL(MO_INVALID, "%s has no column %s (%s): %s", name, table->columns[c].name, file->path, REMEDY);
  return mo_h5_close(file, status, type);
}

/* Number of elements of a dataset of the given rank. */
static mo_status count_elements(const mo_h5_file *file, hid_t dataset, const char *name, int rank, int64_t *n) {
  hid_t space = H5Dget_space(dataset);
  if (space < 0) return mo_h5_fail(file, "read", name);
  mo_status status = MO_OK;
  *n = H5Sget_simple_extent_npoints(space);
  if (*n < 0 || H5Sget_simple_extent_ndims(space) != rank)
    status = MO_FAIL(MO_INVALID, "%s has the wrong shape (%s): %s", name, file->path, REMEDY);
  return mo_h5_close(file, status, space);
}

static mo_status read_feature_rows(mo_results_file *read, const mo_h5_file *file, hid_t dataset) {
  const char *const name = "/features";
  hid_t type;
  MO_TRY(check_columns(file, dataset, &mo_table_features, name));
  MO_TRY(count_elements(file, dataset, name, 1, &read->n_features));
  /* A damaged row count must not become a huge allocation. */
  if (read->n_features > read->hidden_size)
    return MO_FAIL(MO_INVALID, "%s has %lld rows for a hidden size of %lld (%s): %s", name, (long long)read->n_features,
                   (long long)read->hidden_size, file->path, REMEDY);
  read->features = mo_alloc((size_t)read->n_features, sizeof *read->features);
  if (!read->features) return MO_FAILED;
  MO_TRY(mo_table_type(file, &mo_table_features, true, &type));
  mo_status status = MO_OK;
  if (read->n_features > 0 && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, read->features) < 0)
    status = mo_h5_fail(file, "read", name);
  return mo_h5_close(file, status, type);
}

static mo_status read_features(mo_results_file *read, const mo_h5_file *file) {
  hid_t dataset = H5Dopen2(file->id, "/features", H5P_DEFAULT);
  if (dataset < 0) return mo_h5_fail(file, "open dataset", "/features");
  return mo_h5_close(file, read_feature_rows(read, file, dataset), dataset);
}

static mo_status read_scalar(const mo_h5_file *file, const char *name, hid_t memory_type, void *value) {
  int64_t n = 0;
  hid_t dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
  if (dataset < 0) return mo_h5_fail(file, "open dataset", name);
  mo_status status = count_elements(file, dataset, name, 0, &n);
  if (status == MO_OK && (n != 1 || H5Dread(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, value) < 0))
    status = mo_h5_fail(file, "read", name);
  return mo_h5_close(file, status, dataset);
}

static mo_status read_summary(mo_results_file *read, const mo_h5_file *file) {
  char name[96];
  for (int c = 0; c < mo_table_summary.n_columns; c++) {
    const mo_column *column = &mo_table_summary.columns[c];
    hid_t type;
    snprintf(name, sizeof name, "/summary/%s", column->name);
    MO_TRY(mo_column_type(file, column, true, &type));
    MO_TRY(mo_h5_close(file, read_scalar(file, name, type, (char *)&read->summary + column->offset), type));
  }
  return MO_OK;
}

static mo_status read_perplexity(mo_results_file *read, const mo_h5_file *file) {
  htri_t exists = H5Lexists(file->id, "perplexity", H5P_DEFAULT);
  if (exists < 0) return mo_h5_fail(file, "read", "/perplexity");
  read->perplexity = NAN;
  return exists ? read_scalar(file, "/perplexity/perplexity", H5T_NATIVE_DOUBLE, &read->perplexity) : MO_OK;
}

mo_status mo_results_read(mo_results_file *read, const char *path) {
  mo_h5_file file = {.path = path, .code = MO_INVALID, .remedy = REMEDY};
  *read = (mo_results_file){0};
  MO_TRY(mo_h5_setup());
  MO_TRY(mo_h5_open(&file, H5F_ACC_RDONLY));
  mo_status status = read_root(read, &file);
  if (status == MO_OK) status = read_features(read, &file);
  if (status == MO_OK) status = read_summary(read, &file);
  if (status == MO_OK) status = read_perplexity(read, &file);
  status = mo_h5_close(&file, status, file.id);
  if (status == MO_OK && !(read->path = mo_strdup(path))) status = MO_FAILED;
  if (status != MO_OK) mo_results_file_free(read);
  return status;
}

void mo_results_file_free(mo_results_file *read) {
  char *const texts[] = {read->path,   read->model_name, read->architecture, read->precision,
                         read->device, read->started,    read->finished};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) free(texts[i]);
  free(read->features);
  *read = (mo_results_file){0};
}
