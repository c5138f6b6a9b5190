/* Reports for programs: CSV, a table of models, an empty line, a table of features. */
#include <inttypes.h>

#include "report.h"

static void add_integer(mo_text_table *table, int64_t number) { mo_text_table_add(table, "%" PRId64, number); }
static void add_real(mo_text_table *table, double number) { mo_text_table_add_number(table, "%.12g", number, ""); }
static void add_text(mo_text_table *table, const char *text) { mo_text_table_add(table, "%s", text); }

static mo_status print_models(const mo_report_model *models, int n, FILE *out) {
  static const mo_text_column columns[] = {{.name = "file"},
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
                                           {.name = "median_seq_percentage"}};
  mo_text_table table = MO_TEXT_TABLE(columns);
  for (int i = 0; i < n; i++) {
    const mo_results_file *file = &models[i].file;
    const mo_summary *summary = &file->summary;
    add_text(&table, file->path);
    add_text(&table, file->model_name);
    add_text(&table, file->architecture);
    add_integer(&table, file->n_layers);
    add_integer(&table, file->hidden_size);
    add_text(&table, file->precision);
    add_text(&table, file->device);
    add_integer(&table, file->n_sequences);
    add_integer(&table, file->sequence_length);
    add_real(&table, file->threshold);
    add_real(&table, file->perplexity);
    add_text(&table, mo_classification_name((mo_classification)summary->classification));
    add_integer(&table, summary->outlier_features);
    add_integer(&table, summary->systematic_features);
    add_integer(&table, summary->features_hit);
    add_integer(&table, summary->sequence_rows);
    add_real(&table, summary->mean_layer_percentage);
    add_real(&table, summary->median_layer_percentage);
    add_real(&table, summary->mean_seq_percentage);
    add_real(&table, summary->median_seq_percentage);
  }
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
  add_integer(table, f->sequences_qualified);
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
                                           {.name = "sequences_qualified"}};
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
  return print_features(models, n, out);
}
