#include "pod/life.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "moe_outliers/clock.h"
#include "pod/ledger_json.h"
#include "pod/remote.h"

enum { MOST_PODS = 4 }; /* of one start of a run: those that fail by themselves */

double pod_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double pod_life_poll(void) { return pod_seconds_of(POD_POLL); }

void pod_life_say(const pod_life *life, const char *format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  pod_say(life->settings, "%s: %s", life->run.key, text);
}

mo_status pod_life_put(pod_life *life) {
  life->noted = pod_now();
  return pod_life_local(life, pod_ledger_put(life->ledger, &life->run));
}

mo_status pod_life_local(pod_life *life, mo_status status) {
  if (status != MO_OK && status != MO_STOPPED) life->local = true;
  return status;
}

void pod_life_warn(pod_life *life) {
  if (!life->warned) pod_life_say(life, "the run goes on, but this machine cannot store: %s", mo_error_message());
  life->warned = true;
  life->local = false;
  mo_error_clear();
}

void pod_life_note(pod_life *life) {
  if (pod_life_put(life) != MO_OK) pod_life_warn(life);
}

double pod_life_budget(const pod_life *life) {
  return life->options->budget > 0 ? 0 : life->need.config.deployment.budget;
}

bool pod_life_stopped(const pod_life *life) { return pod_stop && !life->heedless; }

mo_status pod_life_done(pod_life *life, pod_step step) {
  life->run.step = step;
  return pod_life_put(life);
}

mo_status pod_life_wait(const pod_life *life, double seconds) {
  double until = mo_seconds() + seconds;
  for (;;) {
    if (pod_life_stopped(life)) return MO_FAIL(MO_STOPPED, "stopped (%s)", life->run.key);
    double left = until - mo_seconds();
    if (left <= 0) return MO_OK;
    double nap = left < 0.1 ? left : 0.1;
    struct timespec time = {.tv_nsec = (long)(1e9 * nap)};
    nanosleep(&time, NULL);
  }
}

/* A step that this process has to go through in any case, as it learns there what later ones need: they are quick
 * when it was done. */
static mo_status prepare(pod_life *life) {
  MO_TRY(pod_life_reach(life));
  if (life->run.pods > 1) MO_TRY(pod_life_gather_members(life));
  MO_TRY(pod_life_settle_paths(life));
  return MO_OK;
}

static mo_status work(pod_life *life) {
  if (life->run.step < STEP_SENT) {
    MO_TRY(pod_life_send(life));
    MO_TRY(pod_life_done(life, STEP_SENT));
  }
  if (life->run.step < STEP_BUILT) {
    MO_TRY(pod_life_setup(life));
    MO_TRY(pod_life_done(life, STEP_BUILT));
  }
  if (life->run.step < STEP_FETCHED) {
    MO_TRY(pod_life_fetch(life));
    MO_TRY(pod_life_done(life, STEP_FETCHED));
  }
  if (life->run.step < STEP_STARTED) {
    MO_TRY(pod_life_send_journal(life));
    MO_TRY(pod_life_done(life, STEP_STARTED));
  }
  if (life->run.step < STEP_FINISHED) {
    MO_TRY(pod_life_compute(life));
    MO_TRY(pod_life_done(life, STEP_FINISHED));
  }
  return pod_life_bring_result(life);
}

static mo_status walk(pod_life *life) {
  if (life->run.step < STEP_BROUGHT && life->run.id[0] && pod_life_has_result(life)) {
    pod_life_say(life, "the result is here: %s", life->run.result);
    MO_TRY(pod_life_done(life, STEP_BROUGHT));
  }
  if (life->run.step < STEP_CREATED) MO_TRY(pod_life_create(life));
  if (life->run.step < STEP_BROUGHT) {
    MO_TRY(prepare(life));
    MO_TRY(work(life));
    MO_TRY(pod_life_done(life, STEP_BROUGHT));
  }
  return MO_OK;
}

/* A process that has not come to the steps on the pod yet lacks what prepare() finds. */
static bool can_reach(pod_life *life) {
  if (!life->run.id[0] || !life->run.remote[0] || life->run.port <= 0) return false;
  bool good = life->logs[0] || pod_life_find_logs(life) == MO_OK;
  good = good && (life->output[0] || pod_life_settle_paths(life) == MO_OK);
  mo_error_clear();
  return good;
}

/* Failures of this are no news. */
void pod_life_salvage(pod_life *life, const char *error) {
  char *text = NULL;
  bool local = life->local;
  life->hurried = life->heedless = true;
  if (can_reach(life)) {
    char *output = NULL;
    life->synced = 0;
    /* A run that could go on, were there time or money, saves first. */
    if (!life->again && !local && life->run.step == STEP_STARTED &&
        pod_script(life, NULL, &output, (const char *[]){"stop.sh", life->run.key, "run"}, 3) != MO_OK)
      mo_error_clear();
    free(output);
    if (pod_life_bring_logs(life) != MO_OK) mo_error_clear();
    if (life->run.step >= STEP_STARTED && pod_life_bring_journal(life) != MO_OK) mo_error_clear();
  }
  life->hurried = life->heedless = false;
  char path[POD_PATH_BYTES];
  bool has_log = life->run.id[0] && life->logs[0] && !life->run.cluster;
  if (has_log && pod_api_log(life->calm, life->run.id, &text) == MO_OK && text[0] &&
      pod_path(path, "%s/container.log", life->logs) == MO_OK &&
      pod_write_durably(path, text, strlen(text), 0600) != MO_OK)
    mo_error_clear();
  mo_error_clear();
  free(text);
  snprintf(life->run.error, sizeof life->run.error, "%.*s", (int)sizeof life->run.error - 1, error);
  pod_clean(life->run.error);
  life->local = local;
}

