/* moe-outliers run CONFIG [-v] [--fresh] [-s key=value]... */
#include "cli.h"
#include "moe_outliers/comm.h"
#include "moe_outliers/config.h"
#include "moe_outliers/phases.h"
#include "moe_outliers/pipeline.h"

typedef struct {
  const char *config;
  mo_cli_overrides overrides;
  mo_run_options options;
  bool help;
} run_arguments;

enum { SET = 1, VERBOSE, FRESH };
static const mo_cli_option OPTIONS[] = {
    {SET, "set", 's', "section.key=value"}, {VERBOSE, "verbose", 'v', NULL}, {FRESH, "fresh", 0, NULL}};

static mo_status parse(run_arguments *run, int argc, char **argv) {
  mo_cli_arguments arguments = MO_CLI_ARGUMENTS(argc, argv, OPTIONS);
  for (;;) {
    int event;
    MO_TRY(mo_cli_next(&arguments, &event));
    if (event == MO_CLI_HELP) run->help = true;
    if (event == MO_CLI_HELP) return MO_OK;
    if (event == MO_CLI_END) break;
    if (event == VERBOSE) run->options.verbose = true;
    if (event == FRESH) run->options.fresh = true;
    if (event == SET) MO_TRY(mo_cli_overrides_add(&run->overrides, arguments.value));
    if (event == MO_CLI_OPERAND) MO_TRY(mo_cli_only_operand(&arguments, "config file", &run->config));
  }
  return mo_cli_need(&arguments, "config file", run->config);
}

static void print_phases(void) {
  char text[1024];
  mo_phase_ends(MO_PHASE_PARTING);
  mo_phases_describe(text, sizeof text);
  fprintf(stderr, "moe-outliers: %s\n", text);
}

/* read: whether the config could be read and the run prepared. Ranks that could not tell so once all have met. */
static int run_on_ranks(const run_arguments *run, const mo_config *config, mo_preparation *preparation, mo_status read,
                        int argc, char **argv) {
  mo_comm *comm = NULL;
  mo_status status = mo_comm_open(&comm, &argc, &argv);
  if (status != MO_OK) return mo_cli_finish(status);
  mo_phase_ends(MO_PHASE_MPI);
  status = read == MO_OK ? mo_run(config, comm, &run->options, preparation) : read;
  bool tells = status == MO_OK && run->options.verbose && mo_comm_rank(comm) == 0;
  int exit_status = mo_cli_finish_together(comm, status);
  if (tells) print_phases();
  return exit_status;
}

static int run_config(const run_arguments *run, int argc, char **argv) {
  mo_config config;
  mo_preparation *preparation = NULL;
  mo_status read = mo_config_read(&config, run->config, run->overrides.texts, run->overrides.n, true);
  mo_status status = read == MO_OK ? mo_run_prepare(&preparation, &config) : read;
  int exit_status = run_on_ranks(run, &config, preparation, status, argc, argv);
  mo_run_settle(preparation);
  if (read == MO_OK) mo_config_free(&config);
  return exit_status;
}

int mo_cli_run(int argc, char **argv) {
  mo_phases_begin();
  run_arguments run = {0};
  int exit_status;
  mo_status status = parse(&run, argc, argv);
  if (status == MO_OK && run.help)
    exit_status = mo_cli_finish(mo_cli_print_usage("run", stdout));
  else if (status == MO_OK)
    exit_status = run_config(&run, argc, argv);
  else if (status == MO_INVALID)
    exit_status = mo_cli_refuse(argc, argv);
  else
    exit_status = mo_cli_finish(status);
  mo_cli_overrides_free(&run.overrides);
  return exit_status;
}
