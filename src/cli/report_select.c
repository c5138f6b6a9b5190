#include <math.h>
#include <stdlib.h>

#include "report.h"

static int compare(const void *a, const void *b) {
  const mo_feature *x = *(const mo_feature *const *)a, *y = *(const mo_feature *const *)b;
  if (x->max_magnitude != y->max_magnitude) return x->max_magnitude > y->max_magnitude ? -1 : 1;
  return (x->feature > y->feature) - (x->feature < y->feature);
}

mo_status mo_report_select(mo_report_model *model, int64_t limit) {
  const mo_results_file *file = &model->file;
  model->n_qualified = 0;
  for (int64_t i = 0; i < file->n_features; i++) model->n_qualified += file->features[i].classification != MO_NONE;
  model->shown = mo_alloc((size_t)file->n_features, sizeof model->shown[0]);
  if (!model->shown) return MO_FAILED;
  int64_t n = 0;
  double sum = 0;
  for (int64_t i = 0; i < file->n_features; i++)
    if (model->n_qualified == 0 || file->features[i].classification != MO_NONE) model->shown[n++] = &file->features[i];
  qsort(model->shown, (size_t)n, sizeof model->shown[0], compare);
  model->n_shown = limit > 0 && n > limit ? limit : n;
  model->n_more = n - model->n_shown;
  for (int64_t i = 0; i < model->n_qualified && i < MO_REPORT_STRONGEST; i++) {
    sum += model->shown[i]->block_percentage;
    model->n_strongest++;
  }
  model->layer_agreement = model->n_strongest ? sum / (double)model->n_strongest : NAN;
  return MO_OK;
}

void mo_report_model_free(mo_report_model *model) {
  free(model->shown);
  model->shown = NULL;
  mo_results_file_free(&model->file);
}

const char *mo_report_name(const mo_report_model *model) {
  return model->file.model_name[0] ? model->file.model_name : model->file.path;
}
