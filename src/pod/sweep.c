#include "pod/sweep.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pod/ledger_json.h"
#include "pod/life.h"

typedef struct {
  pod_life life;
  mo_status status;
  bool before; /* the result was there */
  char error[2048];
} job;

typedef struct {
  pthread_mutex_t mutex;
  job *jobs;
  char **keys;
  int n, next;
} queue;

static job *take_job(queue *q) {
  pthread_mutex_lock(&q->mutex);
  job *taken = q->next < q->n && !pod_stop ? &q->jobs[q->next++] : NULL;
  pthread_mutex_unlock(&q->mutex);
  return taken;
}

/* A result that is there and no pod: nothing is to be done. */
static mo_status look_before(const pod_life *life, bool *done) {
  const pod_run *run = &life->run;
  *done = !run->id[0] && !(run->created > 0) && !life->need.config.output.overwrite && access(run->result, F_OK) == 0;
  if (!*done || !life->other) return MO_OK;
  *done = false;
  return MO_FAIL(MO_INVALID,
                 "the result that is there was made with another config or other -s (%s): give output.path another "
                 "place, or output.overwrite=true",
                 run->result);
}

static mo_status do_job(job *j) {
  MO_TRY(look_before(&j->life, &j->before));
  if (j->before) {
    pod_life_say(&j->life, "done before: %s", j->life.run.result);
    return MO_OK;
  }
  MO_TRY(pod_make_folders(j->life.folder));
  MO_TRY(pod_life_put(&j->life));
  return pod_life_run(&j->life);
}

static void *work(void *argument) {
  queue *q = argument;
  mo_error_of_thread();
  for (job *j; (j = take_job(q));) {
    j->status = do_job(j);
    snprintf(j->error, sizeof j->error, "%s", j->status == MO_OK ? "" : mo_error_message());
    mo_error_clear();
    if (j->status == MO_OK && !j->before)
      pod_life_say(&j->life, "done: %s, $%.4f", j->life.run.result, j->life.run.spent);
  }
  return NULL;
}

static mo_status run_all(queue *q, int parallel) {
  int n = parallel < 1 ? 1 : parallel, started = 0;
  if (n > q->n) n = q->n;
  pthread_t *threads = mo_alloc((size_t)n, sizeof *threads);
  if (!threads) return MO_FAILED;
  while (started < n && pthread_create(&threads[started], NULL, work, q) == 0) started++;
  for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
  free(threads);
  return started ? MO_OK
                 : MO_FAIL(MO_FAILED, "cannot start a thread (sweep): raise the limit of processes (ulimit -u)");
}

/* --- afterwards --- */

/* With --terminate-on-interrupt: what is saved goes on in the next run. */
static void end_all(queue *q) {
  for (int i = 0; i < q->n; i++) {
    pod_life *life = &q->jobs[i].life;
    bool there = life->run.id[0] || life->run.created > 0;
    if (there) pod_life_salvage(life, "interrupted");
    if (there && pod_life_end(life, STEP_ENDED) != MO_OK) pod_life_say(life, "%s", mo_error_message());
    mo_error_clear();
  }
}

/* Every way out of the program that leaves something behind says so. */
static int say_what_runs(const queue *q) {
  int running = 0;
  for (int i = 0; i < q->n; i++) {
    const pod_life *life = &q->jobs[i].life;
    pod_say_run(life->settings, &life->run);
    running += life->run.id[0] || life->run.created > 0;
  }
  return running;
}

static const char *outcome(const job *j) {
  return j->status != MO_OK ? (j->status == MO_STOPPED ? "stopped" : "failed") : j->before ? "done before" : "done";
}

static mo_status report_json(const queue *q) {
  json_t *runs = json_array();
  for (int i = 0; i < q->n; i++) {
    job *j = &q->jobs[i];
    pod_clean(j->error);
    const pod_run *run = &j->life.run;
    json_array_append_new(
        runs, json_pack("{s:s, s:s, s:s, s:f, s:s, s:s}", "key", run->key, "outcome", outcome(j), "result", run->result,
                        "cost", pod_run_cost(run, pod_now()), "pod", run->id, "error", j->error));
  }
  return pod_print_json(json_pack("{s:o}", "runs", runs));
}

