/* The life of one run, from its name in the ledger to its result here and its pod gone. Each step may be done
 * again: after kill -9 at any place the same command goes on from what the ledger says and what is on the pod. */
#ifndef MO_POD_LIFE_H
#define MO_POD_LIFE_H

#include "pod/commands.h"
#include "pod/files.h"
#include "pod/money.h"
#include "pod/pod.h"

typedef struct {
  const pod_settings *settings;
  const pod_options *options;
  pod_ledger *ledger;
  pod_purse *purse;
  pod_http *http; /* gives up waiting when pod_stop gets true */
  pod_http *calm; /* does not: for what ends pods */
  pod_need need;
  pod_run run;                 /* as in the ledger but for what pod_life_put has not recorded yet */
  char folder[POD_PATH_BYTES]; /* STATE/runs/KEY */
  char logs[POD_PATH_BYTES];   /* STATE/runs/KEY/ID: of this pod */
  char output[512];            /* the result's path on the pod, relative to its source folder or absolute */
  char config_on_pod[600];     /* of the run: its text differs from the config's where paths do */
  char *config_text;
  json_t *overrides;                       /* owned; run.overrides is the same */
  char tree[POD_SHA256_BYTES], commit[80]; /* of the source that was sent */
  bool again;                              /* the failure is this pod's: another one may do */
  bool offline;                            /* RunPod's API does not answer: nothing is known of the pod */
  bool hurried;                            /* without connection nothing is tried again */
  bool local;                              /* the failure is this machine's, as a full disk is, and not the pod's */
  bool spent;                              /* the failure is that time or money is over, or the price too high */
  bool dear;                               /* the failure is that the choice exceeds the budget */
  bool heedless;                           /* pod_stop is passed over: what is left of a run is being saved */
  bool warned;                             /* it was said that something cannot be written here */
  bool other;                              /* the run was finished with other settings */
  char refused[8][160];                    /* "GPU|data center" where a pod has failed */
  int n_refused;
  double told, synced, sync_took, looked, noted, strayed; /* when; seconds since 1970 */
} pod_life;

/* --- life_open.c --- */

/* For the run of a config; zeroed *life is made ready, nothing is recorded yet. The run of the ledger if there is
 * one: of one whose pod is there config and overrides must be the same, MO_INVALID. */
MO_CHECKED mo_status pod_life_open(pod_life *life, const pod_settings *settings, const pod_options *options,
                                   pod_ledger *ledger, const char *config, const char *const *overrides,
                                   int n_overrides);
/* For the run of that key, with the config and the overrides of the ledger. */
MO_CHECKED mo_status pod_life_open_key(pod_life *life, const pod_settings *settings, const pod_options *options,
                                       pod_ledger *ledger, const char *key);
void pod_life_close(pod_life *life);
/* Whether a run is meant by the name that a user gives: its key, the number with which that begins, or its config's
 * path. */
bool pod_is_meant(const char *name, const char *key);
/* The key of the one run that is meant. */
MO_CHECKED mo_status pod_find_key(pod_ledger *ledger, const char *name, char key[64]);

/* --- life.c --- */

