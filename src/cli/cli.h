/* The command line: arguments to calls and errors to exit statuses; no engine code.
 *
 * A command takes the arguments from its own name on and returns the exit status: 0 done, 1 failed while running, 2
 * wrong usage, config or input, 75 stopped by a signal with its work saved. Results go to stdout, one error line to stderr. */
#ifndef MO_CLI_H
#define MO_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "moe_outliers/comm.h"
#include "moe_outliers/status.h"

int mo_cli_main(int argc, char **argv);

int mo_cli_run(int argc, char **argv);
int mo_cli_plan(int argc, char **argv);
int mo_cli_config(int argc, char **argv);
int mo_cli_doctor(int argc, char **argv);
int mo_cli_report(int argc, char **argv);
int mo_cli_export(int argc, char **argv);
int mo_cli_synth(int argc, char **argv);

/* --- usage.c, version.c --- */
/* Help text of a command, of the program for NULL. */
MO_CHECKED mo_status mo_cli_print_usage(const char *command, FILE *out);
void mo_cli_print_version(FILE *out);

/* --- options.c --- */
typedef struct {
  int event; /* what mo_cli_next answers for it: 1 and up */
  const char *name;
  char letter;       /* 0: none */
  const char *value; /* what the value is called; NULL: takes none */
} mo_cli_option;

enum { MO_CLI_END = 0, MO_CLI_OPERAND = -1, MO_CLI_HELP = -2 };

typedef struct {
  int argc;
  char **argv; /* [0]: name of the command */
  const mo_cli_option *options;
  int n_options;
  int next;           /* place in argv; starts at 1 */
  bool only_operands; /* after "--" */
  const char *value;  /* of the last option or operand */
} mo_cli_arguments;

#define MO_CLI_ARGUMENTS(argc_, argv_, options_)                                                                  \
  {                                                                                                               \
    .argc = (argc_), .argv = (argv_), .options = (options_), .n_options = sizeof(options_) / sizeof(options_)[0], \
    .next = 1                                                                                                     \
  }

/* Next option or operand, in any order. Options: --name VALUE, --name=VALUE, -x VALUE, -xVALUE; --help and -h are known
 * to every command. *event: an option's event, MO_CLI_OPERAND, MO_CLI_HELP, MO_CLI_END. */
MO_CHECKED mo_status mo_cli_next(mo_cli_arguments *arguments, int *event);

/* The value of the option just read, as a decimal number from min to max. */
MO_CHECKED mo_status mo_cli_integer(const mo_cli_arguments *arguments, const char *option, int64_t min, int64_t max,
                                    int64_t *number);
MO_CHECKED mo_status mo_cli_unsigned(const mo_cli_arguments *arguments, const char *option, uint64_t *number);
MO_CHECKED mo_status mo_cli_float(const mo_cli_arguments *arguments, const char *option, double max, double *number);

/* Take the operand just read as the only one. name: what it is called. */
MO_CHECKED mo_status mo_cli_only_operand(const mo_cli_arguments *arguments, const char *name, const char **operand);
/* Error if an argument that is needed was not given. */
MO_CHECKED mo_status mo_cli_need(const mo_cli_arguments *arguments, const char *name, const char *value);

/* Texts of -s options. */
typedef struct {
  const char **texts; /* [n]; the array is owned, the texts are argv's */
  int n;
} mo_cli_overrides;

MO_CHECKED mo_status mo_cli_overrides_add(mo_cli_overrides *overrides, const char *text);
void mo_cli_overrides_free(mo_cli_overrides *overrides);

/* --- cli.c --- */
/* Is this the process that prints help, of those that mpirun or srun started? */
bool mo_cli_is_first_process(void);
/* The one error line, on stderr. */
void mo_cli_print_error(void);
int mo_cli_exit_status(mo_status status);
/* End of a command that runs on one process: flush stdout, print the error line if any. Returns the exit status. */
int mo_cli_finish(mo_status status);
/* End of a command on all ranks: whatever each of them met, they leave together and one of them speaks. Collective;
 * closes comm. */
int mo_cli_finish_together(mo_comm *comm, mo_status status);
/* End of a command with wrong arguments, recorded as MO_INVALID, that may have been started on several ranks. */
int mo_cli_refuse(int argc, char **argv);

#endif
