/* moe-outliers report FILE.h5... [--format table|markdown|csv|json] [--features N]
 *                      [--threshold X] [-s analysis.key=value]... */
#include "report.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef enum { FORMAT_TABLE, FORMAT_MARKDOWN, FORMAT_CSV, FORMAT_JSON } report_format;

typedef struct {
  const char **paths; /* [n_paths], texts are argv's */
  int n_paths;
  report_format format;
  int64_t limit; /* features per file, 0: all, -1: by format */
  mo_cli_overrides overrides;
  char threshold[64]; /* one of them, of --threshold */
  bool help;
} report_arguments;

enum { FORMAT = 1, FEATURES, THRESHOLD, SET };
static const mo_cli_option OPTIONS[] = {
    {FORMAT, "format", 0, "table, markdown, csv or json"},
    {FEATURES, "features", 0, "the number of features, 0 = all"},
    {THRESHOLD, "threshold", 0, "a threshold that the files hold tables of"},
    {SET, "set", 's', "section.key=value"},
};

static mo_status take_format(report_arguments *report, const char *name) {
  static const char *const names[] = {"table", "markdown", "csv", "json"}; /* the order of report_format */
  for (int i = 0; i < 4; i++) {
    if (strcmp(names[i], name) != 0) continue;
    report->format = (report_format)i;
    return MO_OK;
  }
  return MO_FAIL(MO_INVALID, "--format \"%s\" is unknown (moe-outliers report): give table, markdown, csv or json",
                 name);
}

/* As -s analysis.threshold=VALUE; the last one counts. */
static mo_status take_threshold(report_arguments *report, const mo_cli_arguments *arguments) {
  double number;
  MO_TRY(mo_cli_float(arguments, "--threshold", FLT_MAX, &number));
  bool given = report->threshold[0];
  snprintf(report->threshold, sizeof report->threshold, "analysis.threshold=%.17e", number);
  return given ? MO_OK : mo_cli_overrides_add(&report->overrides, report->threshold);
}

static mo_status parse(report_arguments *report, int argc, char **argv) {
  mo_cli_arguments arguments = MO_CLI_ARGUMENTS(argc, argv, OPTIONS);
  report->paths = mo_alloc((size_t)argc, sizeof report->paths[0]);
  if (!report->paths) return MO_FAILED;
  for (;;) {
    int event;
    MO_TRY(mo_cli_next(&arguments, &event));
    if (event == MO_CLI_HELP) report->help = true;
    if (event == MO_CLI_HELP) return MO_OK;
    if (event == MO_CLI_END) break;
    if (event == FORMAT) MO_TRY(take_format(report, arguments.value));
    if (event == FEATURES) MO_TRY(mo_cli_integer(&arguments, "--features", 0, INT32_MAX, &report->limit));
    if (event == THRESHOLD) MO_TRY(take_threshold(report, &arguments));
    if (event == SET) MO_TRY(mo_cli_overrides_add(&report->overrides, arguments.value));
    if (event == MO_CLI_OPERAND) report->paths[report->n_paths++] = arguments.value;
  }
  return mo_cli_need(&arguments, "result file", report->n_paths ? report->paths[0] : NULL);
}

static mo_status print(const report_arguments *report, const mo_report_model *models) {
  mo_report_finding finding;
  mo_status status;
  MO_TRY(mo_report_find(&finding, models, report->n_paths));
  switch (report->format) {
    case FORMAT_CSV:
      status = mo_report_print_csv(models, report->n_paths, stdout);
      break;
    case FORMAT_JSON:
      status = mo_report_print_json(models, report->n_paths, &finding, stdout);
      break;
    case FORMAT_MARKDOWN:
      status = mo_report_print_text(models, report->n_paths, &finding, MO_TABLE_MARKDOWN, stdout);
      break;
    default:
      status = mo_report_print_text(models, report->n_paths, &finding, MO_TABLE_ALIGNED, stdout);
  }
  mo_report_finding_free(&finding);
  return status;
}

/* All files are read before anything is printed, so that a bad one leaves stdout empty. */
static mo_status report_files(const report_arguments *report) {
  bool for_readers = report->format == FORMAT_TABLE || report->format == FORMAT_MARKDOWN;
  int64_t limit = report->limit >= 0 ? report->limit : for_readers ? 20 : 0;
  mo_status status;
  int n_read = 0;
  mo_report_model *models = mo_alloc((size_t)report->n_paths, sizeof models[0]);
  if (!models) return MO_FAILED;
  while (n_read < report->n_paths) {
    MO_TRY_TO(done, mo_results_read(&models[n_read].file, report->paths[n_read]));
    n_read++;
    MO_TRY_TO(done, mo_report_apply(&models[n_read - 1], report->overrides.texts, report->overrides.n));
    MO_TRY_TO(done, mo_report_select(&models[n_read - 1], limit));
  }
  status = print(report, models);
done:
  for (int i = 0; i < n_read; i++) mo_report_model_free(&models[i]);
  free(models);
  return status;
}

int mo_cli_report(int argc, char **argv) {
  report_arguments report = {.limit = -1};
  mo_status status = parse(&report, argc, argv);
  if (status == MO_OK) status = report.help ? mo_cli_print_usage("report", stdout) : report_files(&report);
  free(report.paths);
  mo_cli_overrides_free(&report.overrides);
  return mo_cli_finish(status);
}
