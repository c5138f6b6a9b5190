/* -s of report: other criteria on a finished result. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/config.h"
#include "report.h"

static const char *const CHANGEABLE[] = {"analysis.min_layer_fraction",
                                         "analysis.min_position_fraction",
                                         "analysis.systematic_fraction",
                                         "analysis.bootstrap",
                                         "analysis.seed",
                                         "analysis.threshold"};

static mo_status check_key(const char *override) {
  const char *equals = strchr(override, '=');
  size_t length = equals ? (size_t)(equals - override) : strlen(override);
  while (length > 0 && override[length - 1] == ' ') length--;
  for (size_t i = 0; i < sizeof CHANGEABLE / sizeof *CHANGEABLE; i++)
    if (strlen(CHANGEABLE[i]) == length && strncmp(CHANGEABLE[i], override, length) == 0) return MO_OK;
  return MO_FAIL(MO_INVALID,
                 "%.*s is decided when the model runs (moe-outliers report -s %s): change "
                 "analysis.min_layer_fraction, min_position_fraction, systematic_fraction, bootstrap or seed",
                 (int)length, override, override);
}

/* The file's own settings as a config text; model.path only because a config must have one. */
static char *own_settings(const mo_results_file *file) {
  const mo_criteria *c = &file->criteria;
  char *text = NULL;
  if (asprintf(&text,
               "model: { path = \".\"; };\nanalysis: { threshold = %.17e; min_layer_fraction = %.17e; "
               "min_position_fraction = %.17e; systematic_fraction = %.17e; bootstrap = %" PRId64 "L; seed = %" PRId64
               "L; };\n",
               c->threshold, c->min_layer_fraction, c->min_position_fraction, c->systematic_fraction,
               file->bootstrap.draws, file->bootstrap.seed) < 0)
    return NULL;
  return text;
}

mo_status mo_report_apply(mo_report_model *model, const char *const *overrides, int n_overrides) {
  mo_results_file *file = &model->file;
  if (n_overrides == 0) return MO_OK;
  for (int i = 0; i < n_overrides; i++) MO_TRY(check_key(overrides[i]));
  if (isnan(file->criteria.min_layer_fraction) || file->bootstrap.draws < 0)
    return MO_FAIL(MO_INVALID, "written by an older program, which stored too little to judge again (%s): run again",
                   file->path);
  char *text = own_settings(file);
  if (!text) return MO_FAIL(MO_FAILED, "out of memory (report): free some memory");
  mo_config config;
  mo_status status = mo_config_parse(&config, text, file->path, NULL, overrides, n_overrides, false);
  free(text);
  MO_TRY(status);
  mo_criteria criteria = {config.analysis.threshold, config.analysis.min_layer_fraction,
                          config.analysis.min_position_fraction, config.analysis.systematic_fraction};
  mo_bootstrap bootstrap = {config.analysis.bootstrap, config.analysis.seed};
  status = mo_results_recompute(file, &criteria, &bootstrap);
  mo_config_free(&config);
  return status;
}
