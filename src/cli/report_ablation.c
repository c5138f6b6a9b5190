/* What outlier features do: the part of a report that a run with an ablation has. */
#include <inttypes.h>
#include <math.h>

#include "report_ablation.h"

static void add_name(mo_text_table *table, const mo_ablation_row *row) {
  if (row->variant == MO_VARIANT_INTACT)
    mo_text_table_add(table, "none: as it is");
  else if (row->variant == MO_VARIANT_FEATURES)
    mo_text_table_add(table, "outlier features");
  else
    mo_text_table_add(table, "random, draw %" PRId32, row->draw);
}

static mo_status print_rows(const mo_ablation *ablation, mo_table_style style, FILE *out) {
  static const mo_text_column columns[] = {{"zeroed", true}, {"features", false},          {"perplexity", false},
                                           {"loss", false},  {"top-1 attention %", false}, {"top-1 token %", false}};
  mo_text_table table = MO_TEXT_TABLE(columns);
  for (int64_t i = 0; i < ablation->n_rows; i++) {
    const mo_ablation_row *row = &ablation->rows[i];
    add_name(&table, row);
    mo_text_table_add(&table, "%" PRId64, row->n_features);
    mo_text_table_add_number(&table, row->perplexity < 1e6 ? "%.4f" : "%.4g", row->perplexity, "-");
    mo_text_table_add_number(&table, "%.4f", row->nll_mean, "-");
    mo_text_table_add_number(&table, "%.2f", 100 * row->top1_attention, "-");
    mo_text_table_add_number(&table, "%.2f", 100 * row->top1_token, "-");
  }
  mo_status status = mo_text_table_print(&table, style, out);
  mo_text_table_free(&table);
  return status;
}

mo_status mo_report_ablation_text(const mo_report_model *model, mo_table_style style, FILE *out) {
  if (model->file.ablation.n_rows == 0) return MO_OK;
  fputs("\nFeatures zeroed at every site:\n\n", out);
  return print_rows(&model->file.ablation, style, out);
}

mo_status mo_report_ablation_csv(const mo_report_model *models, int n, FILE *out) {
  static const mo_text_column columns[] = {{.name = "file"},     {.name = "model_name"},     {.name = "variant"},
                                           {.name = "draw"},     {.name = "n_features"},     {.name = "perplexity"},
                                           {.name = "nll_mean"}, {.name = "top1_attention"}, {.name = "top1_token"}};
  int64_t rows = 0;
  for (int i = 0; i < n; i++) rows += models[i].file.ablation.n_rows;
  if (rows == 0) return MO_OK;
  mo_text_table table = MO_TEXT_TABLE(columns);
  for (int i = 0; i < n; i++)
    for (int64_t k = 0; k < models[i].file.ablation.n_rows; k++) {
      const mo_ablation_row *row = &models[i].file.ablation.rows[k];
      const double numbers[] = {row->perplexity, row->nll_mean, row->top1_attention, row->top1_token};
      mo_text_table_add(&table, "%s", models[i].file.path);
      mo_text_table_add(&table, "%s", mo_report_name(&models[i]));
      mo_text_table_add(&table, "%s", mo_variant_name((mo_variant_kind)row->variant));
      mo_text_table_add_number(&table, "%.0f", row->draw < 0 ? NAN : row->draw, "");
      mo_text_table_add(&table, "%" PRId64, row->n_features);
      for (int c = 0; c < 4; c++) mo_text_table_add_number(&table, "%.12g", numbers[c], "");
    }
  fputc('\n', out);
  mo_status status = mo_text_table_print(&table, MO_TABLE_CSV, out);
  mo_text_table_free(&table);
  return status;
}

static json_t *number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

/* The table of features follows the rows' order. */
static json_t *features_json(const mo_ablation *ablation, const mo_ablation_row *row) {
  json_t *features = json_array();
  for (int64_t i = 0; i < ablation->n_features; i++) {
    const mo_ablation_feature *f = &ablation->features[i];
    if (f->variant == row->variant && f->draw == row->draw && json_array_append_new(features, json_integer(f->feature)))
      break;
  }
  return features;
}

json_t *mo_report_ablation_json(const mo_report_model *model) {
  const mo_ablation *ablation = &model->file.ablation;
  json_t *rows = json_array();
  for (int64_t i = 0; i < ablation->n_rows; i++) {
    const mo_ablation_row *row = &ablation->rows[i];
    json_t *object = json_pack(
        "{s:s, s:o, s:I, s:o, s:o, s:o, s:o, s:o}", "variant", mo_variant_name((mo_variant_kind)row->variant), "draw",
        row->draw < 0 ? json_null() : json_integer(row->draw), "n_features", (json_int_t)row->n_features, "perplexity",
        number(row->perplexity), "nll_mean", number(row->nll_mean), "top1_attention", number(row->top1_attention),
        "top1_token", number(row->top1_token), "features", features_json(ablation, row));
    if (json_array_append_new(rows, object) == 0) continue;
    json_decref(rows);
    return NULL;
  }
  return rows;
}
