/* moe-pod's subcommands and what the command line tells them. Each command prints its own result to stdout (a table, or
 * JSON with options->json), progress to stderr through pod_say, and returns; main prints the error record and exits. */
#ifndef MO_POD_COMMANDS_H
#define MO_POD_COMMANDS_H

#include "pod/pod.h"

/* All strings belong to the command line. What an option was not given for is 0, false or NULL. */
typedef struct {
  const char *const
      *names; /* the operands: config files (plan, run, sweep), keys of runs (status, logs, fetch), ids (terminate).
                             * Of plan, run and sweep --models is resolved into config files already */
  int n_names;
  const char *const *overrides; /* -s section.key=value, in order */
  int n_overrides;
  int parallel;                /* --parallel: runs at a time, default 1 */
  double max_price;            /* --max-price: dollars per GPU and hour */
  double budget;               /* --budget: dollars for the whole command */
  double max_hours;            /* --max-hours: of a pod's life */
  double interval;             /* --interval: seconds between two looks of status --watch, default 10 */
  const char *output;          /* -o: folder that fetch writes to, default where output.path says */
  bool community;              /* --community: machines of the community cloud too */
  bool slurm;                  /* --slurm: a cluster of several pods is of type SLURM, else TRAINING */
  bool keep;                   /* --keep: leave the pod running when the run is over */
  bool terminate_on_interrupt; /* --terminate-on-interrupt: Ctrl-C ends the pods too */
  bool dry_run, json, watch, follow, all, yes;
} pod_options;

/* cli_catalog.c */
MO_CHECKED mo_status pod_command_gpus(const pod_settings *settings, const pod_options *options);
MO_CHECKED mo_status pod_command_plan(const pod_settings *settings, const pod_options *options);
/* cli_pods.c */
MO_CHECKED mo_status pod_command_list(const pod_settings *settings, const pod_options *options);
MO_CHECKED mo_status pod_command_terminate(const pod_settings *settings, const pod_options *options);
MO_CHECKED mo_status pod_command_cleanup(const pod_settings *settings, const pod_options *options);
/* command_run.c, command_sweep.c, command_status.c, command_logs.c, command_fetch.c */
MO_CHECKED mo_status pod_command_run(const pod_settings *settings, const pod_options *options);
MO_CHECKED mo_status pod_command_sweep(const pod_settings *settings, const pod_options *options);
MO_CHECKED mo_status pod_command_status(const pod_settings *settings, const pod_options *options);
MO_CHECKED mo_status pod_command_logs(const pod_settings *settings, const pod_options *options);
MO_CHECKED mo_status pod_command_fetch(const pod_settings *settings, const pod_options *options);

/* --- what the commands share (cli_output.c) --- */

/* One line "moe-pod: ..." on stderr, redacted, without control characters; whole lines from any thread. */
void pod_say(const pod_settings *settings, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Says that a pod or cluster is still running: its id, its price, the command that ends it; once. price 0: unknown. */
void pod_say_running(const pod_settings *settings, const char *id, const char *name, double price);
/* It was ended by this process, and is not said to be running whatever the ledger has of it. */
void pod_note_ended(const char *id);
/* What a run has running, or may have, if anything. */
void pod_say_run(const pod_settings *settings, const pod_run *run);
/* At the end of any command: says which pods of the ledger are running that nothing was said of yet, unless another
 * process drives the runs. */
void pod_say_what_runs(const pod_settings *settings);
/* Prints JSON and a newline to stdout; takes the reference, NULL is out of memory. */
MO_CHECKED mo_status pod_print_json(json_t *json);

/* A table on stdout: a row of heads, then rows, columns as wide as their widest cell; a column whose cells are all
 * numbers (or "-") is set to the right. The first failure (memory) is kept and returned by pod_table_print, which also
 * empties the table. */
typedef struct {
  int columns, n; /* n: cells so far */
  char **cells;
  mo_status status;
} pod_table;
void pod_table_begin(pod_table *table, int columns, const char *const *heads);
void pod_table_cell(pod_table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
MO_CHECKED mo_status pod_table_print(pod_table *table);

/* --- Ctrl-C (cli_stop.c) --- */

/* True once SIGINT, SIGTERM or SIGHUP has come; a second SIGINT ends the process at once. To be handed to
 * pod_process_run and pod_http_heed; commands look at it between their steps and return MO_STOPPED, saying what is left
 * running. */
extern volatile bool pod_stop;
/* Sleeps, until pod_stop. */
void pod_nap(double seconds);

#endif
