/* Reports for readers: aligned text and markdown. */
#include <inttypes.h>
#include <math.h>

#include "report.h"
#include "report_ablation.h"
#include "report_growth.h"

static const char *class_name(int32_t classification) {
  return mo_classification_name((mo_classification)classification);
}

static void add_percent(mo_text_table *table, double fraction) {
  mo_text_table_add_number(table, "%.1f", 100 * fraction, "-");
}

enum { NUMBER_SIZE = 96 };

/* "NUMBER [LOW, HIGH]", without brackets where there is no interval; "-" for NaN. digits: after the point. */
static const char *number_text(char text[NUMBER_SIZE], double number, double low, double high, int digits) {
  if (isnan(number))
    snprintf(text, NUMBER_SIZE, "-");
  else if (isnan(low) || isnan(high))
    snprintf(text, NUMBER_SIZE, "%.*f", digits, number);
  else
    snprintf(text, NUMBER_SIZE, "%.*f [%.*f, %.*f]", digits, number, digits, low, digits, high);
  return text;
}

static const char *percent_text(char text[NUMBER_SIZE], double fraction, double low, double high) {
  return number_text(text, 100 * fraction, 100 * low, 100 * high, 1);
}

static void add_percent_interval(mo_text_table *table, double fraction, double low, double high) {
  char text[NUMBER_SIZE];
  mo_text_table_add(table, "%s", percent_text(text, fraction, low, high));
}

static void add_count_interval(mo_text_table *table, int64_t count, double low, double high) {
  char text[NUMBER_SIZE];
  mo_text_table_add(table, "%s", number_text(text, (double)count, low, high, 0));
}

static const char *perplexity_text(char text[NUMBER_SIZE], const mo_results_file *file) {
  if (isnan(file->perplexity))
    snprintf(text, NUMBER_SIZE, "-");
  else if (isnan(file->perplexity_low))
    snprintf(text, NUMBER_SIZE, "%.4g", file->perplexity);
  else
    snprintf(text, NUMBER_SIZE, "%.4g [%.4g, %.4g]", file->perplexity, file->perplexity_low, file->perplexity_high);
  return text;
}

/* Thousands, millions or billions, with three digits. */
static void add_parameters(mo_text_table *table, int64_t n) {
  const char *units[] = {"", "K", "M", "B", "T"};
  double value = (double)n;
  int unit = 0;
  while (value >= 999.5 && unit < 4) {
    value /= 1000;
    unit++;
  }
  if (n < 0)
    mo_text_table_add(table, "-");
  else
    mo_text_table_add(table, "%.*f%s", unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2, value, units[unit]);
}

static void add_experts(mo_text_table *table, const mo_results_file *file) {
  if (file->n_experts < 0 || file->experts_per_token < 0)
    mo_text_table_add(table, "-");
  else if (file->n_experts == 0)
    mo_text_table_add(table, "none");
  else
    mo_text_table_add(table, "%" PRId64 ", top %" PRId64, file->n_experts, file->experts_per_token);
}

static void add_model(mo_text_table *table, const mo_report_model *model) {
  const mo_results_file *file = &model->file;
  const mo_summary *s = &file->summary;
  char text[NUMBER_SIZE];
  mo_text_table_add(table, "%s", mo_report_name(model));
  mo_text_table_add(table, "%s", class_name(s->classification));
  add_parameters(table, file->parameters);
  add_parameters(table, file->active_parameters);
  add_experts(table, file);
  add_count_interval(table, s->outlier_features, s->outlier_features_low, s->outlier_features_high);
  add_count_interval(table, s->systematic_features, s->systematic_features_low, s->systematic_features_high);
  mo_text_table_add(table, "%" PRId64, s->sequence_rows);
  add_percent(table, model->layer_agreement);
  add_percent_interval(table, s->mean_layer_percentage, s->mean_layer_percentage_low, s->mean_layer_percentage_high);
  add_percent_interval(table, s->median_layer_percentage, s->median_layer_percentage_low,
                       s->median_layer_percentage_high);
  add_percent_interval(table, s->mean_seq_percentage, s->mean_seq_percentage_low, s->mean_seq_percentage_high);
  add_percent_interval(table, s->median_seq_percentage, s->median_seq_percentage_low, s->median_seq_percentage_high);
  mo_text_table_add(table, "%s", perplexity_text(text, file));
  mo_text_table_add(table, "%s", file->precision);
  mo_text_table_add(table, "%" PRId64 " x %" PRId64, file->n_sequences, file->sequence_length);
}

