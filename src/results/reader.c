#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/results.h"
#include "results/h5.h"
#include "results/probe.h"
#include "results/table_cursor.h"
#include "results/tables.h"

#define REMEDY "give a finished result file of moe-outliers run"

/* Attributes that older files lack. */
static mo_status read_later(mo_results_file *read, const mo_h5_file *file) {
  const struct {
    const char *name;
    int64_t *value;
  } numbers[] = {{"n_experts", &read->n_experts},
                 {"experts_per_token", &read->experts_per_token},
                 {"parameters", &read->parameters},
                 {"active_parameters", &read->active_parameters},
                 {"bootstrap_draws", &read->bootstrap.draws},
                 {"bootstrap_seed", &read->bootstrap.seed}};
  const struct {
    const char *name;
    double *value;
  } reals[] = {{"min_layer_fraction", &read->criteria.min_layer_fraction},
               {"min_position_fraction", &read->criteria.min_position_fraction},
               {"systematic_fraction", &read->criteria.systematic_fraction}};
  read->criteria.threshold = read->threshold;
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    *numbers[i].value = -1;
    if (H5Aexists(file->id, numbers[i].name) > 0)
      MO_TRY(mo_h5_get_i64(file, file->id, numbers[i].name, numbers[i].value));
  }
  for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
    *reals[i].value = NAN;
    if (H5Aexists(file->id, reals[i].name) > 0) MO_TRY(mo_h5_get_f64(file, file->id, reals[i].name, reals[i].value));
  }
  return MO_OK;
}

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
  MO_TRY(mo_h5_get_text(file, root, "dataset", "", &read->dataset));
  MO_TRY(mo_h5_get_text(file, root, "config", "", &read->config));
  MO_TRY(mo_h5_get_text(file, root, "started", NULL, &read->started));
  MO_TRY(mo_h5_get_text(file, root, "finished", NULL, &read->finished));
  MO_TRY(mo_h5_get_i64(file, root, "n_layers", &read->n_layers));
  MO_TRY(mo_h5_get_i64(file, root, "hidden_size", &read->hidden_size));
  MO_TRY(mo_h5_get_i64(file, root, "n_sequences", &read->n_sequences));
  MO_TRY(mo_h5_get_i64(file, root, "sequence_length", &read->sequence_length));
  MO_TRY(mo_h5_get_i64(file, root, "n_ranks", &read->n_ranks));
  MO_TRY(mo_h5_get_f64(file, root, "threshold", &read->threshold));
  return read_later(read, file);
}

/* HDF5 reads a member of a damaged type wherever that says it is. */
static mo_status check_members(const mo_h5_file *file, hid_t type, const char *name) {
  mo_status status = MO_OK;
  size_t row = H5Tget_size(type);
  int n = H5Tget_nmembers(type);
  for (int i = 0; i < n && status == MO_OK; i++) {
    hid_t member = H5Tget_member_type(type, (unsigned)i);
    if (member < 0) return mo_h5_fail(file, "read", name);
    size_t offset = H5Tget_member_offset(type, (unsigned)i), size = H5Tget_size(member);
    if (size > row || offset > row - size)
      status = MO_FAIL(MO_INVALID, "%s has a damaged row type (%s): %s", name, file->path, REMEDY);
    status = mo_h5_close(file, status, member);
  }
  return status;
}

/* HDF5 leaves members that the file lacks untouched and says nothing: look for them first. */
mo_status mo_table_check(const mo_h5_file *file, hid_t dataset, const mo_table *table, const char *name) {
  mo_status status = MO_OK;
  hid_t type = H5Dget_type(dataset);
  if (type < 0) return mo_h5_fail(file, "read", name);
  if (H5Tget_class(type) != H5T_COMPOUND)
    status = MO_FAIL(MO_INVALID, "%s is not a table (%s): %s", name, file->path, REMEDY);
  for (int c = 0; c < table->n_columns && status == MO_OK; c++)
    if (!table->columns[c].later && H5Tget_member_index(type, table->columns[c].name) < 0)
      status = MO_FAIL(MO_INVALID, "%s has no column %s (%s): %s", name, table->columns[c].name, file->path, REMEDY);
  if (status == MO_OK) status = check_members(file, type, name);
  return mo_h5_close(file, status, type);
}

