#include "pipeline/doctor.h"

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe_outliers/mpi_io.h"

enum { MOST_MESSAGES = 4, MESSAGE_BYTES = 600 };

/* --- what is said --- */

static void put_line(mo_doctor_state *d, mo_finding finding, const char *about, const char *text) {
  static const char *const names[] = {"ok", "note", "fault"};
  d->count[finding]++;
  fprintf(d->out, "%-6s %-11s %s\n", names[finding], about, text);
  fflush(d->out); /* what comes next may hang */
}

void mo_doctor_say(mo_doctor_state *d, mo_finding finding, const char *about, const char *format, ...) {
  char text[2048];
  if (d->rank != 0) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  put_line(d, finding, about, text);
}

void mo_doctor_conclude(const mo_doctor_state *d) {
  int faults = d->count[MO_SAYS_FAULT], notes = d->count[MO_SAYS_NOTE];
  if (d->rank != 0) return;
  fprintf(d->out, "\nverdict: ");
  if (faults)
    fprintf(d->out, "%d fault%s", faults, mo_plural(faults));
  else
    fputs("nothing is wrong", d->out);
  fprintf(d->out, ", %d note%s%s\n", notes, mo_plural(notes), faults ? ": mend what the lines \"fault\" say" : "");
  mo_doctor_print_launch_line(d);
  fflush(d->out);
}

/* --- steps --- */

void mo_doctor_step(mo_doctor_state *d, const char *about) {
  d->step = about;
  mo_watch_step(&d->watch);
}

/* On a thread of its own. Rank 0 has the first word, and then ends the job. */
static void give_up(void *context) {
  mo_doctor_state *d = context;
  if (d->rank == 0) {
    mo_doctor_say(d, MO_SAYS_FAULT, d->step,
                  "no answer within %g s: a file system or another rank hangs: choose another place for the files "
                  "(output.path), or ask for more time (--patience)",
                  d->job->patience);
    mo_doctor_conclude(d);
  }
  alarm(3); /* what hangs may hang here, too */
  mo_mpi_io_give_up();
  _exit(MO_FAILED);
}

static void end_by_signal(int number) {
  mo_mpi_io_give_up();
  _exit(128 + number);
}

/* Nothing is left behind then, either. */
static void heed_signals(void) {
  static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1};
  struct sigaction action = {.sa_handler = end_by_signal};
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) (void)sigaction(signals[i], &action, NULL);
}

/* --- what ranks say --- */

typedef struct {
  int32_t failed;
  char message[MESSAGE_BYTES];
} answer;

/* Each message once, with the ranks that it comes from unless all say the same. */
static void tell(mo_doctor_state *d, const char *about, const answer *answers) {
  int told = 0, untold = 0;
  for (int i = 0; i < d->size; i++) {
    int same = 0, before = 0;
    if (!answers[i].failed) continue;
    for (int k = 0; k < d->size; k++) {
      bool equal = answers[k].failed && strcmp(answers[k].message, answers[i].message) == 0;
      same += equal;
      before += equal && k < i;
    }
    if (before) continue;
    if (told++ >= MOST_MESSAGES)
      untold += same;
    else if (same == d->size)
      mo_doctor_say(d, MO_SAYS_FAULT, about, "%s", answers[i].message);
    else
      mo_doctor_say(d, MO_SAYS_FAULT, about, "on %s (rank %d%s): %s", d->ranks[i].device.host, i,
                    same > 1 ? " and others" : "", answers[i].message);
  }
  if (untold) mo_doctor_say(d, MO_SAYS_FAULT, about, "and on %d more ranks", untold);
}

mo_status mo_doctor_ask(mo_doctor_state *d, const char *about, mo_status status, bool *all) {
  static answer mine;
  void *answers;
  size_t bytes;
  mine = (answer){.failed = status != MO_OK};
  if (status == MO_PEER_FAILED || status == MO_STOPPED) return status;
  if (status != MO_OK) snprintf(mine.message, sizeof mine.message, "%s", mo_error_message());
  mo_error_clear();
  MO_TRY(mo_comm_gather(d->comm, &mine, sizeof mine, &answers, &bytes));
  if (answers) tell(d, about, answers);
  free(answers);
  int64_t failed = mine.failed;
  MO_TRY(mo_comm_allreduce(d->comm, &failed, 1, MO_MAX_I64));
  *all = !failed;
  return MO_OK;
}

/* --- all of it --- */

static mo_status look(mo_doctor_state *d) {
  bool usable = false;
  mo_doctor_step(d, "start");
  MO_TRY(mo_doctor_gather(d));
  mo_doctor_look_at_start(d);
  mo_doctor_look_at_gpus(d);
  mo_doctor_look_at_cores(d);
  mo_doctor_look_at_network(d);
  mo_doctor_look_at_limits(d);
  MO_TRY(mo_doctor_look_at_output(d, &usable));
  if (d->job->config) return mo_doctor_look_at_model(d, usable);
  mo_doctor_say(d, MO_SAYS_NOTE, "config",
                "none was given: model, tokens, memory and disk were not looked at (moe-outliers doctor CONFIG)");
  return MO_OK;
}

mo_status mo_doctor(const mo_doctor_job *job, mo_comm *comm, FILE *out, int *faults) {
  mo_doctor_state d = {.job = job, .comm = comm, .out = out, .rank = mo_comm_rank(comm), .size = mo_comm_size(comm)};
  d.step = "start";
  *faults = 1;
  if (d.size == 1 && job->launch.rank > 0)
    return MO_OK; /* one of several that do not know each other: the first one speaks */
  heed_signals();
  mo_watch_begin(&d.watch, job->patience + (d.rank > 0), give_up, &d);
  mo_status status = look(&d);
  mo_watch_end(&d.watch);
  if (status == MO_OK) mo_doctor_conclude(&d);
  int64_t count = d.count[MO_SAYS_FAULT];
  if (status == MO_OK) status = mo_comm_allreduce(comm, &count, 1, MO_MAX_I64);
  *faults = (int)count;
  free(d.ranks);
  free(d.folder);
  return status;
}
