/* What experts add to the outlier features: the part of a report that a run with an ablation of a model with experts has. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "report_growth.h"

enum { EXPERTS_SHOWN = 3 };

typedef struct {
  int32_t feature;
  int64_t place;                               /* in /features; those that are not in it come last */
  double total;                                /* growth by all layers */
  const mo_growth_row *experts[EXPERTS_SHOWN]; /* largest growth first, of equal ones the first of the table */
  int n_experts;
} grown_feature;

typedef struct {
  grown_feature *features; /* [n], owned, in the order of /features */
  int64_t n;
} grown;

static int compare(int64_t a, int64_t b) { return (a > b) - (a < b); }

/* By feature, then layer, then place in the table. */
static int compare_rows(const void *a, const void *b) {
  const mo_growth_row *x = *(const mo_growth_row *const *)a, *y = *(const mo_growth_row *const *)b;
  if (x->feature != y->feature) return compare(x->feature, y->feature);
  if (x->layer != y->layer) return compare(x->layer, y->layer);
  return (x > y) - (x < y);
}

static int compare_numbers(const void *a, const void *b) {
  return compare(((const grown_feature *)a)->feature, ((const grown_feature *)b)->feature);
}

static int compare_places(const void *a, const void *b) {
  const grown_feature *x = a, *y = b;
  return x->place != y->place ? compare(x->place, y->place) : compare_numbers(x, y);
}

/* A NaN comes last. */
static bool grows_more(const mo_growth_row *row, const mo_growth_row *than) {
  return row->growth > than->growth || (isnan(than->growth) && !isnan(row->growth));
}

static void add_expert(grown_feature *f, const mo_growth_row *row) {
  int at = f->n_experts;
  while (at > 0 && grows_more(row, f->experts[at - 1])) at--;
  if (at == EXPERTS_SHOWN) return;
  if (f->n_experts < EXPERTS_SHOWN) f->n_experts++;
  for (int i = f->n_experts - 1; i > at; i--) f->experts[i] = f->experts[i - 1];
  f->experts[at] = row;
}

/* rows: by compare_rows. A layer's growth is in each row of its experts. */
static void add_rows(grown *g, const mo_growth_row *const *rows, int64_t n_rows) {
  for (int64_t i = 0; i < n_rows; i++) {
    bool new_feature = i == 0 || rows[i]->feature != rows[i - 1]->feature;
    if (new_feature) g->features[g->n++] = (grown_feature){.feature = rows[i]->feature, .place = INT64_MAX};
    grown_feature *f = &g->features[g->n - 1];
    if (new_feature || rows[i]->layer != rows[i - 1]->layer) f->total += rows[i]->growth_of_layer;
    add_expert(f, rows[i]);
  }
}

static void put_in_order(grown *g, const mo_results_file *file) {
  for (int64_t i = 0; i < file->n_features; i++) {
    grown_feature key = {.feature = file->features[i].feature};
    grown_feature *found = bsearch(&key, g->features, (size_t)g->n, sizeof key, compare_numbers);
    if (found && i < found->place) found->place = i;
  }
  qsort(g->features, (size_t)g->n, sizeof g->features[0], compare_places);
}

/* The rows are the file's, whatever they hold. The caller frees the features. */
static mo_status collect(grown *g, const mo_results_file *file) {
  const mo_ablation *ablation = &file->ablation;
  size_t n = (size_t)ablation->n_growth;
  *g = (grown){0};
  if (n == 0) return MO_OK;
  const mo_growth_row **rows = mo_alloc(n, sizeof rows[0]);
  if (!rows) return MO_FAILED;
  for (size_t i = 0; i < n; i++) rows[i] = &ablation->growth[i];
  qsort(rows, n, sizeof rows[0], compare_rows);
  size_t distinct = 1;
  for (size_t i = 1; i < n; i++) distinct += rows[i]->feature != rows[i - 1]->feature;
  g->features = mo_alloc(distinct, sizeof g->features[0]);
  if (g->features) {
    add_rows(g, rows, (int64_t)n);
    put_in_order(g, file);
  }
  free(rows);
  return g->features ? MO_OK : MO_FAILED;
}

/* Of the growth by all layers; NaN where there is none to have a share of. */
static double share_of_total(const grown_feature *f, int expert) {
  return f->total > 0 ? f->experts[expert]->growth / f->total : NAN;
}

