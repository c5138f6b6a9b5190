/* moe-pod status [KEY...] [--watch]: from the ledger and the logs that are here; asks nobody. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pod/commands.h"
#include "pod/ledger_json.h"
#include "pod/life.h"
#include "pod/progress.h"

static bool is_named(const pod_options *options, const char *key) {
  bool found = options->n_names == 0;
  for (int i = 0; i < options->n_names; i++) found = found || pod_is_meant(options->names[i], key);
  return found;
}

/* A pod whose driver has gone is asked about by nobody: it costs until now, or until its watchdog has ended it. */
static double cost_of(const pod_run *run, bool busy) {
  double now = pod_now(), end = run->deadline + pod_seconds_of(POD_MARGIN);
  return pod_run_cost(run, busy || now < end ? now : end);
}

static json_t *number_or_null(double value) { return value < 0 ? json_null() : json_real(value); }

static json_t *row_json(const pod_settings *settings, const pod_run *run, bool busy) {
  pod_progress p;
  pod_progress_of(settings, run->key, &p);
  bool running = run->step == STEP_STARTED;
  json_t *row =
      json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:f, s:s, s:s}", "key", run->key, "state",
                pod_run_state(run, busy), "step", pod_step_name(run->step), "pod", run->id, "name", run->name, "gpu",
                run->gpu, "gpus", run->gpus * run->pods, "pods", run->attempts, "price", run->id[0] ? run->price : 0.0,
                "cost", cost_of(run, busy), "deadline", run->deadline, "result", run->result, "error", run->error);
  if (!row || !running || !p.layers) return row;
  json_object_set_new(row, "layer", json_integer(p.layer));
  json_object_set_new(row, "layers", json_integer(p.layers));
  json_object_set_new(row, "share", number_or_null(p.share));
  json_object_set_new(row, "gb_per_second", number_or_null(p.rate));
  json_object_set_new(row, "left", json_string(p.left));
  return row;
}

static mo_status show_json(const pod_settings *settings, const pod_options *options, const pod_run *runs, int n,
                           bool busy) {
  json_t *rows = json_array();
  double sum = 0;
  for (int i = 0; i < n; i++) {
    if (!is_named(options, runs[i].key)) continue;
    sum += cost_of(&runs[i], busy);
    json_array_append_new(rows, row_json(settings, &runs[i], busy));
  }
  return pod_print_json(json_pack("{s:o, s:f, s:b}", "runs", rows, "cost", sum, "driven", busy));
}

static void add_row(pod_table *table, const pod_settings *settings, const pod_run *run, bool busy) {
  pod_progress p;
  pod_progress_of(settings, run->key, &p);
  bool known = run->step == STEP_STARTED && p.layers > 0;
  pod_table_cell(table, "%s", run->key);
  pod_table_cell(table, "%s", pod_run_state(run, busy));
  if (known)
    pod_table_cell(table, "%d/%d", p.layer, p.layers);
  else
    pod_table_cell(table, "-");
  if (known && p.rate >= 0)
    pod_table_cell(table, "%.2f", p.rate);
  else
    pod_table_cell(table, "-");
  pod_table_cell(table, "%s", known && p.left[0] ? p.left : "-");
  pod_table_cell(table, "%s", run->id[0] ? run->id : "-");
  if (run->id[0])
    pod_table_cell(table, "%.2f", run->price);
  else
    pod_table_cell(table, "-");
  pod_table_cell(table, "%.4f", cost_of(run, busy));
  pod_table_cell(table, "%s", run->step == STEP_ENDED && !run->error[0] ? run->result : run->error);
}

static mo_status show_table(const pod_settings *settings, const pod_options *options, const pod_run *runs, int n,
                            bool busy) {
  static const char *const heads[] = {"MODEL", "STATE",  "LAYER",  "GB/S",           "LEFT",
                                      "POD",   "$/HOUR", "COST $", "RESULT OR ERROR"};
  enum { COLUMNS = sizeof heads / sizeof *heads };
  pod_table table;
  double sum = 0, price = 0;
  pod_table_begin(&table, COLUMNS, heads);
  for (int i = 0; i < n; i++) {
    if (!is_named(options, runs[i].key)) continue;
    add_row(&table, settings, &runs[i], busy);
    sum += cost_of(&runs[i], busy);
    price += runs[i].id[0] ? runs[i].price : 0;
  }
  for (int i = 0; i < COLUMNS - 3; i++) pod_table_cell(&table, "%s", i == 0 ? "all" : i == 1 ? "" : "-");
  pod_table_cell(&table, "%.2f", price);
  pod_table_cell(&table, "%.4f", sum);
  pod_table_cell(&table, "%s", "");
  return pod_table_print(&table);
}

static mo_status check_names(const pod_options *options, const pod_run *runs, int n) {
  for (int i = 0; i < options->n_names; i++) {
    bool known = false;
    for (int k = 0; k < n; k++) known = known || pod_is_meant(options->names[i], runs[k].key);
    if (!known)
      return MO_FAIL(MO_INVALID, "no run is known by that name (%s): `moe-pod status` shows those that are",
                     options->names[i]);
  }
  return MO_OK;
}

/* One look; *over: nothing is going on any more. */
static mo_status look(const pod_settings *settings, const pod_options *options, bool *over) {
  pod_ledger *ledger = NULL;
  pod_run *runs = NULL;
  int n = 0;
  bool busy = false, live = false;
  MO_TRY(pod_ledger_busy(settings, &busy));
  MO_TRY(pod_ledger_open(&ledger, settings, false));
  mo_status status = pod_ledger_all(ledger, &runs, &n);
  if (status == MO_OK) status = check_names(options, runs, n);
  for (int i = 0; status == MO_OK && i < n; i++) live = live || runs[i].id[0] || runs[i].created > 0;
  if (status == MO_OK)
    status = options->json ? show_json(settings, options, runs, n, busy) : show_table(settings, options, runs, n, busy);
  if (status == MO_OK && live && !busy && !options->json)
    printf(
        "nobody drives these runs: the same `moe-pod run` or `sweep` goes on with them; pods cost until they are "
        "ended\n");
  *over = !busy && !live;
  free(runs);
  pod_ledger_close(ledger);
  return status;
}

mo_status pod_command_status(const pod_settings *settings, const pod_options *options) {
  bool over = false, screen = isatty(STDOUT_FILENO);
  for (;;) {
    if (options->watch && screen && !options->json) printf("\033[H\033[2J");
    MO_TRY(look(settings, options, &over));
    fflush(stdout);
    if (!options->watch || over) return MO_OK;
    pod_nap(options->interval > 0 ? options->interval : 10);
    if (pod_stop) return MO_OK; /* Ctrl-C is how one stops to watch */
  }
}
