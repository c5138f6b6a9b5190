#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "results/tables.h"
#include "results/writer.h"

/* How many rows each rank has, known to all ranks. */
typedef struct {
  int64_t *counts;    /* [2L + R], one block, summed over ranks; the arrays below point into it */
  int64_t *site_rows; /* [2L] rows of each site */
  int64_t *timing;    /* [R] rows of each rank */
  int64_t n;          /* length of counts */
} mo_outline;

static void site_path(char *name, size_t bytes, int64_t site_index) {
  snprintf(name, bytes, "/layers/%03lld/%s", (long long)(site_index / 2), mo_site_name((mo_site)(site_index % 2)));
}

/* This rank's part of the outline. */
static mo_status outline_fill(mo_outline *outline, const mo_results *results, const int *owner,
                              mo_accumulator *accumulator, int64_t n_timing) {
  int64_t n_sites = 2 * results->n_layers;
  int rank = mo_comm_rank(results->comm);
  outline->n = n_sites + mo_comm_size(results->comm);
  outline->counts = mo_alloc((size_t)outline->n, sizeof *outline->counts);
  if (!outline->counts) return MO_FAILED;
  outline->site_rows = outline->counts;
  outline->timing = outline->counts + n_sites;
  outline->timing[rank] = n_timing;
  for (int64_t i = 0; i < n_sites; i++) {
    const mo_site_row *rows;
    if (owner[i / 2] == rank)
      MO_TRY(mo_accumulator_site_rows(accumulator, i / 2, (mo_site)(i % 2), &rows, &outline->site_rows[i]));
  }
  return MO_OK;
}

static int64_t sum(const int64_t *values, int n) {
  int64_t total = 0;
  for (int i = 0; i < n; i++) total += values[i];
  return total;
}

static mo_status create_layers(const mo_results *results, const mo_outline *outline) {
  char name[64];
  MO_TRY(mo_h5_group(&results->file, "/layers",
                     "A group per layer, with a table of outlier values for each of its two sites"));
  for (int64_t i = 0; i < 2 * results->n_layers; i++) {
    if (i % 2 == 0) {
      snprintf(name, sizeof name, "/layers/%03lld", (long long)(i / 2));
      MO_TRY(mo_h5_group(&results->file, name, "One layer"));
    }
    site_path(name, sizeof name, i);
    MO_TRY(mo_table_create(&results->file, &mo_table_site_rows, name, outline->site_rows[i]));
  }
  return MO_OK;
}

static mo_status create_tables(const mo_results *results, const mo_outline *outline, const mo_analysis *analysis) {
  const mo_h5_file *file = &results->file;
  MO_TRY(mo_table_create(file, &mo_table_sequence_features, "/sequence_features", analysis->n_sequence_features));
  MO_TRY(mo_table_create(file, &mo_table_features, "/features", analysis->n_features));
  MO_TRY(mo_table_create(file, &mo_table_sites, "/sites", analysis->n_sites));
  return mo_table_create(file, &mo_table_timing, "/timing", sum(outline->timing, mo_comm_size(results->comm)));
}

static mo_status create_summary(const mo_results *results) {
  char name[96];
  MO_TRY(mo_h5_group(&results->file, "/summary", mo_table_summary.description));
  for (int c = 0; c < mo_table_summary.n_columns; c++) {
    const mo_column *column = &mo_table_summary.columns[c];
    const mo_h5_text texts[] = {{"description", column->meaning}, {"units", column->units}};
    hid_t type;
    snprintf(name, sizeof name, "/summary/%s", column->name);
    MO_TRY(mo_column_type(&results->file, column, false, &type));
    MO_TRY(mo_h5_close(&results->file, mo_h5_dataset(&results->file, name, type, 0, NULL, texts, 2), type));
  }
  return MO_OK;
}

static mo_status create_arrays(const mo_results *results, const mo_analysis *analysis) {
  static const mo_h5_text nll[] = {
      {"description", "Negative log-likelihood of token s + 1 given tokens 0..s, [sequence, s]"}, {"units", "nats"}};
  static const mo_h5_text perplexity = {"description", "exp(mean of nll); NaN if sequences have one token only"};
  static const mo_h5_text experts[] = {
      {"description", "Tokens sent to each expert, [layer, expert]; 0 in layers that do not route"},
      {"units", "tokens"}};
  const mo_h5_file *file = &results->file;
  if (analysis->nll) {
    const hsize_t dims[] = {(hsize_t)results->n_sequences, (hsize_t)(results->length - 1)};
    MO_TRY(mo_h5_group(file, "/perplexity", "How well the model predicts the tokens"));
    MO_TRY(mo_h5_dataset(file, "/perplexity/nll", H5T_IEEE_F32LE, 2, dims, nll, 2));
    MO_TRY(mo_h5_dataset(file, "/perplexity/perplexity", H5T_IEEE_F64LE, 0, NULL, &perplexity, 1));
  }
  if (results->n_experts > 0) {
    const hsize_t dims[] = {(hsize_t)results->n_layers, (hsize_t)results->n_experts};
    MO_TRY(mo_h5_group(file, "/routing", "Where the routers send the tokens"));
    MO_TRY(mo_h5_dataset(file, "/routing/expert_tokens", H5T_STD_U64LE, 2, dims, experts, 2));
  }
  return MO_OK;
}

