/* The part of a report that only runs with an ablation have; nothing where there are no rows. */
#ifndef MO_REPORT_ABLATION_H
#define MO_REPORT_ABLATION_H

#include <jansson.h>

#include "report.h"

MO_CHECKED mo_status mo_report_ablation_text(const mo_report_model *model, mo_table_style style, FILE *out);
/* A table of its own after an empty line. */
MO_CHECKED mo_status mo_report_ablation_csv(const mo_report_model *models, int n, FILE *out);
/* An array; NULL if memory ran out. */
json_t *mo_report_ablation_json(const mo_report_model *model);

#endif
