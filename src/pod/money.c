#include "pod/money.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct pod_purse {
  pthread_mutex_t mutex;
  pod_ledger *ledger;
  double budget;
  char *const *keys;
  int n;
};

mo_status pod_purse_open(pod_purse **purse, pod_ledger *ledger, double budget, char *const *keys, int n) {
  *purse = mo_alloc(1, sizeof **purse);
  if (!*purse) return MO_FAILED;
  **purse = (pod_purse){.ledger = ledger, .budget = budget, .keys = keys, .n = n};
  pthread_mutex_init(&(*purse)->mutex, NULL);
  return MO_OK;
}

void pod_purse_close(pod_purse *purse) {
  if (!purse) return;
  pthread_mutex_destroy(&purse->mutex);
  free(purse);
}

double pod_run_cost(const pod_run *run, double now) {
  bool running = run->id[0] && run->created > 0;
  return run->spent + (running ? run->price * fmax(0, now - run->created) / 3600 : 0);
}

double pod_purse_spent(pod_purse *purse, double now) {
  double sum = 0;
  pod_run run;
  for (int i = 0; i < purse->n; i++)
    if (pod_ledger_get(purse->ledger, purse->keys[i], &run)) sum += pod_run_cost(&run, now);
  return sum;
}

/* What the other runs have cost or, where it is more, will have. */
static double bound_for_others(const pod_purse *purse, const char *key, double now) {
  double sum = 0;
  pod_run run;
  for (int i = 0; i < purse->n; i++) {
    if (strcmp(purse->keys[i], key) == 0 || !pod_ledger_get(purse->ledger, purse->keys[i], &run)) continue;
    double expected = run.created > 0 ? run.spent + run.expected : 0;
    sum += fmax(pod_run_cost(&run, now), expected);
  }
  return sum;
}

mo_status pod_purse_take(pod_purse *purse, const pod_run *run, double now) {
  mo_status status;
  pthread_mutex_lock(&purse->mutex);
  double others = bound_for_others(purse, run->key, now);
  if (purse->budget > 0 && others + run->spent + run->expected > purse->budget)
    status = MO_FAIL(MO_INVALID,
                     "no pod is created: it would cost about $%.2f, and $%.2f of the budget of $%.2f are spent or "
                     "taken (%s): raise --budget, or run fewer models",
                     run->expected, others + run->spent, purse->budget, run->key);
  else
    status = pod_ledger_put(purse->ledger, run);
  pthread_mutex_unlock(&purse->mutex);
  return status;
}

double pod_saving_seconds(double all) { return fmin(180, 0.05 * all); }

/* Dollars per hour of all. */
static double price_of_all(const pod_purse *purse) {
  double price = 0;
  pod_run run;
  for (int i = 0; i < purse->n; i++)
    if (pod_ledger_get(purse->ledger, purse->keys[i], &run) && run.id[0]) price += run.price;
  return price;
}

double pod_purse_left(pod_purse *purse, double now) {
  double price = price_of_all(purse);
  if (!(purse->budget > 0) || !(price > 0)) return 1e9;
  return 3600 * (purse->budget - pod_purse_spent(purse, now)) / price - pod_seconds_of(POD_MARGIN);
}

mo_status pod_purse_check(pod_purse *purse, double now, bool saving) {
  if (!(purse->budget > 0)) return MO_OK;
  double price = price_of_all(purse), spent = pod_purse_spent(purse, now), kept = pod_seconds_of(POD_MARGIN);
  if (saving && price > 0) kept = fmax(kept, pod_saving_seconds(3600 * purse->budget / price));
  if (spent + price * kept / 3600 <= purse->budget) return MO_OK;
  return MO_FAIL(
      MO_FAILED,
      "the budget is spent: $%.2f of $%.2f, and the rest goes for saving (--budget): raise it; what is saved "
      "is continued",
      spent, purse->budget);
}
