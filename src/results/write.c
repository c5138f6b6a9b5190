#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "results/tables.h"
#include "results/writer.h"

/* How many rows each rank has, known to all ranks. */
typedef struct {
  const mo_results_part *parts; /* the caller's */
  int n_parts;
  int64_t *counts;    /* [P * 2L + R], one block, summed over ranks; the arrays below point into it */
  int64_t *site_rows; /* [P, 2L] rows of each site */
  int64_t *timing;    /* [R] rows of each rank */
  int64_t n;          /* length of counts */
} mo_outline;

enum { NAME_BYTES = MO_PART_BYTES + 64 };

/* The group of a part: "" is the root. */
static void part_path(char part[MO_PART_BYTES], const mo_outline *outline, int p) {
  part[0] = '\0';
  if (p > 0) mo_part_path(part, outline->parts[p].threshold);
}

static void site_path(char name[NAME_BYTES], const char *part, int64_t site_index) {
  snprintf(name, NAME_BYTES, "%s/layers/%03lld/%s", part, (long long)(site_index / 2),
           mo_site_name((mo_site)(site_index % 2)));
}

static const char *table_path(char name[NAME_BYTES], const char *part, const char *table) {
  snprintf(name, NAME_BYTES, "%s/%s", part, table);
  return name;
}

/* This rank's part of the outline. */
static mo_status outline_fill(mo_outline *outline, const mo_results *results, const int *owner, int64_t n_timing) {
  int64_t n_sites = 2 * results->n_layers, all = outline->n_parts * n_sites;
  int rank = mo_comm_rank(results->comm);
  outline->n = all + mo_comm_size(results->comm);
  outline->counts = mo_alloc((size_t)outline->n, sizeof *outline->counts);
  if (!outline->counts) return MO_FAILED;
  outline->site_rows = outline->counts;
  outline->timing = outline->counts + all;
  outline->timing[rank] = n_timing;
  for (int64_t k = 0; k < all; k++) {
    const mo_site_row *rows;
    int64_t i = k % n_sites;
    if (owner[i / 2] == rank)
      MO_TRY(mo_accumulator_site_rows(outline->parts[k / n_sites].accumulator, i / 2, (mo_site)(i % 2), &rows,
                                      &outline->site_rows[k]));
  }
  return MO_OK;
}

static int64_t sum(const int64_t *values, int n) {
  int64_t total = 0;
  for (int i = 0; i < n; i++) total += values[i];
  return total;
}

static mo_status create_layers(const mo_results *results, const char *part, const int64_t *site_rows) {
  char name[NAME_BYTES];
  MO_TRY(mo_h5_group(&results->file, table_path(name, part, "layers"),
                     "A group per layer, with a table of outlier values for each of its two sites"));
  for (int64_t i = 0; i < 2 * results->n_layers; i++) {
    if (i % 2 == 0) {
      snprintf(name, sizeof name, "%s/layers/%03lld", part, (long long)(i / 2));
      MO_TRY(mo_h5_group(&results->file, name, "One layer"));
    }
    site_path(name, part, i);
    MO_TRY(mo_table_create(&results->file, &mo_table_site_rows, name, site_rows[i]));
  }
  return MO_OK;
}

/* A table that rank 0 has. */
typedef struct {
  const char *name;
  const mo_table *table;
  const void *rows;
  int64_t n_rows;
} root_table;

enum { ROOT_TABLES = 5 };

static void list_tables(root_table tables[ROOT_TABLES], const mo_analysis *a) {
  const root_table list[ROOT_TABLES] = {
      {"positions", &mo_table_positions, a->positions, a->n_positions},
      {"sequence_features", &mo_table_sequence_features, a->sequence_features, a->n_sequence_features},
      {"features", &mo_table_features, a->features, a->n_features},
      {"sites", &mo_table_sites, a->sites, a->n_sites},
      {"top_values", &mo_table_top_values, a->top_values, a->n_top_values}};
  memcpy(tables, list, sizeof list);
}

static mo_status create_tables(const mo_results *results, const char *part, const mo_analysis *analysis) {
  char name[NAME_BYTES];
  root_table tables[ROOT_TABLES];
  list_tables(tables, analysis);
  for (int i = 0; i < ROOT_TABLES; i++)
    MO_TRY(mo_table_create(&results->file, tables[i].table, table_path(name, part, tables[i].name), tables[i].n_rows));
  return MO_OK;
}

