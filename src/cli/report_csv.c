/* Reports for programs: CSV, a table of models, an empty line, a table of features. */
#include <inttypes.h>

#include "report.h"
#include "report_ablation.h"
#include "report_growth.h"

static void add_integer(mo_text_table *table, int64_t number) { mo_text_table_add(table, "%" PRId64, number); }
static void add_real(mo_text_table *table, double number) { mo_text_table_add_number(table, "%.12g", number, ""); }
static void add_text(mo_text_table *table, const char *text) { mo_text_table_add(table, "%s", text); }

static void add_interval(mo_text_table *table, double low, double high) {
  add_real(table, low);
  add_real(table, high);
}

/* Numbers that older files lack are negative. */
static void add_size(mo_text_table *table, int64_t number) {
  if (number >= 0)
    add_integer(table, number);
  else
    add_text(table, "");
}

static const mo_text_column model_columns[] = {{.name = "file"},
                                               {.name = "model_name"},
                                               {.name = "architecture"},
                                               {.name = "n_layers"},
                                               {.name = "hidden_size"},
                                               {.name = "precision"},
                                               {.name = "device"},
                                               {.name = "n_sequences"},
                                               {.name = "sequence_length"},
                                               {.name = "threshold"},
                                               {.name = "perplexity"},
                                               {.name = "classification"},
                                               {.name = "outlier_features"},
                                               {.name = "systematic_features"},
                                               {.name = "features_hit"},
                                               {.name = "sequence_rows"},
                                               {.name = "mean_layer_percentage"},
                                               {.name = "median_layer_percentage"},
                                               {.name = "mean_seq_percentage"},
                                               {.name = "median_seq_percentage"},
                                               {.name = "outlier_features_low"},
                                               {.name = "outlier_features_high"},
                                               {.name = "systematic_features_low"},
                                               {.name = "systematic_features_high"},
                                               {.name = "mean_layer_percentage_low"},
                                               {.name = "mean_layer_percentage_high"},
                                               {.name = "median_layer_percentage_low"},
                                               {.name = "median_layer_percentage_high"},
                                               {.name = "mean_seq_percentage_low"},
                                               {.name = "mean_seq_percentage_high"},
                                               {.name = "median_seq_percentage_low"},
                                               {.name = "median_seq_percentage_high"},
                                               {.name = "perplexity_low"},
                                               {.name = "perplexity_high"},
                                               {.name = "parameters"},
                                               {.name = "active_parameters"},
                                               {.name = "n_experts"},
                                               {.name = "experts_per_token"},
                                               {.name = "layer_agreement"},
                                               {.name = "min_layer_fraction"},
                                               {.name = "min_position_fraction"},
                                               {.name = "systematic_fraction"},
                                               {.name = "bootstrap_draws"},
                                               {.name = "bootstrap_seed"},
                                               {.name = "dataset"}};

/* In the order of model_columns. */
static void add_model(mo_text_table *table, const mo_report_model *model) {
  const mo_results_file *file = &model->file;
  const mo_summary *summary = &file->summary;
  add_text(table, file->path);
  add_text(table, file->model_name);
  add_text(table, file->architecture);
  add_integer(table, file->n_layers);
  add_integer(table, file->hidden_size);
  add_text(table, file->precision);
  add_text(table, file->device);
  add_integer(table, file->n_sequences);
  add_integer(table, file->sequence_length);
  add_real(table, file->threshold);
  add_real(table, file->perplexity);
  add_text(table, mo_classification_name((mo_classification)summary->classification));
  add_integer(table, summary->outlier_features);
  add_integer(table, summary->systematic_features);
  add_integer(table, summary->features_hit);
  add_integer(table, summary->sequence_rows);
  add_real(table, summary->mean_layer_percentage);
  add_real(table, summary->median_layer_percentage);
  add_real(table, summary->mean_seq_percentage);
  add_real(table, summary->median_seq_percentage);
  add_interval(table, summary->outlier_features_low, summary->outlier_features_high);
  add_interval(table, summary->systematic_features_low, summary->systematic_features_high);
  add_interval(table, summary->mean_layer_percentage_low, summary->mean_layer_percentage_high);
  add_interval(table, summary->median_layer_percentage_low, summary->median_layer_percentage_high);
  add_interval(table, summary->mean_seq_percentage_low, summary->mean_seq_percentage_high);
  add_interval(table, summary->median_seq_percentage_low, summary->median_seq_percentage_high);
  add_interval(table, file->perplexity_low, file->perplexity_high);
  add_size(table, file->parameters);
  add_size(table, file->active_parameters);
  add_size(table, file->n_experts);
  add_size(table, file->experts_per_token);
  add_real(table, model->layer_agreement);
  add_real(table, file->criteria.min_layer_fraction);
  add_real(table, file->criteria.min_position_fraction);
  add_real(table, file->criteria.systematic_fraction);
  add_size(table, file->bootstrap.draws);
  add_size(table, file->bootstrap.seed);
  add_text(table, file->dataset);
}