/* Through all steps. MO_STOPPED: pod_stop, or Ctrl-C; what is left running is in the ledger. */
MO_CHECKED mo_status pod_life_run(pod_life *life);
MO_CHECKED mo_status pod_life_put(pod_life *life);
/* The same where the run can go on without: a failure is said once. */
void pod_life_note(pod_life *life);
/* Says once what this machine cannot store, with the text of the error, which is cleared. */
void pod_life_warn(pod_life *life);
/* What can still be had of a pod that is about to be ended: it saves, and logs and journal are brought here. */
void pod_life_salvage(pod_life *life, const char *error);
/* Dollars of deployment.budget, 0: none, or --budget has its place. */
double pod_life_budget(const pod_life *life);
bool pod_life_stopped(const pod_life *life);                       /* pod_stop, unless life->heedless */
MO_CHECKED mo_status pod_life_done(pod_life *life, pod_step step); /* the step is done: recorded */
/* Sleeps, unless pod_stop: MO_STOPPED. */
MO_CHECKED mo_status pod_life_wait(const pod_life *life, double seconds);
double pod_now(void);       /* seconds since 1970 */
double pod_life_poll(void); /* MOE_POD_POLL */
/* "KEY: ..." on stderr. */
void pod_life_say(const pod_life *life, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Fails with life->again set: `return POD_LOST(life, "WHAT (WHERE): what to do")`. */
#define POD_LOST(life, ...) ((life)->again = true, MO_FAIL(MO_FAILED, __VA_ARGS__))

/* Passes a failure of this machine up: `return pod_life_local(life, STATUS)`. */
mo_status pod_life_local(pod_life *life, mo_status status);

/* --- life_create.c --- */
MO_CHECKED mo_status pod_life_create(pod_life *life);
/* Ends pods that have this run's name but not its id: those of a create whose answer was lost. */
MO_CHECKED mo_status pod_life_end_strays(pod_life *life);

/* --- life_reach.c --- */
/* Waits until the pod runs and its ssh answers, and starts the watchdog there. */
MO_CHECKED mo_status pod_life_reach(pod_life *life);
/* Looks at the pod by the API: fails (again) if it is gone or has ended; takes a new address over. */
MO_CHECKED mo_status pod_life_look(pod_life *life);
/* Where the logs of the run's pod are: STATE/runs/KEY/ID, and STATE/runs/KEY/last, which is the last pod's. */
MO_CHECKED mo_status pod_life_find_logs(pod_life *life);
/* The same at most once in MOE_POD_POLL; and fails when the deadline or the budget is reached. */
MO_CHECKED mo_status pod_life_watch(pod_life *life);
/* Fails when the deadline or the budget is reached, or so near that what is left is needed for saving. */
MO_CHECKED mo_status pod_life_check_limits(pod_life *life);
/* Seconds until that; 1e9: no end. */
double pod_life_left(const pod_life *life);

/* --- life_send.c --- */
MO_CHECKED mo_status pod_life_send(pod_life *life);
/* Fills output, config_on_pod and config_text from the config; needs the pod to be reached. */
MO_CHECKED mo_status pod_life_settle_paths(pod_life *life);
MO_CHECKED mo_status pod_life_hash_source(pod_life *life);
/* Before anything is ordered: the source is what can be built, and ssh and rsync are here. */
MO_CHECKED mo_status pod_life_check_source(const pod_life *life);

/* --- life_steps.c --- */
MO_CHECKED mo_status pod_life_setup(pod_life *life);
MO_CHECKED mo_status pod_life_fetch(pod_life *life);
MO_CHECKED mo_status pod_life_compute(pod_life *life);
/* What the logs of the steps have that is not here yet. */
MO_CHECKED mo_status pod_life_bring_logs(pod_life *life);
/* For one who only looks: what a step's log has from `offset` on is printed and counted there, nothing is written here,
 * and the pod's watchdog is told nothing. *running: whether the step runs. */
MO_CHECKED mo_status pod_life_print_log(pod_life *life, const char *step, long *offset, bool *running);

/* --- life_bring.c --- */
MO_CHECKED mo_status pod_life_bring_journal(pod_life *life);
/* The journal that was brought from another pod, if there is one. */
MO_CHECKED mo_status pod_life_send_journal(pod_life *life);
MO_CHECKED mo_status pod_life_bring_result(pod_life *life);
/* Whether the result is at its place here. */
bool pod_life_has_result(const pod_life *life);

/* --- end.c --- */
/* Ends the pod of the run, verified, and settles its cost; the ledger's entry has none afterwards, and `step`. */
MO_CHECKED mo_status pod_life_end(pod_life *life, pod_step step);
/* The pod is gone by itself. */
MO_CHECKED mo_status pod_life_settle(pod_life *life, pod_step step);
bool pod_ended_by_hand(const pod_settings *settings, const char *id);

/* --- cluster.c --- */
/* Waits until all members of the cluster run; they must see the folder of rank 0, which gets their addresses and a
 * key to them. */
MO_CHECKED mo_status pod_life_gather_members(pod_life *life);

#endif
