/* The tables that depend on the criteria, made again from those that do not. */
#include <stdio.h>
#include <stdlib.h>

#include "moe_outliers/results.h"
#include "results/probe.h"
#include "results/table_cursor.h"

#define REMEDY "give a finished result file of moe-outliers run"

/* All rows of a table, at most `most` of them; the caller frees *rows, also after a failure. */
static mo_status read_table(const mo_h5_file *file, const mo_table *table, const char *name, int64_t most, void **rows,
                            int64_t *n_rows) {
  mo_table_cursor cursor;
  *rows = NULL;
  MO_TRY(mo_table_cursor_open(&cursor, file, table, name));
  mo_status status = MO_OK;
  *n_rows = cursor.n_rows;
  /* A damaged row count must not become a huge allocation. */
  if (cursor.n_rows > most)
    status = MO_FAIL(MO_INVALID, "%s has %lld rows, more than the %lld there can be (%s): %s", name,
                     (long long)cursor.n_rows, (long long)most, file->path, REMEDY);
  if (status == MO_OK && !(*rows = mo_alloc((size_t)cursor.n_rows, table->row_bytes))) status = MO_FAILED;
  if (status == MO_OK) mo_table_forget_later(table, *rows, *n_rows);
  if (status == MO_OK && cursor.n_rows > 0 &&
      H5Dread(cursor.dataset, cursor.type, H5S_ALL, H5S_ALL, H5P_DEFAULT, *rows) < 0)
    status = mo_h5_fail(file, "read", name);
  return mo_table_cursor_close(&cursor, status);
}

/* part: "", or the group of a further threshold; counts NULL: the tables are read and forgotten. */
static mo_status read_counts(mo_counts **counts, const mo_h5_file *file, const char *part,
                             const mo_analysis_shape *shape) {
  void *rows;
  char name[96];
  int64_t n_rows = 0, most = shape->n_sequences * shape->hidden;
  snprintf(name, sizeof name, "%s/positions", part);
  mo_status status = read_table(file, &mo_table_positions, name, most, &rows, &n_rows);
  if (status == MO_OK && counts) status = mo_counts_new(counts, shape, file->path, rows, n_rows);
  free(rows);
  for (int64_t i = 0; i < 2 * shape->n_layers && status == MO_OK; i++) {
    snprintf(name, sizeof name, "%s/layers/%03lld/%s", part, (long long)(i / 2), mo_site_name((mo_site)(i % 2)));
    status = read_table(file, &mo_table_site_rows, name, most, &rows, &n_rows);
    if (status == MO_OK && counts) status = mo_counts_add_site(*counts, i / 2, (mo_site)(i % 2), rows, n_rows);
    free(rows);
  }
  return status;
}

/* nll [N, S-1] into *values, NULL if the file has none. */
static mo_status read_nll(const mo_h5_file *file, const mo_analysis_shape *shape, float **values) {
  const char *const name = "/perplexity/nll";
  int64_t n = 0, expected = shape->n_sequences * (shape->length - 1);
  *values = NULL;
  htri_t exists = H5Lexists(file->id, "/perplexity", H5P_DEFAULT);
  if (exists < 0) return mo_h5_fail(file, "read", "/perplexity");
  if (!exists) return MO_OK;
  hid_t dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
  if (dataset < 0) return mo_h5_fail(file, "open dataset", name);
  mo_status status = mo_h5_count(file, dataset, name, 2, &n);
  if (status == MO_OK && n != expected)
    status = MO_FAIL(MO_INVALID, "%s has %lld values instead of %lld (%s): %s", name, (long long)n, (long long)expected,
                     file->path, REMEDY);
  if (status == MO_OK && !(*values = mo_alloc((size_t)n, sizeof **values))) status = MO_FAILED;
  if (status == MO_OK && n > 0 && H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, *values) < 0)
    status = mo_h5_fail(file, "read", name);
  return mo_h5_close(file, status, dataset);
}