static mo_status report(const queue *q, const pod_options *options) {
  static const char *const heads[] = {"MODEL", "OUTCOME", "COST $", "RESULT"};
  double sum = 0;
  if (options->json) return report_json(q);
  pod_table table;
  pod_table_begin(&table, 4, heads);
  for (int i = 0; i < q->n; i++) {
    const job *j = &q->jobs[i];
    double cost = pod_run_cost(&j->life.run, pod_now());
    sum += cost;
    pod_table_cell(&table, "%s", j->life.run.key);
    pod_table_cell(&table, "%s", outcome(j));
    pod_table_cell(&table, "%.4f", cost);
    pod_table_cell(&table, "%s", j->status == MO_OK ? j->life.run.result : "");
  }
  pod_table_cell(&table, "all");
  pod_table_cell(&table, "%s", "");
  pod_table_cell(&table, "%.4f", sum);
  pod_table_cell(&table, "%s", "");
  return pod_table_print(&table);
}

static mo_status conclude(queue *q, const pod_options *options) {
  int failed = 0;
  mo_status worst = MO_OK;
  const job *first = NULL;
  bool stopped = pod_stop;
  if (stopped && options->terminate_on_interrupt) end_all(q);
  int running = say_what_runs(q);
  for (int i = 0; i < q->n; i++) {
    const job *j = &q->jobs[i];
    failed += j->status != MO_OK;
    if (j->status == MO_OK || j->status == MO_STOPPED) continue;
    if (!first) first = j;
    if (q->n > 1) pod_life_say(&j->life, "failed: %s", j->error);
    worst = worst == MO_OK || j->status == MO_FAILED ? j->status : worst;
  }
  MO_TRY(report(q, options));
  if (stopped && failed)
    return MO_FAIL(
        MO_STOPPED,
        "interrupted: %d pod%s left running: the same command goes on, `moe-pod terminate --all` ends what is left",
        running, mo_plural(running));
  if (!failed) return MO_OK;
  if (q->n == 1) return MO_FAIL(worst, "%s", first ? first->error : "stopped");
  return MO_FAIL(worst, "%d of %d runs failed (%s: %.300s): the same command goes on with those", failed, q->n,
                 first ? first->life.run.key : "", first ? first->error : "");
}

/* --- before --- */

static mo_status open_jobs(queue *q, const pod_settings *settings, const pod_options *options, pod_ledger *ledger) {
  q->jobs = mo_alloc((size_t)options->n_names, sizeof *q->jobs);
  q->keys = mo_alloc((size_t)options->n_names, sizeof *q->keys);
  if (!q->jobs || !q->keys) return MO_FAILED;
  for (int i = 0; i < options->n_names; i++) {
    job *j = &q->jobs[i];
    j->status = MO_STOPPED; /* until it has been begun */
    MO_TRY(pod_life_open(&j->life, settings, options, ledger, options->names[i], options->overrides,
                         options->n_overrides));
    q->n++;
    q->keys[i] = j->life.need.key;
    for (int k = 0; k < i; k++)
      if (strcmp(q->keys[k], q->keys[i]) == 0 || strcmp(q->jobs[k].life.run.result, j->life.run.result) == 0)
        return MO_FAIL(MO_INVALID, "two configs have the same name or output.path (%s, %s): give each its own",
                       options->names[k], options->names[i]);
  }
  return MO_OK;
}

static void close_jobs(queue *q) {
  for (int i = 0; i < q->n; i++) pod_life_close(&q->jobs[i].life);
  free(q->jobs);
  free(q->keys);
  pthread_mutex_destroy(&q->mutex);
}

