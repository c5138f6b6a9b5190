/* Inside the report command: what is shown of a result file, and the formats. */
#ifndef MO_REPORT_H
#define MO_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "moe_outliers/results.h"
#include "text_table.h"

typedef struct {
  mo_results_file file;
  const mo_feature **shown; /* [n_shown], owned: qualified ones, or all where none qualifies; largest magnitude first */
  int64_t n_shown;
  int64_t n_qualified;
  int64_t n_more;         /* of the same kind, left out by the limit */
  double layer_agreement; /* mean of block_percentage over the strongest; NaN if none qualifies */
  int64_t n_strongest;    /* the first of `shown`, whatever the limit; 0 if none qualifies */
} mo_report_model;

enum { MO_REPORT_STRONGEST = 5 }; /* features that layer_agreement is of, at most */

/* What the models together show of the study's key finding: only gpt_oss models are systematic, so architecture matters
 * more than size. */
typedef struct {
  bool comparable; /* the same criteria in all files */
  int n_systematic, n_probabilistic, n_none;
  bool only_gpt_oss;         /* all systematic models are gpt_oss, all gpt_oss are systematic, and others are not */
  bool architecture_decides; /* no architecture has models of two classes, and a systematic model is smaller than a
                                probabilistic one */
  char *text;                /* one line, owned */
} mo_report_finding;

MO_CHECKED mo_status mo_report_find(mo_report_finding *finding, const mo_report_model *models, int n);
void mo_report_finding_free(mo_report_finding *finding);

/* Apply texts "analysis.KEY=VALUE" to the file in model->file and make its tables again; none: nothing is done. Keys that
 * cannot be changed after a run are MO_INVALID. */
MO_CHECKED mo_status mo_report_apply(mo_report_model *model, const char *const *overrides, int n_overrides);

/* Choose the features to show, at most `limit` of them (0: all), of the file read into model->file. */
MO_CHECKED mo_status mo_report_select(mo_report_model *model, int64_t limit);
/* Frees the file too. */
void mo_report_model_free(mo_report_model *model);

/* Model name, or the file's where it has none. */
const char *mo_report_name(const mo_report_model *model);

/* For readers: aligned text or markdown. */
MO_CHECKED mo_status mo_report_print_text(const mo_report_model *models, int n, const mo_report_finding *finding,
                                          mo_table_style style, FILE *out);
/* For programs: names of the result file, fractions of 1. */
MO_CHECKED mo_status mo_report_print_csv(const mo_report_model *models, int n, FILE *out);
MO_CHECKED mo_status mo_report_print_json(const mo_report_model *models, int n, const mo_report_finding *finding,
                                          FILE *out);

#endif