/* Sizes of a file that may be damaged: the products above must not overflow. */
static mo_status check_sizes(const mo_results_file *read) {
  const int64_t limit = INT32_MAX;
  int64_t cells, losses;
  if (read->n_layers > 0 && read->n_layers <= limit / 2 && read->n_sequences > 0 && read->n_sequences <= limit &&
      read->hidden_size > 0 && read->hidden_size <= limit && read->sequence_length > 0 &&
      read->sequence_length <= limit && !__builtin_mul_overflow(read->n_sequences, read->hidden_size, &cells) &&
      !__builtin_mul_overflow(read->n_sequences, read->sequence_length, &losses))
    return MO_OK;
  return MO_FAIL(MO_INVALID, "sizes out of range (%s: %lld layers, %lld sequences of %lld, hidden size %lld): %s",
                 read->path, (long long)read->n_layers, (long long)read->n_sequences, (long long)read->sequence_length,
                 (long long)read->hidden_size, REMEDY);
}

static mo_status analyse(mo_analysis *analysis, const mo_results_file *read, const mo_h5_file *file, const char *part,
                         const mo_analysis_shape *shape) {
  mo_counts *counts = NULL;
  float *nll = NULL;
  mo_status status = read_counts(&counts, file, part, shape);
  for (int64_t i = 0; i < read->n_features && status == MO_OK; i++) {
    const mo_feature *row = &read->features[i];
    const float quartiles[] = {row->q1, row->median, row->q3};
    status = mo_counts_set_quartiles(counts, row->feature, quartiles);
  }
  if (status == MO_OK) status = read_nll(file, shape, &nll);
  if (status == MO_OK) status = mo_counts_analyse(analysis, counts, nll);
  free(nll);
  mo_counts_free(counts);
  return status;
}

/* The part of a threshold, *read being that of another one, and what there is of it. */
static mo_status switch_part(mo_results_file *read, const mo_h5_file *file, double threshold,
                             char part[MO_PART_BYTES]) {
  part[0] = '\0';
  if (threshold == read->threshold) return MO_OK;
  mo_part_path(part, threshold);
  return mo_part_read(read, file, threshold);
}

typedef struct {
  mo_results_file *read;
  const mo_analysis_shape *shape;
} reading;

static void try_tables(const char *path, void *context) {
  reading *r = context;
  mo_h5_file file = {.path = path, .code = MO_INVALID, .remedy = REMEDY};
  char part[MO_PART_BYTES];
  float *nll = NULL;
  mo_status status = mo_h5_setup();
  if (status == MO_OK) status = mo_h5_open(&file, H5F_ACC_RDONLY);
  if (status != MO_OK) return;
  status = switch_part(r->read, &file, r->shape->criteria.threshold, part);
  if (status == MO_OK) status = read_counts(NULL, &file, part, r->shape);
  if (status == MO_OK) status = read_nll(&file, r->shape, &nll);
  free(nll);
  (void)!mo_h5_close(&file, status, file.id);
}

mo_status mo_results_recompute(mo_results_file *read, const mo_criteria *criteria, const mo_bootstrap *bootstrap) {
  MO_TRY(check_sizes(read));
  mo_analysis_shape shape = {.n_layers = read->n_layers,
                             .n_sequences = read->n_sequences,
                             .length = read->sequence_length,
                             .hidden = read->hidden_size,
                             .criteria = *criteria,
                             .bootstrap = *bootstrap};
  mo_h5_file file = {.path = read->path, .code = MO_INVALID, .remedy = REMEDY};
  mo_analysis analysis = {0};
  char part[MO_PART_BYTES];
  MO_TRY(mo_probe(try_tables, &(reading){read, &shape}, read->path, REMEDY));
  MO_TRY(mo_h5_setup());
  MO_TRY(mo_h5_open(&file, H5F_ACC_RDONLY));
  mo_status status = switch_part(read, &file, criteria->threshold, part);
  if (status == MO_OK) status = analyse(&analysis, read, &file, part, &shape);
  status = mo_h5_close(&file, status, file.id);
  if (status != MO_OK) {
    mo_analysis_free(&analysis);
    return status;
  }
  free(read->features);
  read->features = analysis.features;
  read->n_features = analysis.n_features;
  analysis.features = NULL;
  read->summary = analysis.summary;
  read->perplexity = analysis.perplexity;
  read->perplexity_low = analysis.perplexity_low;
  read->perplexity_high = analysis.perplexity_high;
  read->criteria = *criteria;
  read->bootstrap = *bootstrap;
  mo_analysis_free(&analysis);
  return MO_OK;
}