static void add_text_rows(mo_text_table *table, const grown_feature *f) {
  for (int e = 0; e < f->n_experts; e++) {
    const mo_growth_row *row = f->experts[e];
    mo_text_table_add(table, "%" PRId32, f->feature);
    mo_text_table_add(table, "%" PRId32, row->layer);
    if (row->expert == -1)
      mo_text_table_add(table, "shared");
    else
      mo_text_table_add(table, "%" PRId32, row->expert);
    mo_text_table_add_number(table, "%.4g", row->growth, "-");
    mo_text_table_add_number(table, "%.1f", 100 * row->share, "-");
    mo_text_table_add_number(table, "%.1f", 100 * share_of_total(f, e), "-");
  }
}

mo_status mo_report_growth_text(const mo_report_model *model, mo_table_style style, FILE *out) {
  static const mo_text_column columns[] = {{"feature", false}, {"layer", false},      {"expert", false},
                                           {"growth", false},  {"of layer %", false}, {"of all layers %", false}};
  mo_text_table table = MO_TEXT_TABLE(columns);
  grown g;
  MO_TRY(collect(&g, &model->file));
  for (int64_t i = 0; i < g.n; i++) add_text_rows(&table, &g.features[i]);
  mo_status status = MO_OK;
  if (g.n > 0) {
    fputs("\nGrowth of the outlier features by experts:\n\n", out);
    status = mo_text_table_print(&table, style, out);
  }
  mo_text_table_free(&table);
  free(g.features);
  return status;
}

static void add_csv_rows(mo_text_table *table, const mo_report_model *model, const grown_feature *f) {
  for (int e = 0; e < f->n_experts; e++) {
    const mo_growth_row *row = f->experts[e];
    const double numbers[] = {f->total, row->growth, row->growth_of_layer, row->share, share_of_total(f, e)};
    mo_text_table_add(table, "%s", model->file.path);
    mo_text_table_add(table, "%s", mo_report_name(model));
    mo_text_table_add(table, "%" PRId32, f->feature);
    mo_text_table_add(table, "%" PRId32, row->layer);
    mo_text_table_add(table, "%" PRId32, row->expert);
    for (size_t c = 0; c < sizeof numbers / sizeof *numbers; c++)
      mo_text_table_add_number(table, "%.12g", numbers[c], "");
  }
}

mo_status mo_report_growth_csv(const mo_report_model *models, int n, FILE *out) {
  static const mo_text_column columns[] = {{.name = "file"},          {.name = "model_name"},      {.name = "feature"},
                                           {.name = "layer"},         {.name = "expert"},          {.name = "total"},
                                           {.name = "growth"},        {.name = "growth_of_layer"}, {.name = "share"},
                                           {.name = "share_of_total"}};
  mo_text_table table = MO_TEXT_TABLE(columns);
  mo_status status = MO_OK;
  for (int i = 0; i < n && status == MO_OK; i++) {
    grown g;
    status = collect(&g, &models[i].file);
    for (int64_t k = 0; k < g.n; k++) add_csv_rows(&table, &models[i], &g.features[k]);
    free(g.features);
  }
  if (status == MO_OK && (table.n_cells > 0 || table.failed)) {
    fputc('\n', out);
    status = mo_text_table_print(&table, MO_TABLE_CSV, out);
  }
  mo_text_table_free(&table);
  return status;
}

static json_t *number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static json_t *experts_json(const grown_feature *f) {
  json_t *experts = json_array();
  for (int e = 0; e < f->n_experts; e++) {
    const mo_growth_row *row = f->experts[e];
    json_t *object = json_pack("{s:i, s:i, s:o, s:o, s:o, s:o}", "layer", (int)row->layer, "expert", (int)row->expert,
                               "growth", number(row->growth), "growth_of_layer", number(row->growth_of_layer), "share",
                               number(row->share), "share_of_total", number(share_of_total(f, e)));
    if (json_array_append_new(experts, object) == 0) continue;
    json_decref(experts);
    return NULL;
  }
  return experts;
}

json_t *mo_report_growth_json(const mo_report_model *model) {
  grown g;
  if (collect(&g, &model->file) != MO_OK) return NULL;
  json_t *features = json_array();
  for (int64_t i = 0; i < g.n && features; i++) {
    const grown_feature *f = &g.features[i];
    json_t *object =
        json_pack("{s:i, s:o, s:o}", "feature", (int)f->feature, "total", number(f->total), "experts", experts_json(f));
    if (json_array_append_new(features, object) == 0) continue;
    json_decref(features);
    features = NULL;
  }
  free(g.features);
  return features;
}