static mo_status print_models(const mo_report_model *models, int n, mo_table_style style, FILE *out) {
  static const mo_text_column columns[] = {{"model", true},
                                           {"class", true},
                                           {"parameters", false},
                                           {"active", false},
                                           {"experts", false},
                                           {"features", false},
                                           {"systematic", false},
                                           {"total_systematic_outliers", false},
                                           {"layer agreement %", false},
                                           {"mean sites %", false},
                                           {"median sites %", false},
                                           {"mean positions %", false},
                                           {"median positions %", false},
                                           {"perplexity", false},
                                           {"precision", true},
                                           {"tokens", false}};
  mo_text_table table = MO_TEXT_TABLE(columns);
  for (int i = 0; i < n; i++) add_model(&table, &models[i]);
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

static void print_percentages(const char *name, const char *mean, const char *median, mo_table_style style, FILE *out) {
  item(name, style, out);
  if (mean[0] == '-')
    fputs("-\n", out);
  else
    fprintf(out, "mean %s, median %s (over the outlier features)\n", mean, median);
}

static void print_criteria(const mo_results_file *file, mo_table_style style, FILE *out) {
  const mo_criteria *criteria = &file->criteria;
  item("threshold", style, out);
  fprintf(out, "%g\n", file->threshold);
  if (isnan(criteria->min_layer_fraction)) return;
  item("criteria", style, out);
  fprintf(out, "%g of the sites, %g of the positions; systematic: %g of the layers\n", criteria->min_layer_fraction,
          criteria->min_position_fraction, criteria->systematic_fraction);
}

static void print_agreement(const mo_report_model *model, mo_table_style style, FILE *out) {
  item("layer agreement", style, out);
  if (model->n_strongest == 0) {
    fputs("-\n", out);
    return;
  }
  fprintf(out, "%.1f %% of the layers, mean of feature%s", 100 * model->layer_agreement, mo_plural(model->n_strongest));
  for (int64_t i = 0; i < model->n_strongest; i++) fprintf(out, "%s %" PRId32, i ? "," : "", model->shown[i]->feature);
  fputc('\n', out);
}

static void print_results(const mo_report_model *model, mo_table_style style, FILE *out) {
  const mo_summary *s = &model->file.summary;
  char mean[NUMBER_SIZE], median[NUMBER_SIZE];
  item("outlier features", style, out);
  number_text(mean, (double)s->outlier_features, s->outlier_features_low, s->outlier_features_high, 0);
  number_text(median, (double)s->systematic_features, s->systematic_features_low, s->systematic_features_high, 0);
  fprintf(out, "%s; systematic: %s\n", mean, median);
  item("not qualifying", style, out);
  fprintf(out, "%" PRId64 " of all %" PRId64 " features with outlier values\n", s->features_hit - s->outlier_features,
          s->features_hit);
  item("sequence rows", style, out);
  fprintf(out, "%" PRId64 "\n", s->sequence_rows);
  percent_text(mean, s->mean_layer_percentage, s->mean_layer_percentage_low, s->mean_layer_percentage_high);
  percent_text(median, s->median_layer_percentage, s->median_layer_percentage_low, s->median_layer_percentage_high);
  print_percentages("sites %", mean, median, style, out);
  percent_text(mean, s->mean_seq_percentage, s->mean_seq_percentage_low, s->mean_seq_percentage_high);
  percent_text(median, s->median_seq_percentage, s->median_seq_percentage_low, s->median_seq_percentage_high);
  print_percentages("positions %", mean, median, style, out);
  print_agreement(model, style, out);
}

enum { DEAD_SHOWN = 20 };

/* The experts that got no token, by layer. */
static void print_dead_experts(const mo_results_file *file, mo_table_style style, FILE *out) {
  int64_t n = 0, routed = 0;
  int32_t layer = -1;
  if (!file->experts) return;
  item("dead experts", style, out);
  for (int64_t i = 0; i < file->n_expert_rows; i++) {
    const mo_expert *row = &file->experts[i];
    routed += !row->shared;
    if (row->shared || row->tokens > 0 || n++ >= DEAD_SHOWN) continue;
    if (row->layer != layer)
      fprintf(out, "%slayer %" PRId32 ": %" PRId32, n > 1 ? "; " : "", row->layer, row->expert);
    else
      fprintf(out, ", %" PRId32, row->expert);
    layer = row->layer;
  }
  if (n == 0)
    fprintf(out, "none of %" PRId64 "\n", routed);
  else
    fprintf(out, "%s (%" PRId64 " of %" PRId64 " got no token)\n", n > DEAD_SHOWN ? ", ..." : "", n, routed);
}

static void print_summary(const mo_report_model *model, mo_table_style style, FILE *out) {
  const mo_results_file *file = &model->file;
  fputs(style == MO_TABLE_MARKDOWN ? "## " : "", out);
  mo_print_clean(mo_report_name(model), out);
  fputs(" (", out);
  mo_print_clean(file->path, out);
  fprintf(out, "): %s\n%s", class_name(file->summary.classification), style == MO_TABLE_MARKDOWN ? "\n" : "");
  item("architecture", style, out);
  mo_print_clean(file->architecture, out);
  fprintf(out, ", %" PRId64 " layer%s, hidden %" PRId64 "\n", file->n_layers, mo_plural(file->n_layers),
          file->hidden_size);
  item("precision", style, out);
  mo_print_clean(file->precision, out);
  fputs(" on ", out);
  mo_print_clean(file->device, out);
  fprintf(out, ", %" PRId64 " rank%s\n", file->n_ranks, mo_plural(file->n_ranks));
  item("tokens", style, out);
  fprintf(out, "%" PRId64 " sequence%s x %" PRId64 "\n", file->n_sequences, mo_plural(file->n_sequences),
          file->sequence_length);
  if (file->dataset[0]) {
    item("dataset", style, out);
    mo_print_clean(file->dataset, out);
    fputc('\n', out);
  }
  print_criteria(file, style, out);
  item("perplexity", style, out);
  if (isnan(file->perplexity))
    fputs("not computed\n", out);
  else
    fprintf(out, file->perplexity < 1e6 ? "%.4f" : "%.4g", file->perplexity);
  if (!isnan(file->perplexity) && !isnan(file->perplexity_low))
    fprintf(out, " [%.4g, %.4g]", file->perplexity_low, file->perplexity_high);
  if (!isnan(file->perplexity)) fputc('\n', out);
  print_dead_experts(file, style, out);
  print_results(model, style, out);
  fputc('\n', out);
}

static mo_status print_features(const mo_report_model *model, mo_table_style style, FILE *out) {
  static const mo_text_column columns[] = {{"feature", false},     {"class", true},          {"max magnitude", false},
                                           {"layers %", false},    {"sites %", false},       {"positions %", false},
                                           {"occurrences", false}, {"+ %", false},           {"- %", false},
                                           {"q1", false},          {"median", false},        {"q3", false},
                                           {"share %", false},     {"first token %", false}, {"qualifies %", false}};
  mo_text_table table = MO_TEXT_TABLE(columns);
  for (int64_t i = 0; i < model->n_shown; i++) {
    const mo_feature *f = model->shown[i];
    mo_text_table_add(&table, "%" PRId32, f->feature);
    mo_text_table_add(&table, "%s", class_name(f->classification));
    mo_text_table_add(&table, "%.2f", f->max_magnitude);
    add_percent_interval(&table, f->block_percentage, f->block_percentage_low, f->block_percentage_high);
    add_percent_interval(&table, f->layer_percentage, f->layer_percentage_low, f->layer_percentage_high);
    add_percent_interval(&table, f->seq_percentage, f->seq_percentage_low, f->seq_percentage_high);
    mo_text_table_add(&table, "%" PRId64, f->total_occurrences);
    add_percent(&table, (double)f->positive / (double)f->total_occurrences);
    add_percent(&table, (double)f->negative / (double)f->total_occurrences);
    mo_text_table_add_number(&table, "%.2f", f->q1, "-");
    mo_text_table_add_number(&table, "%.2f", f->median, "-");
    mo_text_table_add_number(&table, "%.2f", f->q3, "-");
    add_percent(&table, f->share);
    add_percent(&table, f->first_token_share);
    add_percent(&table, f->qualifies_share);
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
  MO_TRY(mo_report_ablation_text(model, style, out));
  return mo_report_growth_text(model, style, out);
}

mo_status mo_report_print_text(const mo_report_model *models, int n, const mo_report_finding *finding,
                               mo_table_style style, FILE *out) {
  if (n > 1) {
    MO_TRY(print_models(models, n, style, out));
    fprintf(out, "\n%s\n\n", finding->text);
  }
  for (int i = 0; i < n; i++) {
    if (i > 0) fputc('\n', out);
    MO_TRY(print_model(&models[i], style, out));
  }
  return MO_OK;
}