/* Rank 0 creates everything, serially. */
static mo_status create_all(mo_results *results, const mo_outline *outline, const mo_analysis *analysis) {
  if (results->n_experts > 0 && !analysis->expert_tokens)
    return MO_FAIL(MO_FAILED, "no expert counts for a model with %lld experts (%s): report this",
                   (long long)results->n_experts, results->partial);
  MO_TRY(mo_h5_open(&results->file, H5F_ACC_RDWR));
  mo_status status = create_layers(results, outline);
  if (status == MO_OK) status = create_tables(results, outline, analysis);
  if (status == MO_OK) status = create_summary(results);
  if (status == MO_OK) status = create_arrays(results, analysis);
  MO_TRY(mo_h5_finish(&results->file, status));
  return mo_file_reserve(results->partial);
}

static mo_status write_layers(const mo_results *results, const mo_outline *outline, const int *owner,
                              mo_accumulator *accumulator) {
  char name[64];
  for (int64_t i = 0; i < 2 * results->n_layers; i++) {
    const mo_site_row *rows;
    int64_t n_rows;
    if (owner[i / 2] != mo_comm_rank(results->comm)) continue;
    site_path(name, sizeof name, i);
    MO_TRY(mo_accumulator_site_rows(accumulator, i / 2, (mo_site)(i % 2), &rows, &n_rows));
    if (n_rows != outline->site_rows[i])
      return MO_FAIL(MO_FAILED, "%s has %lld rows now and had %lld (%s): report this", name, (long long)n_rows,
                     (long long)outline->site_rows[i], results->partial);
    MO_TRY(mo_table_write(&results->file, &mo_table_site_rows, name, 0, n_rows, rows));
  }
  return MO_OK;
}

static mo_status write_summary(const mo_results *results, const mo_summary *summary) {
  char name[96];
  for (int c = 0; c < mo_table_summary.n_columns; c++) {
    const mo_column *column = &mo_table_summary.columns[c];
    const void *value = (const char *)summary + column->offset;
    hid_t type;
    snprintf(name, sizeof name, "/summary/%s", column->name);
    MO_TRY(mo_column_type(&results->file, column, true, &type));
    MO_TRY(mo_h5_close(&results->file, mo_h5_write(&results->file, name, type, 0, NULL, NULL, value), type));
  }
  return MO_OK;
}

/* Rank 0's data. */
static mo_status write_analysis(const mo_results *results, const mo_analysis *analysis) {
  const mo_h5_file *file = &results->file;
  const hsize_t start[] = {0, 0};
  MO_TRY(mo_table_write(file, &mo_table_sequence_features, "/sequence_features", 0, analysis->n_sequence_features,
                        analysis->sequence_features));
  MO_TRY(mo_table_write(file, &mo_table_features, "/features", 0, analysis->n_features, analysis->features));
  MO_TRY(mo_table_write(file, &mo_table_sites, "/sites", 0, analysis->n_sites, analysis->sites));
  MO_TRY(write_summary(results, &analysis->summary));
  if (analysis->nll) {
    const hsize_t count[] = {(hsize_t)results->n_sequences, (hsize_t)(results->length - 1)};
    MO_TRY(mo_h5_write(file, "/perplexity/nll", H5T_NATIVE_FLOAT, 2, start, count, analysis->nll));
    MO_TRY(mo_h5_write(file, "/perplexity/perplexity", H5T_NATIVE_DOUBLE, 0, NULL, NULL, &analysis->perplexity));
  }
  if (results->n_experts > 0) {
    const hsize_t count[] = {(hsize_t)results->n_layers, (hsize_t)results->n_experts};
    MO_TRY(mo_h5_write(file, "/routing/expert_tokens", H5T_NATIVE_UINT64, 2, start, count, analysis->expert_tokens));
  }
  return MO_OK;
}

mo_status mo_results_write(mo_results *results, const int *owner, mo_accumulator *accumulator,
                           const mo_analysis *analysis, const mo_timing_row *timing, int64_t n_timing) {
  mo_outline outline = {0};
  int rank = mo_comm_rank(results->comm);
  mo_status status = outline_fill(&outline, results, owner, accumulator, n_timing);
  MO_TRY_TO(done, mo_results_agree(results, status));
  MO_TRY_TO(done, mo_comm_allreduce(results->comm, outline.counts, (size_t)outline.n, MO_SUM_I64));
  if (results->file.id >= 0) MO_TRY_TO(done, mo_results_close(results)); /* open for activations until now */
  /* No rank may still be closing the file when rank 0 changes it. */
  MO_TRY_TO(done, mo_results_agree(results, MO_OK));
  if (rank == 0) status = create_all(results, &outline, analysis);
  MO_TRY_TO(done, mo_results_agree(results, status));
  MO_TRY_TO(done, mo_results_open(results));
  status = write_layers(results, &outline, owner, accumulator);
  if (status == MO_OK && rank == 0) status = write_analysis(results, analysis);
  if (status == MO_OK)
    status = mo_table_write(&results->file, &mo_table_timing, "/timing", sum(outline.timing, rank), n_timing, timing);
  MO_TRY_TO(done, mo_results_agree(results, status));
  status = mo_results_close(results);
done:
  free(outline.counts);
  return status;
}