mo_status mo_h5_count(const mo_h5_file *file, hid_t dataset, const char *name, int rank, int64_t *n) {
  hid_t space = H5Dget_space(dataset);
  if (space < 0) return mo_h5_fail(file, "read", name);
  mo_status status = MO_OK;
  *n = H5Sget_simple_extent_npoints(space);
  if (*n < 0 || H5Sget_simple_extent_ndims(space) != rank)
    status = MO_FAIL(MO_INVALID, "%s has the wrong shape (%s): %s", name, file->path, REMEDY);
  return mo_h5_close(file, status, space);
}

void mo_table_forget_later(const mo_table *table, void *rows, int64_t n_rows) {
  const double unknown = NAN;
  const int32_t none = -1;
  for (int c = 0; c < table->n_columns; c++) {
    const mo_column *column = &table->columns[c];
    bool real = column->kind == MO_COLUMN_F64;
    for (int64_t i = 0; i < n_rows && column->later; i++)
      memcpy((char *)rows + (size_t)i * table->row_bytes + column->offset, real ? (const void *)&unknown : &none,
             real ? sizeof unknown : sizeof none);
  }
}

static mo_status read_feature_rows(mo_results_file *read, const mo_h5_file *file, hid_t dataset, const char *name) {
  hid_t type;
  MO_TRY(mo_table_check(file, dataset, &mo_table_features, name));
  MO_TRY(mo_h5_count(file, dataset, name, 1, &read->n_features));
  /* A damaged row count must not become a huge allocation. */
  if (read->n_features > read->hidden_size)
    return MO_FAIL(MO_INVALID, "%s has %lld rows for a hidden size of %lld (%s): %s", name, (long long)read->n_features,
                   (long long)read->hidden_size, file->path, REMEDY);
  read->features = mo_alloc((size_t)read->n_features, sizeof *read->features);
  if (!read->features) return MO_FAILED;
  mo_table_forget_later(&mo_table_features, read->features, read->n_features);
  MO_TRY(mo_table_type(file, &mo_table_features, true, &type));
  mo_status status = MO_OK;
  if (read->n_features > 0 && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, read->features) < 0)
    status = mo_h5_fail(file, "read", name);
  return mo_h5_close(file, status, type);
}

/* part: "", or the group of a further threshold. */
static mo_status read_features(mo_results_file *read, const mo_h5_file *file, const char *part) {
  char name[96];
  snprintf(name, sizeof name, "%s/features", part);
  hid_t dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
  if (dataset < 0) return mo_h5_fail(file, "open dataset", name);
  return mo_h5_close(file, read_feature_rows(read, file, dataset, name), dataset);
}

/* A table as it is; of more rows than can be MO_INVALID. *rows: the caller frees it. */
static mo_status read_whole(const mo_h5_file *file, const mo_table *table, const char *name, int64_t most, void **rows,
                            int64_t *n_rows) {
  mo_table_cursor cursor;
  const void *row;
  mo_status status = MO_OK;
  MO_TRY(mo_table_cursor_open(&cursor, file, table, name));
  if (cursor.n_rows > most)
    status = MO_FAIL(MO_INVALID, "%s has %lld rows, at most %lld are possible (%s): %s", name, (long long)cursor.n_rows,
                     (long long)most, file->path, REMEDY);
  if (status == MO_OK && !(*rows = mo_alloc((size_t)cursor.n_rows + 1, table->row_bytes))) status = MO_FAILED;
  for (; status == MO_OK && cursor.next < cursor.n_rows; cursor.next++) {
    status = mo_table_cursor_peek(&cursor, &row);
    if (status == MO_OK) memcpy((char *)*rows + (size_t)cursor.next * table->row_bytes, row, table->row_bytes);
  }
  *n_rows = cursor.n_rows;
  return mo_table_cursor_close(&cursor, status);
}

