/* Reports for readers: aligned text and markdown. */
#include <inttypes.h>
#include <math.h>

#include "report.h"

static const char *class_name(int32_t classification) {
  return mo_classification_name((mo_classification)classification);
}

static void add_percent(mo_text_table *table, double fraction) {
  mo_text_table_add_number(table, "%.1f", 100 * fraction, "-");
}

static mo_status print_models(const mo_report_model *models, int n, mo_table_style style, FILE *out) {
  static const mo_text_column columns[] = {{"model", true},
                                           {"class", true},
                                           {"features", false},
                                           {"systematic", false},
                                           {"sequence rows", false},
                                           {"mean sites %", false},
                                           {"median sites %", false},
                                           {"mean positions %", false},
                                           {"median positions %", false},
                                           {"perplexity", false},
                                           {"precision", true},
                                           {"tokens", false}};
  mo_text_table table = MO_TEXT_TABLE(columns);
  for (int i = 0; i < n; i++) {
    const mo_results_file *file = &models[i].file;
    mo_text_table_add(&table, "%s", mo_report_name(&models[i]));
    mo_text_table_add(&table, "%s", class_name(file->summary.classification));
    mo_text_table_add(&table, "%" PRId64, file->summary.outlier_features);
    mo_text_table_add(&table, "%" PRId64, file->summary.systematic_features);
    mo_text_table_add(&table, "%" PRId64, file->summary.sequence_rows);
    add_percent(&table, file->summary.mean_layer_percentage);
    add_percent(&table, file->summary.median_layer_percentage);
    add_percent(&table, file->summary.mean_seq_percentage);
    add_percent(&table, file->summary.median_seq_percentage);
    mo_text_table_add_number(&table, "%.4g", file->perplexity, "-");
    mo_text_table_add(&table, "%s", file->precision);
    mo_text_table_add(&table, "%" PRId64 " x %" PRId64, file->n_sequences, file->sequence_length);
  }
  mo_status status = mo_text_table_print(&table, style, out);
  mo_text_table_free(&table);
  return status;
}

static void item(const char *name, mo_table_style style, FILE *out) {
  if (style == MO_TABLE_MARKDOWN)
    fprintf(out, "- %s: ", name);
  else
    fprintf(out, "  %-18s ", name);
}

static void percentages(const char *name, double mean, double median, mo_table_style style, FILE *out) {
  item(name, style, out);
  if (isnan(mean) || isnan(median))
    fputs("-\n", out);
  else
    fprintf(out, "mean %.1f, median %.1f (over the outlier features)\n", 100 * mean, 100 * median);
}

static void print_summary(const mo_report_model *model, mo_table_style style, FILE *out) {
  const mo_results_file *file = &model->file;
  const mo_summary *summary = &file->summary;
  fputs(style == MO_TABLE_MARKDOWN ? "## " : "", out);
  mo_print_clean(mo_report_name(model), out);
  fputs(" (", out);
  mo_print_clean(file->path, out);
  fprintf(out, "): %s\n%s", class_name(summary->classification), style == MO_TABLE_MARKDOWN ? "\n" : "");
  item("architecture", style, out);
  mo_print_clean(file->architecture, out);
  fprintf(out, ", %" PRId64 " layer%s, hidden %" PRId64 "\n", file->n_layers, mo_plural(file->n_layers), file->hidden_size);
  item("precision", style, out);
  mo_print_clean(file->precision, out);
  fputs(" on ", out);
  mo_print_clean(file->device, out);
  fprintf(out, ", %" PRId64 " rank%s\n", file->n_ranks, mo_plural(file->n_ranks));
  item("tokens", style, out);
  fprintf(out, "%" PRId64 " sequence%s x %" PRId64 "\n", file->n_sequences, mo_plural(file->n_sequences), file->sequence_length);
  item("threshold", style, out);
  fprintf(out, "%g\n", file->threshold);
  item("perplexity", style, out);
  if (isnan(file->perplexity))
    fputs("not computed\n", out);
  else
    fprintf(out, file->perplexity < 1e6 ? "%.4f\n" : "%.4g\n", file->perplexity);
  item("outlier features", style, out);
  fprintf(out, "%" PRId64 ", %" PRId64 " of them systematic\n", summary->outlier_features,
          summary->systematic_features);
  item("not qualifying", style, out);
  fprintf(out, "%" PRId64 " of all %" PRId64 " features with outlier values\n",
          summary->features_hit - summary->outlier_features, summary->features_hit);
  item("sequence rows", style, out);
  fprintf(out, "%" PRId64 "\n", summary->sequence_rows);
  percentages("sites %", summary->mean_layer_percentage, summary->median_layer_percentage, style, out);
  percentages("positions %", summary->mean_seq_percentage, summary->median_seq_percentage, style, out);
  fputc('\n', out);
}

static mo_status print_features(const mo_report_model *model, mo_table_style style, FILE *out) {
  static const mo_text_column columns[] = {
      {"feature", false},     {"class", true},        {"max magnitude", false}, {"layers %", false}, {"sites %", false},
      {"positions %", false}, {"occurrences", false}, {"+ %", false},           {"- %", false},      {"q1", false},
      {"median", false},      {"q3", false},          {"share %", false}};
  mo_text_table table = MO_TEXT_TABLE(columns);
  for (int64_t i = 0; i < model->n_shown; i++) {
    const mo_feature *f = model->shown[i];
    mo_text_table_add(&table, "%" PRId32, f->feature);
    mo_text_table_add(&table, "%s", class_name(f->classification));
    mo_text_table_add(&table, "%.2f", f->max_magnitude);
    add_percent(&table, f->block_percentage);
    add_percent(&table, f->layer_percentage);
    add_percent(&table, f->seq_percentage);
    mo_text_table_add(&table, "%" PRId64, f->total_occurrences);
    add_percent(&table, (double)f->positive / (double)f->total_occurrences);
    add_percent(&table, (double)f->negative / (double)f->total_occurrences);
    mo_text_table_add_number(&table, "%.2f", f->q1, "-");
    mo_text_table_add_number(&table, "%.2f", f->median, "-");
    mo_text_table_add_number(&table, "%.2f", f->q3, "-");
    add_percent(&table, f->share);
  }
  mo_status status = mo_text_table_print(&table, style, out);
  mo_text_table_free(&table);
  return status;
}

static mo_status print_model(const mo_report_model *model, mo_table_style style, FILE *out) {
  print_summary(model, style, out);
  if (model->file.n_features == 0) {
    fputs("No value reached the threshold.\n", out);
    return MO_OK;
  }
  if (model->n_qualified > 0)
    fputs("Outlier features, largest magnitude first:\n\n", out);
  else
    fputs("No feature qualifies as an outlier feature. Those with the largest magnitude are:\n\n", out);
  MO_TRY(print_features(model, style, out));
  if (model->n_more > 0) fprintf(out, "\n%" PRId64 " more: --features 0 shows all.\n", model->n_more);
  return MO_OK;
}

mo_status mo_report_print_text(const mo_report_model *models, int n, mo_table_style style, FILE *out) {
  if (n > 1) {
    MO_TRY(print_models(models, n, style, out));
    fputc('\n', out);
  }
  for (int i = 0; i < n; i++) {
    if (i > 0) fputc('\n', out);
    MO_TRY(print_model(&models[i], style, out));
  }
  return MO_OK;
}
