/* Inside the report command: what is shown of a result file, and the formats. */
#ifndef MO_REPORT_H
#define MO_REPORT_H

#include <stdint.h>
#include <stdio.h>

#include "moe_outliers/results.h"
#include "text_table.h"

typedef struct {
  mo_results_file file;
  const mo_feature **shown; /* [n_shown], owned: qualified ones, or all where none qualifies; largest magnitude first */
  int64_t n_shown;
  int64_t n_qualified;
  int64_t n_more; /* of the same kind, left out by the limit */
} mo_report_model;

/* Choose the features to show, at most `limit` of them (0: all), of the file read into model->file. */
MO_CHECKED mo_status mo_report_select(mo_report_model *model, int64_t limit);
/* Frees the file too. */
void mo_report_model_free(mo_report_model *model);

/* Model name, or the file's where it has none. */
const char *mo_report_name(const mo_report_model *model);

/* For readers: aligned text or markdown. */
MO_CHECKED mo_status mo_report_print_text(const mo_report_model *models, int n, mo_table_style style, FILE *out);
/* For programs: names of the result file, fractions of 1. */
MO_CHECKED mo_status mo_report_print_csv(const mo_report_model *models, int n, FILE *out);
MO_CHECKED mo_status mo_report_print_json(const mo_report_model *models, int n, FILE *out);

#endif
