/* Private to moe-pod's command line. */
#ifndef MO_POD_CLI_H
#define MO_POD_CLI_H

#include <stdio.h>

#include "pod/commands.h"

/* The whole program; returns its exit status. */
int pod_main(int argc, char **argv);

/* cli_stop.c */
void pod_catch_signals(void);

/* cli_usage.c: of a command, NULL: of the program. */
void pod_print_usage(const char *command, FILE *out);

/* cli_options.c: what a command's arguments say. All of it is freed by pod_arguments_free. */
typedef struct {
  pod_options options;
  const char **names, **overrides; /* options.names and options.overrides; the texts are argv's or owned */
  const char **models;             /* what --models says, resolved by pod_arguments_resolve */
  int n_models;
  char **owned;
  int n_owned;
  bool help;
} pod_arguments;
/* Which options and operands a command takes. */
typedef struct {
  const char *name;
  mo_status (*run)(const pod_settings *settings, const pod_options *options);
  const char *takes; /* letters of its options, see cli_options.c */
  enum { POD_NO_NAMES, POD_ONE_NAME, POD_SOME_NAMES, POD_ANY_NAMES } names;
  const char *operand; /* what a name is, for errors */
  bool configs;        /* names are config files, and --models is resolved to some */
  bool needs_key;
} pod_command;
MO_CHECKED mo_status pod_arguments_read(pod_arguments *arguments, const pod_command *command, int argc, char **argv);
void pod_arguments_free(pod_arguments *arguments);

#endif