/* Of a model with experts; not in older files. */
static mo_status read_growth(mo_results_file *read, const mo_h5_file *file) {
  int64_t experts = read->n_experts > 0 ? read->n_experts + 1 : 0;
  void *rows = NULL;
  htri_t exists = H5Lexists(file->id, "growth", H5P_DEFAULT);
  if (exists < 0) return mo_h5_fail(file, "read", "/growth");
  if (!exists) return MO_OK;
  mo_status status = read_whole(file, &mo_table_growth, "/growth", read->n_layers * experts * read->hidden_size, &rows,
                                &read->ablation.n_growth);
  read->ablation.growth = rows;
  return status;
}

/* Present if the run was asked for it. */
static mo_status read_ablation(mo_results_file *read, const mo_h5_file *file) {
  mo_ablation *ablation = &read->ablation;
  void *rows = NULL, *features = NULL;
  htri_t exists = H5Lexists(file->id, "ablation", H5P_DEFAULT);
  if (exists < 0) return mo_h5_fail(file, "read", "/ablation");
  if (!exists) return MO_OK;
  mo_status status =
      read_whole(file, &mo_table_ablation, "/ablation", MO_ABLATION_MOST_VARIANTS, &rows, &ablation->n_rows);
  ablation->rows = rows;
  if (status == MO_OK)
    status = read_whole(file, &mo_table_ablation_features, "/ablation_features",
                        MO_ABLATION_MOST_VARIANTS * read->hidden_size, &features, &ablation->n_features);
  ablation->features = features;
  return status == MO_OK ? read_growth(read, file) : status;
}

static mo_status read_scalar(const mo_h5_file *file, const char *name, hid_t memory_type, void *value) {
  int64_t n = 0;
  hid_t dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
  if (dataset < 0) return mo_h5_fail(file, "open dataset", name);
  mo_status status = mo_h5_count(file, dataset, name, 0, &n);
  if (status == MO_OK && (n != 1 || H5Dread(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, value) < 0))
    status = mo_h5_fail(file, "read", name);
  return mo_h5_close(file, status, dataset);
}

static mo_status read_summary(mo_results_file *read, const mo_h5_file *file, const char *part) {
  char name[160];
  mo_table_forget_later(&mo_table_summary, &read->summary, 1);
  for (int c = 0; c < mo_table_summary.n_columns; c++) {
    const mo_column *column = &mo_table_summary.columns[c];
    hid_t type;
    snprintf(name, sizeof name, "%s/summary/%s", part, column->name);
    if (column->later && H5Lexists(file->id, name, H5P_DEFAULT) == 0) continue;
    MO_TRY(mo_column_type(file, column, true, &type));
    MO_TRY(mo_h5_close(file, read_scalar(file, name, type, (char *)&read->summary + column->offset), type));
  }
  return MO_OK;
}

static mo_status read_perplexity(mo_results_file *read, const mo_h5_file *file) {
  htri_t exists = H5Lexists(file->id, "perplexity", H5P_DEFAULT);
  if (exists < 0) return mo_h5_fail(file, "read", "/perplexity");
  read->perplexity = read->perplexity_low = read->perplexity_high = NAN;
  if (!exists) return MO_OK;
  MO_TRY(read_scalar(file, "/perplexity/perplexity", H5T_NATIVE_DOUBLE, &read->perplexity));
  if (H5Lexists(file->id, "/perplexity/perplexity_low", H5P_DEFAULT) == 0) return MO_OK; /* an older file */
  MO_TRY(read_scalar(file, "/perplexity/perplexity_low", H5T_NATIVE_DOUBLE, &read->perplexity_low));
  return read_scalar(file, "/perplexity/perplexity_high", H5T_NATIVE_DOUBLE, &read->perplexity_high);
}

/* " 6, 5, 8": all thresholds that the file has tables of, its own first. */
static void list_thresholds(char *text, size_t size, const mo_results_file *read, const mo_h5_file *file) {
  H5G_info_t group;
  size_t used = (size_t)snprintf(text, size, " %g", read->threshold);
  if (H5Lexists(file->id, "/thresholds", H5P_DEFAULT) <= 0 ||
      H5Gget_info_by_name(file->id, "/thresholds", &group, H5P_DEFAULT) < 0)
    return;
  for (hsize_t i = 0; i < group.nlinks && used < size; i++) {
    char name[40] = "";
    if (H5Lget_name_by_idx(file->id, "/thresholds", H5_INDEX_NAME, H5_ITER_INC, i, name, sizeof name, H5P_DEFAULT) >= 0)
      used += (size_t)snprintf(text + used, size - used, ", %s", name);
  }
}

