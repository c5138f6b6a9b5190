/* moe-outliers doctor [CONFIG] [--patience SECONDS] [-s key=value]... */
#include "moe_outliers/doctor.h"

#include <errno.h>

#include "cli.h"

static const double PATIENCE = 30, MOST_PATIENCE = 3600; /* seconds */

typedef struct {
  const char *config;
  double patience;
  bool help;
  mo_cli_overrides overrides;
} doctor_arguments;

enum { SET = 1, WAIT };
static const mo_cli_option OPTIONS[] = {{SET, "set", 's', "section.key=value"},
                                        {WAIT, "patience", 0, "the seconds that a step may take"}};

static mo_status parse(doctor_arguments *doctor, int argc, char **argv) {
  mo_cli_arguments arguments = MO_CLI_ARGUMENTS(argc, argv, OPTIONS);
  for (;;) {
    int event;
    MO_TRY(mo_cli_next(&arguments, &event));
    if (event == MO_CLI_HELP) doctor->help = true;
    if (event == MO_CLI_HELP) return MO_OK;
    if (event == MO_CLI_END) break;
    if (event == WAIT) MO_TRY(mo_cli_float(&arguments, "--patience", MOST_PATIENCE, &doctor->patience));
    if (event == SET) MO_TRY(mo_cli_overrides_add(&doctor->overrides, arguments.value));
    if (event == MO_CLI_OPERAND) MO_TRY(mo_cli_only_operand(&arguments, "config file", &doctor->config));
  }
  if (doctor->overrides.n && !doctor->config) return mo_cli_need(&arguments, "config file", NULL);
  return MO_OK;
}

/* read: whether the config could be read, which is told once all ranks have met. */
static int look(const doctor_arguments *doctor, const mo_config *config, mo_status read, int argc, char **argv) {
  mo_comm *comm = NULL;
  int faults = 0;
  mo_doctor_job job = {.launch = mo_launch_read(),
                       .program = program_invocation_name,
                       .config = doctor->config ? config : NULL,
                       .config_path = doctor->config,
                       .overrides = doctor->overrides.texts,
                       .n_overrides = doctor->overrides.n,
                       .patience = doctor->patience};
  int end = mo_doctor_supervise(&job, stdout);
  if (end >= 0) return end;
  mo_status status = mo_comm_open(&comm, &argc, &argv);
  if (status != MO_OK) return mo_cli_finish(status);
  mo_doctor_started();
  status = read == MO_OK ? mo_doctor(&job, comm, stdout, &faults) : read;
  if (status == MO_OK && mo_comm_rank(comm) == 0 && (fflush(stdout) != 0 || ferror(stdout)))
    status = MO_FAIL(MO_FAILED, "result cannot be written (standard output): give it a place with room");
  int exit_status = mo_cli_finish_together(comm, status);
  return exit_status == 0 && faults ? 1 : exit_status;
}

static int look_with_config(const doctor_arguments *doctor, int argc, char **argv) {
  mo_config config;
  mo_status read = MO_OK;
  if (doctor->config)
    read = mo_config_read(&config, doctor->config, doctor->overrides.texts, doctor->overrides.n, true);
  int exit_status = look(doctor, &config, read, argc, argv);
  if (doctor->config && read == MO_OK) mo_config_free(&config);
  return exit_status;
}

int mo_cli_doctor(int argc, char **argv) {
  doctor_arguments doctor = {.patience = PATIENCE};
  int exit_status;
  mo_status status = parse(&doctor, argc, argv);
  if (status == MO_OK && doctor.help)
    exit_status = mo_cli_finish(mo_cli_print_usage("doctor", stdout));
  else if (status == MO_OK)
    exit_status = look_with_config(&doctor, argc, argv);
  else if (status == MO_INVALID)
    exit_status = mo_cli_refuse(argc, argv);
  else
    exit_status = mo_cli_finish(status);
  mo_cli_overrides_free(&doctor.overrides);
  return exit_status;
}
