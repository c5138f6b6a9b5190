/* The part of a report on what experts add to the outlier features; nothing where /growth has no rows. */
#ifndef MO_REPORT_GROWTH_H
#define MO_REPORT_GROWTH_H

#include <jansson.h>

#include "report.h"

MO_CHECKED mo_status mo_report_growth_text(const mo_report_model *model, mo_table_style style, FILE *out);
/* A table of its own after an empty line. */
MO_CHECKED mo_status mo_report_growth_csv(const mo_report_model *models, int n, FILE *out);
/* An array; NULL if memory ran out. */
json_t *mo_report_growth_json(const mo_report_model *model);

#endif