static mo_status create_ablation(const mo_results *results) {
  const mo_ablation *ablation = results->ablation;
  MO_TRY(mo_table_create(&results->file, &mo_table_ablation, "/ablation", ablation->n_rows));
  MO_TRY(mo_table_create(&results->file, &mo_table_ablation_features, "/ablation_features", ablation->n_features));
  if (results->n_experts == 0) return MO_OK;
  return mo_table_create(&results->file, &mo_table_growth, "/growth", ablation->n_growth);
}

static mo_status write_ablation(const mo_results *results) {
  const mo_ablation *ablation = results->ablation;
  MO_TRY(mo_table_write(&results->file, &mo_table_ablation, "/ablation", 0, ablation->n_rows, ablation->rows));
  MO_TRY(mo_table_write(&results->file, &mo_table_ablation_features, "/ablation_features", 0, ablation->n_features,
                        ablation->features));
  if (results->n_experts == 0) return MO_OK;
  return mo_table_write(&results->file, &mo_table_growth, "/growth", 0, ablation->n_growth, ablation->growth);
}

static mo_status create_summary(const mo_results *results, const char *part) {
  char name[NAME_BYTES];
  MO_TRY(mo_h5_group(&results->file, table_path(name, part, "summary"), mo_table_summary.description));
  for (int c = 0; c < mo_table_summary.n_columns; c++) {
    const mo_column *column = &mo_table_summary.columns[c];
    const mo_h5_text texts[] = {{"description", column->meaning}, {"units", column->units}};
    hid_t type;
    snprintf(name, sizeof name, "%s/summary/%s", part, column->name);
    MO_TRY(mo_column_type(&results->file, column, false, &type));
    MO_TRY(mo_h5_close(&results->file, mo_h5_dataset(&results->file, name, type, 0, NULL, texts, 2), type));
  }
  return MO_OK;
}

static mo_status create_arrays(const mo_results *results, const mo_analysis *analysis) {
  static const mo_h5_text nll[] = {
      {"description", "Negative log-likelihood of token s + 1 given tokens 0..s, [sequence, s]"}, {"units", "nats"}};
  static const mo_h5_text perplexity = {"description", "exp(mean of nll); NaN if sequences have one token only"};
  static const mo_h5_text low = {"description", "lower end of the 95 % interval of perplexity; NaN: not known"};
  static const mo_h5_text high = {"description", "upper end of the 95 % interval of perplexity; NaN: not known"};
  static const mo_h5_text experts[] = {
      {"description", "Tokens sent to each expert, [layer, expert]; 0 in layers that do not route"},
      {"units", "tokens"}};
  const mo_h5_file *file = &results->file;
  if (analysis->nll) {
    const hsize_t dims[] = {(hsize_t)results->n_sequences, (hsize_t)(results->length - 1)};
    MO_TRY(mo_h5_group(file, "/perplexity", "How well the model predicts the tokens"));
    MO_TRY(mo_h5_dataset(file, "/perplexity/nll", H5T_IEEE_F32LE, 2, dims, nll, 2));
    MO_TRY(mo_h5_dataset(file, "/perplexity/perplexity", H5T_IEEE_F64LE, 0, NULL, &perplexity, 1));
    MO_TRY(mo_h5_dataset(file, "/perplexity/perplexity_low", H5T_IEEE_F64LE, 0, NULL, &low, 1));
    MO_TRY(mo_h5_dataset(file, "/perplexity/perplexity_high", H5T_IEEE_F64LE, 0, NULL, &high, 1));
  }
  if (results->n_experts > 0) {
    const hsize_t dims[] = {(hsize_t)results->n_layers, (hsize_t)results->n_experts};
    MO_TRY(mo_h5_group(file, "/routing", "Where the routers send the tokens"));
    MO_TRY(mo_h5_dataset(file, "/routing/expert_tokens", H5T_STD_U64LE, 2, dims, experts, 2));
    if (analysis->experts) MO_TRY(mo_table_create(file, &mo_table_experts, "/experts", analysis->n_experts));
  }
  return MO_OK;
}

static mo_status put_threshold(const mo_h5_file *file, const char *part, double threshold) {
  hid_t group = H5Gopen2(file->id, part, H5P_DEFAULT);
  if (group < 0) return mo_h5_fail(file, "open", part);
  return mo_h5_close(file, mo_h5_put_f64(file, group, "threshold", threshold), group);
}

