/* moe-outliers export FILE.h5 -o DIR [--overwrite] */
#include "cli.h"
#include "moe_outliers/results.h"

typedef struct {
  const char *path, *directory;
  bool overwrite, help;
} export_arguments;

enum { OUTPUT = 1, OVERWRITE };
static const mo_cli_option OPTIONS[] = {
    {OUTPUT, "output", 'o', "the folder of the files"},
    {OVERWRITE, "overwrite", 0, NULL},
};

static mo_status take(export_arguments *export, const mo_cli_arguments *arguments, int event) {
  switch (event) {
    case OUTPUT:
      export->directory = arguments->value;
      return MO_OK;
    case OVERWRITE:
      export->overwrite = true;
      return MO_OK;
    case MO_CLI_HELP:
      export->help = true;
      return MO_OK;
    default:
      return mo_cli_only_operand(arguments, "result file", &export->path);
  }
}

static mo_status parse(export_arguments *export, int argc, char **argv) {
  mo_cli_arguments arguments = MO_CLI_ARGUMENTS(argc, argv, OPTIONS);
  for (;;) {
    int event;
    MO_TRY(mo_cli_next(&arguments, &event));
    if (event == MO_CLI_END) break;
    MO_TRY(take(export, &arguments, event));
    if (export->help) return MO_OK;
  }
  MO_TRY(mo_cli_need(&arguments, "result file", export->path));
  return mo_cli_need(&arguments, "-o folder", export->directory);
}

static mo_status write_files(const export_arguments *export) {
  mo_export_notes notes;
  MO_TRY(mo_results_export(export->path, export->directory, export->overwrite, &notes));
  if (notes.no_perplexity)
    fprintf(stderr, "moe-outliers: note: no perplexity in %s: perplexity_results.json is not written\n", export->path);
  if (notes.too_long)
    fprintf(stderr,
            "moe-outliers: note: the outlier features take more than the first %d characters of "
            "final_analysis_results.json, which are all that the reference's plot script reads\n",
            MO_EXPORT_READER_CHARACTERS);
  return MO_OK;
}

int mo_cli_export(int argc, char **argv) {
  export_arguments export = {0};
  mo_status status = parse(&export, argc, argv);
  if (status == MO_OK) status = export.help ? mo_cli_print_usage("export", stdout) : write_files(&export);
  return mo_cli_finish(status);
}
