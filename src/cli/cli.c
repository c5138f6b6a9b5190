/* Choice of the command, and the way out of the program. */
#include "cli.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

static const struct {
  const char *name;
  int (*run)(int argc, char **argv);
} COMMANDS[] = {{"run", mo_cli_run},       {"plan", mo_cli_plan},     {"config", mo_cli_config},
                {"doctor", mo_cli_doctor}, {"report", mo_cli_report}, {"export", mo_cli_export},
                {"synth", mo_cli_synth}};

/* The rank that mpirun or srun gave this process, NULL if it was started alone. */
static const char *launcher_rank(void) {
  static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    const char *rank = getenv(names[i]);
    if (rank && rank[0]) return rank;
  }
  return NULL;
}

bool mo_cli_is_first_process(void) {
  const char *rank = launcher_rank();
  return !rank || strcmp(rank, "0") == 0;
}

void mo_cli_print_error(void) {
  const char *message = mo_error_message();
  const char *debug = getenv("MOE_OUTLIERS_DEBUG");
  int line = 0;
  const char *file = mo_error_origin(&line);
  if (!message[0]) message = "unknown error (no rank recorded it): set MOE_OUTLIERS_DEBUG=1 and run again";
  fflush(stdout);
  if (debug && strcmp(debug, "1") == 0 && line > 0)
    fprintf(stderr, "moe-outliers: error: %s [%s:%d]\n", message, file, line);
  else
    fprintf(stderr, "moe-outliers: error: %s\n", message);
}

int mo_cli_exit_status(mo_status status) {
  switch (status) {
    case MO_OK:
      return 0;
    case MO_INVALID:
      return 2;
    case MO_STOPPED:
      return EX_TEMPFAIL;
    default:
      return 1;
  }
}

int mo_cli_finish(mo_status status) {
  errno = 0;
  if (fflush(stdout) != 0 || ferror(stdout)) {
    mo_status lost = MO_FAIL(MO_FAILED, "result cannot be written: %s (standard output): give it a place with room",
                             errno ? strerror(errno) : "write failed");
    if (status == MO_OK) status = lost;
  }
  if (status != MO_OK) mo_cli_print_error();
  return mo_cli_exit_status(status);
}

int mo_cli_finish_together(mo_comm *comm, mo_status status) {
  if (status != MO_OK && status != MO_STOPPED) mo_comm_raise(comm);
  bool speaker = false;
  status = mo_comm_agree(comm, status, &speaker);
  if (status == MO_STOPPED && speaker)
    fprintf(stderr, "moe-outliers: %s\n", mo_error_message());
  else if (status != MO_OK && speaker)
    mo_cli_print_error();
  mo_comm_close(comm);
  return mo_cli_exit_status(status);
}

/* A launcher ends all processes when the first of them ends with an error, maybe before another one has spoken: so they
 * meet first, if there are several. */
int mo_cli_refuse(int argc, char **argv) {
  mo_comm *comm = NULL;
  if (!launcher_rank() || mo_comm_open(&comm, &argc, &argv) != MO_OK) return mo_cli_finish(MO_INVALID);
  return mo_cli_finish_together(comm, MO_INVALID);
}

static int refuse_command(int argc, char **argv) {
  const char *commands = "use run, plan, config, doctor, report, export or synth, or see moe-outliers --help";
  if (argc < 2)
    (void)MO_FAIL(MO_INVALID, "no command (command line): %s", commands);
  else
    (void)MO_FAIL(MO_INVALID, "unknown %s \"%s\" (command line): %s", argv[1][0] == '-' ? "option" : "command", argv[1],
                  commands);
  return mo_cli_refuse(argc, argv);
}

int mo_cli_main(int argc, char **argv) {
  (void)signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is then an error like a full disk */
  if (argc < 2) return refuse_command(argc, argv);
  const char *name = argv[1];
  for (size_t i = 0; i < sizeof COMMANDS / sizeof COMMANDS[0]; i++)
    if (strcmp(COMMANDS[i].name, name) == 0) return COMMANDS[i].run(argc - 1, argv + 1);
  if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) return mo_cli_finish(mo_cli_print_usage(NULL, stdout));
  if (strcmp(name, "--version") != 0) return refuse_command(argc, argv);
  if (mo_cli_is_first_process()) mo_cli_print_version(stdout);
  return mo_cli_finish(MO_OK);
}