/* Whether the pod is to be left: nothing is known of it, or what it has made cannot be stored here. A finished result
 * goes with no pod but one that is lost, ended by hand, or whose time or money is over. Before the run nothing would
 * be lost, and the pod be paid for nothing. */
static bool is_kept(const pod_life *life) {
  const pod_run *run = &life->run;
  if (!run->id[0] || life->again || pod_ended_by_hand(life->settings, run->id)) return false;
  if (life->offline) return true;
  return !life->spent && (run->step >= STEP_FINISHED || (life->local && run->step >= STEP_STARTED));
}

static mo_status leave(pod_life *life, mo_status why, const char *error) {
  double grace = pod_seconds_of(POD_GRACE);
  pod_life_note(life);
  pod_say_running(life->settings, life->run.id, life->run.name, life->run.price);
  if (life->run.step >= STEP_FINISHED)
    pod_life_say(life, "the result is still on the pod; it ends itself after %.0f s: the same command fetches it",
                 grace);
  else if (!life->offline)
    pod_life_say(life,
                 "the run goes on there, and %.0f s after its end the pod ends itself: make room and give the "
                 "same command",
                 grace);
  return MO_FAIL(why, "%s", error);
}

/* The pod failed, or the run on it: its end, and whether another one is to be tried. */
static mo_status fail(pod_life *life, mo_status why, bool *again) {
  char error[2048];
  snprintf(error, sizeof error, "%s", mo_error_message());
  mo_error_clear();
  if (why == MO_INVALID && (life->run.id[0] || life->run.attempts > 1)) why = MO_FAILED; /* it was paid for */
  if (life->run.id[0] && pod_ended_by_hand(life->settings, life->run.id)) {
    life->again = false;
    snprintf(error, sizeof error, "the pod was ended by hand (%s): the same command starts the run again",
             life->run.id);
  }
  bool over = life->run.id[0] && life->run.deadline > 0 && pod_now() >= life->run.deadline;
  if (over && life->again) { /* as this process slept, its watchdog has ended it: no other gets more time unasked */
    life->again = false;
    life->spent = true;
    snprintf(error, sizeof error,
             "the pod's time is over (%s, --max-hours): the same command goes on from what is saved, on another pod",
             life->run.id);
  }
  *again = life->again && life->run.attempts < MOST_PODS && !pod_stop;
  pod_clean(error);
  pod_life_say(life, "%s", error);
  bool kept = is_kept(life);
  pod_life_salvage(life, error);
  if (!*again && life->options->keep && life->run.id[0]) {
    pod_life_say(life, "left as it is because of --keep; logs: %s", life->logs);
    pod_life_note(life);
    return MO_FAIL(why, "%s", error);
  }
  if (kept) return leave(life, why, error);
  if (life->n_refused < (int)(sizeof life->refused / sizeof *life->refused) && life->again && life->run.gpu[0])
    snprintf(life->refused[life->n_refused++], sizeof *life->refused, "%s|%s", life->run.gpu, life->run.data_center);
  MO_TRY(pod_life_end(life, *again ? STEP_NAMED : STEP_ENDED));
  if (*again) return MO_OK;
  return MO_FAIL(why, "%s", error);
}

/* Whether the pod of the ledger is of no use any more, ended by `terminate` or `cleanup`, or by its watchdog when
 * its time was over. */
static mo_status is_spent(pod_life *life, bool *spent) {
  pod_run *run = &life->run;
  pod_pod pod = {.state = POD_UNKNOWN};
  pod_cluster cluster;
  bool found = false;
  *spent = run->id[0] && pod_ended_by_hand(life->settings, run->id);
  if (!run->id[0] || *spent || pod_now() < run->deadline) return MO_OK;
  MO_TRY(run->cluster ? pod_api_cluster(life->http, run->id, &cluster, &found)
                      : pod_api_pod(life->http, run->id, &pod, &found));
  *spent = !found || pod.state == POD_EXITED || pod.state == POD_ERROR || pod.state == POD_TERMINATED;
  return MO_OK;
}

/* The run is wanted again: on another pod, if it has a spent one. */
static mo_status begin_again(pod_life *life) {
  bool spent, by_hand = life->run.id[0] && pod_ended_by_hand(life->settings, life->run.id);
  /* One that was killed after the DELETE has only to record it. */
  if (life->run.step >= STEP_BROUGHT && !by_hand && access(life->run.result, F_OK) == 0) return MO_OK;
  MO_TRY(is_spent(life, &spent));
  if (!spent) return MO_OK;
  MO_TRY(pod_life_end(life, STEP_NAMED));
  life->run.attempts = 0;
  return pod_life_put(life);
}

/* A pod that is there may be given another life than it was ordered with. */
static mo_status take_options(pod_life *life) {
  double deadline = life->run.created + 3600 * life->options->max_hours;
  if (!life->run.id[0] || !(life->options->max_hours > 0) || deadline == life->run.deadline) return MO_OK;
  life->run.deadline = deadline;
  return pod_life_put(life);
}

mo_status pod_life_run(pod_life *life) {
  MO_TRY(begin_again(life));
  MO_TRY(take_options(life));
  for (;;) {
    life->again = life->offline = life->local = life->spent = life->dear = false;
    mo_status status = walk(life);
    if (status == MO_OK) break;
    if (status == MO_STOPPED) return status;
    bool again;
    status = fail(life, status, &again);
    if (status != MO_OK) return status;
    pod_life_say(life, "trying another pod");
  }
  life->run.error[0] = '\0';
  if (life->options->keep) {
    MO_TRY(pod_life_put(life));
    return MO_OK;
  }
  return pod_life_end(life, STEP_ENDED);
}
