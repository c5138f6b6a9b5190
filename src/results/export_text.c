/* The texts of the export. Keys are in the reference implementation's order; a feature is one line, so that a reader of
 * the first megabytes sees as many as possible. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "results/export.h"

mo_status mo_export_check(const mo_export_text *text) {
  if (!ferror(text->out)) return MO_OK;
  return MO_FAIL(MO_FAILED, "cannot write the export (%s: %s): free space or choose another folder", text->path,
                 errno ? strerror(errno) : "write failed");
}

static void put_key(FILE *out, int depth, const char *key) { fprintf(out, "%*s\"%s\": ", 2 * depth, "", key); }

static void put_integer(FILE *out, int depth, const char *key, int64_t value) {
  put_key(out, depth, key);
  fprintf(out, "%" PRId64 ",\n", value);
}

static void put_real(FILE *out, int depth, const char *key, double value) {
  put_key(out, depth, key);
  mo_json_put_real(out, value);
  fputs(",\n", out);
}

static void put_text(FILE *out, int depth, const char *key, const char *value) {
  put_key(out, depth, key);
  mo_json_put_text(out, value);
  fputs(",\n", out);
}

/* --- final_analysis_results.json --- */

static void put_feature(const mo_export_source *source, FILE *out, int64_t i) {
  const mo_export_feature *feature = &source->features[i];
  const char *gap = "";
  fprintf(out, "{\"feature_dim\": %d, \"layer_percentage\": ", (int)feature->row.feature);
  mo_json_put_real(out, feature->row.layer_percentage);
  fputs(", \"seq_percentage\": ", out);
  mo_json_put_real(out, feature->row.seq_percentage);
  fputs(", \"max_magnitude\": ", out);
  mo_json_put_real(out, feature->row.max_magnitude);
  fprintf(out, ", \"total_occurrences\": %" PRId64 ", \"layers_affected\": [", feature->row.total_occurrences);
  for (int64_t k = 0; k < source->n_sites; k++) {
    int64_t s = source->sorted_sites[k];
    if (!mo_export_hits(source, i, s)) continue;
    fprintf(out, "%s\"%s\"", gap, source->sites[s].name);
    gap = ", ";
  }
  fputs("], \"example_values\": [", out);
  for (int k = 0; k < feature->n_examples; k++) {
    fputs(k ? ", " : "", out);
    mo_json_put_real(out, feature->examples[k]);
  }
  fputs("]}", out);
}

/* The elements of a list of the current sequence's features; *any: there are some in it already. */
static mo_status put_features(const mo_export_source *source, const mo_export_text *text, int depth, bool *any) {
  for (int64_t i = 0; i < source->n_features; i++) {
    fprintf(text->out, "%s%*s", *any ? ",\n" : "\n", 2 * depth, "");
    errno = 0;
    put_feature(source, text->out, i);
    MO_TRY(mo_export_check(text));
    *any = true;
  }
  return MO_OK;
}

/* File name without folder and ending, as the experiment's name. */
static void put_experiment(FILE *out, const char *path) {
  const char *slash = strrchr(path, '/');
  char *name = strdup(slash ? slash + 1 : path);
  char *end = name ? strrchr(name, '.') : NULL;
  if (end && end != name) *end = '\0';
  put_key(out, 2, "experiment_name");
  mo_json_put_text(out, name ? name : "");
  free(name);
}

static void put_head(const mo_export_source *source, FILE *out) {
  const mo_results_file *result = &source->result;
  fputs("{\n", out);
  put_key(out, 1, "analysis_summary");
  fputs("{\n", out);
  put_integer(out, 2, "total_batches", result->n_sequences);
  put_integer(out, 2, "total_sequences", result->n_sequences);
  put_integer(out, 2, "total_systematic_outliers", source->rows.n_rows);
  put_key(out, 2, "completion_time");
  mo_json_put_text(out, result->finished);
  fputs("\n  },\n", out);
  put_key(out, 1, "run_config");
  fputs("{\n", out);
  put_text(out, 2, "model", result->model_name);
  put_text(out, 2, "dataset", source->dataset);
  put_integer(out, 2, "num_sequences", result->n_sequences);
  put_integer(out, 2, "sequence_length", result->sequence_length);
  put_integer(out, 2, "batch_size", 1);
  put_real(out, 2, "threshold", result->threshold);
  put_key(out, 2, "layers");
  fputs("null,\n", out);
  put_key(out, 2, "shard_range_inclusive");
  fprintf(out, "[%" PRId64 ", %" PRId64 "],\n", source->skip, source->skip + result->n_sequences - 1);
  put_experiment(out, result->path);
  fputs("\n  },\n", out);
}

static mo_status put_top(mo_export_source *source, FILE *out) {
  mo_export_top *top;
  int64_t n;
  MO_TRY(mo_export_read_top(source, &top, &n));
  put_key(out, 1, "top_features");
  fputc('[', out);
  for (int64_t i = 0; i < n; i++) {
    fprintf(out, "%s    {\"feature_dim\": %d, \"max_magnitude\": ", i ? ",\n" : "\n", (int)top[i].feature);
    mo_json_put_real(out, top[i].max_magnitude);
    fprintf(out, ", \"occurrences\": %d}", (int)top[i].occurrences);
  }
  fputs(n ? "\n  ],\n" : "],\n", out);
  free(top);
  return MO_OK;
}