mo_status pod_sweep(const pod_settings *settings, const pod_options *options) {
  pod_ledger *ledger = NULL;
  pod_purse *purse = NULL;
  queue q = {.mutex = PTHREAD_MUTEX_INITIALIZER};
  MO_TRY(pod_ledger_open(&ledger, settings, true));
  mo_status status = open_jobs(&q, settings, options, ledger);
  if (status == MO_OK) status = pod_purse_open(&purse, ledger, options->budget, q.keys, q.n);
  for (int i = 0; i < q.n; i++) q.jobs[i].life.purse = purse;
  if (status == MO_OK) status = run_all(&q, options->parallel);
  if (status == MO_OK) status = conclude(&q, options);
  pod_purse_close(purse);
  close_jobs(&q);
  pod_ledger_close(ledger);
  return status;
}

/* --- dry run --- */

typedef struct {
  pod_table table;
  json_t *list;
  double dollars;
} prospect;

static mo_status add_prospect(prospect *p, job *j, const pod_options *options) {
  pod_choice *choices = NULL;
  int n = 0;
  pod_life *life = &j->life;
  pod_limits limits = {.max_price = options->max_price, .community = options->community};
  bool done;
  MO_TRY(look_before(life, &done));
  pod_choice none = {.name = "done before"};
  if (!done) MO_TRY(pod_choose_now(life->http, &life->need, &limits, &choices, &n));
  const pod_choice *best = n > 0 ? choices : &none;
  p->dollars += best->dollars;
  pod_table_cell(&p->table, "%s", life->need.key);
  if (done)
    pod_table_cell(&p->table, "%s", best->name);
  else
    pod_table_cell(&p->table, "%d x %s", best->gpus * best->pods, best->name);
  pod_table_cell(&p->table, "%s", best->n_data_centers > 0 ? best->data_centers[0] : "any");
  pod_table_cell(&p->table, "%d", done ? 0 : life->need.disk_gb);
  pod_table_cell(&p->table, "%.2f", best->price);
  pod_table_cell(&p->table, "%.0f", best->minutes);
  pod_table_cell(&p->table, "%.2f", best->dollars);
  json_array_append_new(
      p->list, json_pack("{s:s, s:b, s:s, s:s, s:i, s:i, s:i, s:f, s:f, s:f}", "key", life->need.key, "done", done,
                         "name", life->run.name, "gpu", best->gpu, "gpus", best->gpus, "pods", best->pods, "disk_gb",
                         life->need.disk_gb, "price", best->price, "minutes", best->minutes, "dollars", best->dollars));
  free(choices);
  return MO_OK;
}

static mo_status tell_prospects(queue *q, const pod_options *options) {
  static const char *const heads[] = {"MODEL", "WOULD CREATE", "IN", "DISK GB", "$/HOUR", "MINUTES", "DOLLARS"};
  prospect p = {.list = json_array()};
  pod_table_begin(&p.table, 7, heads);
  mo_status status = p.list ? MO_OK : MO_FAIL(MO_FAILED, "out of memory (dry run): close other programs");
  for (int i = 0; i < q->n && status == MO_OK; i++) status = add_prospect(&p, &q->jobs[i], options);
  if (status == MO_OK && options->json)
    status = pod_print_json(json_pack("{s:O, s:f}", "runs", p.list, "dollars", p.dollars));
  else if (status == MO_OK)
    printf("nothing is created: --dry-run\n");
  mo_status printed = MO_OK;
  if (status == MO_OK && !options->json) printed = pod_table_print(&p.table);
  if (status == MO_OK && !options->json) printf("about $%.2f in all\n", p.dollars);
  json_decref(p.list);
  if (status == MO_OK && options->budget > 0 && p.dollars > options->budget)
    status =
        MO_FAIL(MO_FAILED, "about $%.2f are more than the budget of $%.2f (--budget): raise it, or run fewer models",
                p.dollars, options->budget);
  return status == MO_OK ? printed : status;
}

mo_status pod_sweep_dry(const pod_settings *settings, const pod_options *options) {
  pod_ledger *ledger = NULL;
  queue q = {.mutex = PTHREAD_MUTEX_INITIALIZER};
  MO_TRY(pod_ledger_open(&ledger, settings, false));
  mo_status status = open_jobs(&q, settings, options, ledger);
  if (status == MO_OK) status = tell_prospects(&q, options);
  close_jobs(&q);
  pod_ledger_close(ledger);
  return status;
}