static mo_status create_part(const mo_results *results, const mo_outline *outline, int p) {
  char part[MO_PART_BYTES];
  part_path(part, outline, p);
  if (p == 1)
    MO_TRY(mo_h5_group(&results->file, "/thresholds",
                       "A group for each further threshold, with the tables that the root has for the first one"));
  if (p > 0) {
    MO_TRY(mo_h5_group(&results->file, part, "Outlier values by another threshold"));
    MO_TRY(put_threshold(&results->file, part, outline->parts[p].threshold));
  }
  MO_TRY(create_layers(results, part, outline->site_rows + p * 2 * results->n_layers));
  MO_TRY(create_tables(results, part, outline->parts[p].analysis));
  return create_summary(results, part);
}

/* Rank 0 creates everything, serially. */
static mo_status create_all(mo_results *results, const mo_outline *outline) {
  const mo_analysis *analysis = outline->parts[0].analysis;
  if (results->n_experts > 0 && !analysis->expert_tokens)
    return MO_FAIL(MO_FAILED, "no expert counts for a model with %lld experts (%s): report this",
                   (long long)results->n_experts, results->partial);
  MO_TRY(mo_h5_open(&results->file, H5F_ACC_RDWR));
  mo_status status = MO_OK;
  for (int p = 0; p < outline->n_parts && status == MO_OK; p++) status = create_part(results, outline, p);
  if (status == MO_OK)
    status =
        mo_table_create(&results->file, &mo_table_timing, "/timing", sum(outline->timing, mo_comm_size(results->comm)));
  if (status == MO_OK && results->ablation) status = create_ablation(results);
  if (status == MO_OK) status = create_arrays(results, analysis);
  MO_TRY(mo_h5_finish(&results->file, status));
  return mo_file_reserve(results->partial);
}

static mo_status write_layers(const mo_results *results, const mo_outline *outline, const int *owner, int p) {
  char name[NAME_BYTES], part[MO_PART_BYTES];
  const int64_t *site_rows = outline->site_rows + p * 2 * results->n_layers;
  part_path(part, outline, p);
  for (int64_t i = 0; i < 2 * results->n_layers; i++) {
    const mo_site_row *rows;
    int64_t n_rows;
    if (owner[i / 2] != mo_comm_rank(results->comm)) continue;
    site_path(name, part, i);
    MO_TRY(mo_accumulator_site_rows(outline->parts[p].accumulator, i / 2, (mo_site)(i % 2), &rows, &n_rows));
    if (n_rows != site_rows[i])
      return MO_FAIL(MO_FAILED, "%s has %lld rows now and had %lld (%s): report this", name, (long long)n_rows,
                     (long long)site_rows[i], results->partial);
    MO_TRY(mo_table_write(&results->file, &mo_table_site_rows, name, 0, n_rows, rows));
  }
  return MO_OK;
}

static mo_status write_summary(const mo_results *results, const char *part, const mo_summary *summary) {
  char name[NAME_BYTES];
  for (int c = 0; c < mo_table_summary.n_columns; c++) {
    const mo_column *column = &mo_table_summary.columns[c];
    const void *value = (const char *)summary + column->offset;
    hid_t type;
    snprintf(name, sizeof name, "%s/summary/%s", part, column->name);
    MO_TRY(mo_column_type(&results->file, column, true, &type));
    MO_TRY(mo_h5_close(&results->file, mo_h5_write(&results->file, name, type, 0, NULL, NULL, value), type));
  }
  return MO_OK;
}

/* Rank 0's tables of a part. */
static mo_status write_tables(const mo_results *results, const mo_outline *outline, int p) {
  char name[NAME_BYTES], part[MO_PART_BYTES];
  root_table tables[ROOT_TABLES];
  part_path(part, outline, p);
  list_tables(tables, outline->parts[p].analysis);
  for (int i = 0; i < ROOT_TABLES; i++)
    MO_TRY(mo_table_write(&results->file, tables[i].table, table_path(name, part, tables[i].name), 0, tables[i].n_rows,
                          tables[i].rows));
  return write_summary(results, part, &outline->parts[p].analysis->summary);
}