static mo_status put_all_outliers(mo_export_source *source, const mo_export_text *text) {
  bool any = false;
  put_key(text->out, 1, "all_systematic_outliers");
  fputc('[', text->out);
  mo_export_rewind(source);
  for (int64_t n = 0; n < source->result.n_sequences; n++) {
    MO_TRY(mo_export_load(source, n));
    MO_TRY(put_features(source, text, 2, &any));
  }
  MO_TRY(mo_export_check_end(source));
  fputs(any ? "\n  ],\n" : "],\n", text->out);
  return MO_OK;
}

static void put_site(const mo_export_source *source, FILE *out, const mo_export_site *site) {
  const mo_results_file *result = &source->result;
  double values = (double)result->sequence_length * (double)result->hidden_size;
  fprintf(out, "%*s\"%s\": {\"num_outliers\": %" PRId64 ", \"max_magnitude\": ", 10, "", site->name, site->count);
  mo_json_put_real(out, site->max_abs);
  fputs(", \"outlier_percentage\": ", out);
  mo_json_put_real(out, (double)site->count / values * 100);
  fprintf(out, ", \"shape\": [1, %" PRId64 ", %" PRId64 "]}", result->sequence_length, result->hidden_size);
}

static mo_status put_batch(const mo_export_source *source, const mo_export_text *text, int64_t sequence) {
  FILE *out = text->out;
  bool any = false;
  errno = 0;
  fputs(sequence ? ",\n    {\n" : "\n    {\n", out);
  put_integer(out, 3, "batch_id", sequence + 1);
  put_text(out, 3, "run_dir", source->result.path);
  put_integer(out, 3, "sequences_processed", 1);
  put_key(out, 3, "systematic_outliers");
  fputc('[', out);
  MO_TRY(put_features(source, text, 4, &any));
  fputs(any ? "\n      ],\n" : "],\n", out);
  put_key(out, 3, "outlier_summary");
  fputs("{\n", out);
  put_integer(out, 4, "total_outlier_features", source->features_hit);
  put_key(out, 4, "layer_stats");
  for (int64_t s = 0; s < source->n_sites; s++) {
    fputs(s ? ",\n" : "{\n", out);
    put_site(source, out, &source->sites[s]);
  }
  fputs("\n        },\n", out);
  put_key(out, 4, "threshold");
  mo_json_put_real(out, source->result.threshold);
  fputs("\n      },\n", out);
  put_key(out, 3, "timestamp");
  mo_json_put_text(out, source->result.finished);
  fputs("\n    }", out);
  return mo_export_check(text);
}

static mo_status put_batches(mo_export_source *source, const mo_export_text *text) {
  put_key(text->out, 1, "batch_results");
  fputc('[', text->out);
  mo_export_rewind(source);
  for (int64_t n = 0; n < source->result.n_sequences; n++) {
    MO_TRY(mo_export_load(source, n));
    MO_TRY(put_batch(source, text, n));
  }
  fputs("\n  ]\n}\n", text->out);
  return mo_export_check(text);
}

mo_status mo_export_analysis(mo_export_source *source, const mo_export_text *text, int64_t *characters) {
  put_head(source, text->out);
  MO_TRY(put_top(source, text->out));
  MO_TRY(mo_export_check(text));
  MO_TRY(put_all_outliers(source, text));
  *characters = (int64_t)ftello(text->out) + (int64_t)strlen("  \"batch_results\"");
  return put_batches(source, text);
}

/* --- perplexity_results.json --- */

/* perplexity to num_sequences, of a sequence or of all. */
static void put_losses(FILE *out, int depth, double loss, int64_t tokens, int64_t sequences) {
  put_real(out, depth, "perplexity", exp(loss));
  put_real(out, depth, "avg_loss", loss);
  put_integer(out, depth, "total_tokens", tokens);
  put_key(out, depth, "num_sequences");
  fprintf(out, "%" PRId64, sequences);
}

/* The reference weights a sequence's mean loss, over its S - 1 predictions, by its S tokens. */
mo_status mo_export_perplexity(mo_export_source *source, const mo_export_text *text) {
  const mo_results_file *result = &source->result;
  const int64_t n = result->n_sequences, length = result->sequence_length;
  FILE *out = text->out;
  double sum = 0, loss;
  for (int64_t i = 0; i < n; i++) {
    MO_TRY(mo_export_mean_nll(source, i, &loss));
    sum += loss * (double)length;
  }
  fputs("{\n", out);
  put_losses(out, 1, sum / ((double)length * (double)n), length * n, n);
  fputs(",\n", out);
  put_text(out, 1, "model", result->model_name);
  put_text(out, 1, "dataset", source->dataset);
  put_integer(out, 1, "sequence_length", length);
  put_text(out, 1, "timestamp", result->finished);
  put_key(out, 1, "batch_results");
  fputc('[', out);
  for (int64_t i = 0; i < n; i++) {
    MO_TRY(mo_export_mean_nll(source, i, &loss));
    errno = 0;
    fputs(i ? ",\n    {\n" : "\n    {\n", out);
    put_losses(out, 3, loss, length, 1);
    fputs("\n    }", out);
    MO_TRY(mo_export_check(text));
  }
  fputs("\n  ]\n}\n", out);
  return mo_export_check(text);
}

/* --- config.json --- */

mo_status mo_export_config(const mo_export_source *source, const mo_export_text *text) {
  errno = 0;
  fputs(source->config_json, text->out);
  return mo_export_check(text);
}
