/* What runs cost, and the budget that the runs of one command share. */
#ifndef MO_POD_MONEY_H
#define MO_POD_MONEY_H

#include "pod/pod.h"

typedef struct pod_purse pod_purse; /* thread-safe */

/* budget: dollars, 0: no bound. keys: of the command's runs; they and the ledger outlive the purse. */
MO_CHECKED mo_status pod_purse_open(pod_purse **purse, pod_ledger *ledger, double budget, char *const *keys, int n);
void pod_purse_close(pod_purse *purse);

/* Dollars of the run until `now`, with its pods before this one. */
double pod_run_cost(const pod_run *run, double now);
/* Of all the runs of the command. */
double pod_purse_spent(pod_purse *purse, double now);
/* Records the run, whose pod is about to be created, if what has been spent and what is expected stay within the
 * budget. */
MO_CHECKED mo_status pod_purse_take(pod_purse *purse, const pod_run *run, double now);
/* MO_FAILED once no more is left of the budget than the runs cost in MOE_POD_MARGIN seconds, which are for ending;
 * saving: or in those that pod_saving_seconds keeps for saving. */
MO_CHECKED mo_status pod_purse_check(pod_purse *purse, double now, bool saving);
/* Seconds until pod_purse_check fails without saving; 1e9: no bound. */
double pod_purse_left(pod_purse *purse, double now);
/* Of so many seconds in all: what a run needs to save at its end, a small share where there are few. */
double pod_saving_seconds(double all);

#endif