/* Rank 0's arrays. */
static mo_status write_arrays(const mo_results *results, const mo_analysis *analysis) {
  const mo_h5_file *file = &results->file;
  const hsize_t start[] = {0, 0};
  if (analysis->nll) {
    const hsize_t count[] = {(hsize_t)results->n_sequences, (hsize_t)(results->length - 1)};
    MO_TRY(mo_h5_write(file, "/perplexity/nll", H5T_NATIVE_FLOAT, 2, start, count, analysis->nll));
    const struct {
      const char *name;
      const double *value;
    } scalars[] = {{"/perplexity/perplexity", &analysis->perplexity},
                   {"/perplexity/perplexity_low", &analysis->perplexity_low},
                   {"/perplexity/perplexity_high", &analysis->perplexity_high}};
    for (size_t i = 0; i < sizeof scalars / sizeof *scalars; i++)
      MO_TRY(mo_h5_write(file, scalars[i].name, H5T_NATIVE_DOUBLE, 0, NULL, NULL, scalars[i].value));
  }
  if (results->n_experts > 0) {
    const hsize_t count[] = {(hsize_t)results->n_layers, (hsize_t)results->n_experts};
    MO_TRY(mo_h5_write(file, "/routing/expert_tokens", H5T_NATIVE_UINT64, 2, start, count, analysis->expert_tokens));
    if (analysis->experts)
      MO_TRY(mo_table_write(file, &mo_table_experts, "/experts", 0, analysis->n_experts, analysis->experts));
  }
  return MO_OK;
}

void mo_results_set_ablation(mo_results *results, const mo_ablation *ablation) { results->ablation = ablation; }

/* This rank's data. */
static mo_status write_all(const mo_results *results, const mo_outline *outline, const int *owner,
                           const mo_timing_row *timing) {
  int rank = mo_comm_rank(results->comm);
  for (int p = 0; p < outline->n_parts; p++) {
    MO_TRY(write_layers(results, outline, owner, p));
    if (rank == 0) MO_TRY(write_tables(results, outline, p));
  }
  if (rank == 0 && results->ablation) MO_TRY(write_ablation(results));
  if (rank == 0) MO_TRY(write_arrays(results, outline->parts[0].analysis));
  return mo_table_write(&results->file, &mo_table_timing, "/timing", sum(outline->timing, rank), outline->timing[rank],
                        timing);
}

static mo_status write_together(mo_results *results, const mo_outline *outline, const int *owner,
                                const mo_timing_row *timing) {
  MO_TRY(mo_results_open(results));
  MO_TRY(mo_results_agree(results, write_all(results, outline, owner, timing)));
  return mo_results_close(results);
}

/* This rank's turn: the file is nobody else's. */
static mo_status write_turn(mo_results *results, const mo_outline *outline, const int *owner,
                            const mo_timing_row *timing) {
  MO_TRY(mo_h5_open(&results->file, H5F_ACC_RDWR));
  mo_status status = write_all(results, outline, owner, timing);
  if (status == MO_OK && results->stores) {
    status = results->give ? results->give(results->giver, results)
                           : MO_FAIL(MO_FAILED, "nobody gives the activations (%s): report this", results->partial);
  }
  MO_TRY(mo_h5_finish(&results->file, status));
  return mo_file_sync(results->partial); /* the next rank may be on another node */
}

static mo_status write_in_turns(mo_results *results, const mo_outline *outline, const int *owner,
                                const mo_timing_row *timing) {
  int rank = mo_comm_rank(results->comm);
  for (int turn = 0; turn < mo_comm_size(results->comm); turn++)
    MO_TRY(mo_results_agree(results, turn == rank ? write_turn(results, outline, owner, timing) : MO_OK));
  return MO_OK;
}

mo_status mo_results_write(mo_results *results, const int *owner, const mo_results_part *parts, int n_parts,
                           const mo_timing_row *timing, int64_t n_timing) {
  mo_outline outline = {.parts = parts, .n_parts = n_parts};
  int rank = mo_comm_rank(results->comm);
  mo_status status = outline_fill(&outline, results, owner, n_timing);
  MO_TRY_TO(done, mo_results_agree(results, status));
  MO_TRY_TO(done, mo_comm_allreduce(results->comm, outline.counts, (size_t)outline.n, MO_SUM_I64));
  if (results->file.id >= 0) MO_TRY_TO(done, mo_results_close(results)); /* open for activations until now */
  /* No rank may still be closing the file when rank 0 changes it. */
  MO_TRY_TO(done, mo_results_agree(results, MO_OK));
  if (rank == 0) status = create_all(results, &outline);
  MO_TRY_TO(done, mo_results_agree(results, status));
  status = mo_results_in_turns(results) ? write_in_turns(results, &outline, owner, timing)
                                        : write_together(results, &outline, owner, timing);
done:
  free(outline.counts);
  return status;
}