static mo_status print_models(const mo_report_model *models, int n, FILE *out) {
  mo_text_table table = MO_TEXT_TABLE(model_columns);
  for (int i = 0; i < n; i++) add_model(&table, &models[i]);
  mo_status status = mo_text_table_print(&table, MO_TABLE_CSV, out);
  mo_text_table_free(&table);
  return status;
}

static void add_feature(mo_text_table *table, const mo_report_model *model, const mo_feature *f) {
  add_text(table, model->file.path);
  add_text(table, mo_report_name(model));
  add_integer(table, f->feature);
  add_text(table, mo_classification_name((mo_classification)f->classification));
  add_real(table, f->max_magnitude);
  add_real(table, f->block_percentage);
  add_real(table, f->layer_percentage);
  add_real(table, f->seq_percentage);
  add_integer(table, f->total_occurrences);
  add_integer(table, f->positive);
  add_integer(table, f->negative);
  add_real(table, f->q1);
  add_real(table, f->median);
  add_real(table, f->q3);
  add_real(table, f->share);
  add_real(table, f->first_token_share);
  add_integer(table, f->sequences_qualified);
  add_interval(table, f->block_percentage_low, f->block_percentage_high);
  add_interval(table, f->layer_percentage_low, f->layer_percentage_high);
  add_interval(table, f->seq_percentage_low, f->seq_percentage_high);
  add_real(table, f->qualifies_share);
  add_real(table, f->systematic_share);
}

static mo_status print_features(const mo_report_model *models, int n, FILE *out) {
  static const mo_text_column columns[] = {{.name = "file"},
                                           {.name = "model_name"},
                                           {.name = "feature"},
                                           {.name = "classification"},
                                           {.name = "max_magnitude"},
                                           {.name = "block_percentage"},
                                           {.name = "layer_percentage"},
                                           {.name = "seq_percentage"},
                                           {.name = "total_occurrences"},
                                           {.name = "positive"},
                                           {.name = "negative"},
                                           {.name = "q1"},
                                           {.name = "median"},
                                           {.name = "q3"},
                                           {.name = "share"},
                                           {.name = "first_token_share"},
                                           {.name = "sequences_qualified"},
                                           {.name = "block_percentage_low"},
                                           {.name = "block_percentage_high"},
                                           {.name = "layer_percentage_low"},
                                           {.name = "layer_percentage_high"},
                                           {.name = "seq_percentage_low"},
                                           {.name = "seq_percentage_high"},
                                           {.name = "qualifies_share"},
                                           {.name = "systematic_share"}};
  mo_text_table table = MO_TEXT_TABLE(columns);
  for (int i = 0; i < n; i++)
    for (int64_t k = 0; k < models[i].n_shown; k++) add_feature(&table, &models[i], models[i].shown[k]);
  mo_status status = mo_text_table_print(&table, MO_TABLE_CSV, out);
  mo_text_table_free(&table);
  return status;
}

mo_status mo_report_print_csv(const mo_report_model *models, int n, FILE *out) {
  MO_TRY(print_models(models, n, out));
  fputc('\n', out);
  MO_TRY(print_features(models, n, out));
  MO_TRY(mo_report_ablation_csv(models, n, out));
  return mo_report_growth_csv(models, n, out);
}