mo_status mo_part_read(mo_results_file *read, const mo_h5_file *file, double threshold) {
  char part[MO_PART_BYTES], stored[320];
  mo_part_path(part, threshold);
  if (H5Lexists(file->id, "/thresholds", H5P_DEFAULT) <= 0 || H5Lexists(file->id, part, H5P_DEFAULT) <= 0) {
    list_thresholds(stored, sizeof stored, read, file);
    return MO_FAIL(MO_INVALID, "analysis.threshold = %g is not stored (%s: there is%s): run again with it", threshold,
                   read->path, stored);
  }
  free(read->features);
  read->features = NULL;
  read->n_features = 0;
  MO_TRY(read_features(read, file, part));
  MO_TRY(read_summary(read, file, part));
  read->threshold = read->criteria.threshold = threshold;
  return MO_OK;
}

static mo_status read_experts(mo_results_file *read, const mo_h5_file *file) {
  mo_table_cursor cursor;
  if (H5Lexists(file->id, "/experts", H5P_DEFAULT) <= 0) return MO_OK;
  MO_TRY(mo_table_cursor_open(&cursor, file, &mo_table_experts, "/experts"));
  mo_status status = MO_OK;
  /* A damaged row count must not become a huge allocation. */
  if (read->n_experts < 0 || read->n_layers < 0 || cursor.n_rows / (read->n_experts + 1) > read->n_layers)
    status =
        MO_FAIL(MO_INVALID, "/experts has %lld rows for %lld layers of %lld experts (%s): %s", (long long)cursor.n_rows,
                (long long)read->n_layers, (long long)read->n_experts, file->path, REMEDY);
  if (status == MO_OK && !(read->experts = mo_alloc((size_t)cursor.n_rows, sizeof *read->experts))) status = MO_FAILED;
  read->n_expert_rows = cursor.n_rows;
  while (status == MO_OK && cursor.next < cursor.n_rows) {
    const void *row;
    status = mo_table_cursor_peek(&cursor, &row);
    if (status == MO_OK) read->experts[cursor.next++] = *(const mo_expert *)row;
  }
  return mo_table_cursor_close(&cursor, status);
}

mo_status mo_results_read_unguarded(mo_results_file *read, const char *path) {
  mo_h5_file file = {.path = path, .code = MO_INVALID, .remedy = REMEDY};
  *read = (mo_results_file){0};
  MO_TRY(mo_h5_setup());
  MO_TRY(mo_h5_open(&file, H5F_ACC_RDONLY));
  mo_status status = read_root(read, &file);
  if (status == MO_OK) status = read_features(read, &file, "");
  if (status == MO_OK) status = read_summary(read, &file, "");
  if (status == MO_OK) status = read_perplexity(read, &file);
  if (status == MO_OK) status = read_experts(read, &file);
  if (status == MO_OK) status = read_ablation(read, &file);
  status = mo_h5_close(&file, status, file.id);
  if (status == MO_OK && !(read->path = mo_strdup(path))) status = MO_FAILED;
  if (status != MO_OK) mo_results_file_free(read);
  return status;
}

static void try_reading(const char *path, void *context) {
  (void)context;
  mo_results_file read;
  if (mo_results_read_unguarded(&read, path) == MO_OK) mo_results_file_free(&read);
}

mo_status mo_results_read(mo_results_file *read, const char *path) {
  *read = (mo_results_file){0};
  MO_TRY(mo_probe(try_reading, NULL, path, REMEDY));
  return mo_results_read_unguarded(read, path);
}

void mo_results_file_free(mo_results_file *read) {
  char *const texts[] = {read->path,    read->model_name, read->architecture, read->precision, read->device,
                         read->dataset, read->config,     read->started,      read->finished};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) free(texts[i]);
  free(read->experts);
  free(read->features);
  mo_ablation_free(&read->ablation);
  *read = (mo_results_file){0};
}
