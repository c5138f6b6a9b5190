/* moe-pod list, terminate, cleanup. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pod/commands.h"
#include "pod/inventory.h"

/* --- list --- */

static mo_status print_items(const pod_item *items, int n) {
  static const char *const heads[] = {"id",  "name",  "status",   "GPU", "GPUs",
                                      "$/h", "hours", "$ so far", "run", "data center"};
  pod_table table;
  double price = 0;
  pod_table_begin(&table, 10, heads);
  for (int i = 0; i < n; i++) {
    const pod_item *item = items + i;
    price += item->price;
    pod_table_cell(&table, "%s", item->id);
    pod_table_cell(&table, "%s", item->name);
    pod_table_cell(&table, "%s", item->state);
    pod_table_cell(&table, "%s", item->gpu[0] ? item->gpu : "-");
    if (item->cluster && item->pods > 0)
      pod_table_cell(&table, "%d x %d", item->pods, item->gpus / item->pods);
    else
      pod_table_cell(&table, "%d", item->gpus);
    pod_table_cell(&table, "%.2f", item->price);
    pod_table_cell(&table, "%.2f", pod_item_hours(item));
    pod_table_cell(&table, "%.2f", item->price * pod_item_hours(item));
    pod_table_cell(&table, "%s%s", item->run[0] ? item->run : "none", item->run[0] && !item->live ? " (over)" : "");
    pod_table_cell(&table, "%s", item->data_center[0] ? item->data_center : "-");
  }
  MO_TRY(pod_table_print(&table));
  if (n == 0)
    printf("none: no pod or cluster has a name that begins with %s\n", POD_PREFIX);
  else
    printf("together $%.2f per hour\n", price);
  return MO_OK;
}

static mo_status print_items_json(const pod_item *items, int n) {
  json_t *list = json_array();
  double price = 0;
  for (int i = 0; i < n; i++) {
    price += items[i].price;
    if (json_array_append_new(list, pod_item_json(items + i)) == 0) continue;
    json_decref(list);
    return MO_FAIL(MO_FAILED, "out of memory (list of pods): free some memory");
  }
  return pod_print_json(json_pack("{s:o, s:f}", "pods", list, "price", price));
}

/* What is there is shown also where the ledger is broken. */
static void say_without_runs(const pod_settings *settings, mo_status status) {
  if (status == MO_OK) return;
  pod_say(settings, "the runs are not known: %s", mo_error_message());
  mo_error_clear();
}

mo_status pod_command_list(const pod_settings *settings, const pod_options *options) {
  pod_http *http = NULL;
  pod_item *items = NULL;
  int n = 0;
  mo_status status;
  MO_TRY_TO(done, pod_http_open(&http, settings));
  pod_http_heed(http, &pod_stop);
  MO_TRY_TO(done, pod_inventory(http, &items, &n));
  say_without_runs(settings, pod_inventory_runs(settings, items, n));
  status = options->json ? print_items_json(items, n) : print_items(items, n);
done:
  free(items);
  pod_http_close(http);
  return status;
}

/* --- terminate --- */

static const char *kind_of(const pod_item *item) { return item->cluster ? "cluster" : "pod"; }

/* Ends each of them, whatever becomes of the others; what could not be ended is said to be running. */
static mo_status end_items(const pod_settings *settings, pod_http *http, const pod_item *items, int n, json_t *ended) {
  mo_status status = MO_OK;
  for (int i = 0; i < n; i++) {
    mo_status one = pod_stop ? MO_STOPPED : pod_end_by_hand(settings, http, items[i].id, items[i].cluster);
    if (one == MO_OK && ended) json_array_append_new(ended, pod_item_json(items + i));
    if (one == MO_OK && !ended) printf("ended %s %s (%s)\n", kind_of(items + i), items[i].id, items[i].name);
    if (one == MO_OK) continue;
    pod_say_running(settings, items[i].id, items[i].name, items[i].price);
    if (status == MO_OK) status = one;
  }
  if (status == MO_STOPPED) return MO_FAIL(MO_STOPPED, "interrupted (command line): what is running is named above");
  return status;
}

static mo_status find_item(pod_http *http, const char *id, pod_item *item) {
  bool found;
  char cluster[64];
  MO_TRY(pod_inventory_find(http, id, item, &found, cluster));
  if (cluster[0])
    return MO_FAIL(MO_INVALID, "pod %s is one of a cluster (command line): end that: moe-pod terminate %s", id,
                   cluster);
  if (!found)
    return MO_FAIL(MO_INVALID, "no pod or cluster has the id %s, or not any more (command line): see moe-pod list", id);
  if (strncmp(item->name, POD_PREFIX, sizeof POD_PREFIX - 1) == 0) return MO_OK;
  return MO_FAIL(MO_INVALID, "%s %s is not this project's, its name is \"%s\" (command line): use RunPod's console",
                 kind_of(item), id, item->name);
}

/* All ids are looked at before the first of them is ended. */
static mo_status named_items(pod_http *http, const pod_options *options, pod_item **items, int *n) {
  *items = mo_alloc((size_t)options->n_names, sizeof **items);
  if (!*items) return MO_FAILED;
  for (*n = 0; *n < options->n_names; ++*n) MO_TRY(find_item(http, options->names[*n], *items + *n));
  return MO_OK;
}

/* The calls that look heed Ctrl-C; those that end do not, as an answer must not be missed. */
mo_status pod_command_terminate(const pod_settings *settings, const pod_options *options) {
  pod_http *http = NULL;
  pod_item *items = NULL;
  int n = 0;
  json_t *ended = options->json ? json_array() : NULL;
  mo_status status;
  if (options->all && options->n_names > 0) {
    status = MO_FAIL(MO_INVALID, "--all and ids (command line): give one or the other");
    goto done;
  }
  MO_TRY_TO(done, pod_http_open(&http, settings));
  pod_http_heed(http, &pod_stop);
  MO_TRY_TO(done, options->all ? pod_inventory(http, &items, &n) : named_items(http, options, &items, &n));
  pod_http_heed(http, NULL);
  status = end_items(settings, http, items, n, ended);
  if (n == 0 && !ended) printf("nothing to end: no pod or cluster has a name that begins with %s\n", POD_PREFIX);
  if (ended) {
    mo_status printed = pod_print_json(json_pack("{s:O}", "ended", ended));
    if (status == MO_OK) status = printed;
  }
done:
  json_decref(ended);
  free(items);
  pod_http_close(http);
  return status;
}

/* --- cleanup --- */

/* Puts those that are in no live run first; returns how many. */
static int part_items(pod_item *items, int n) {
  int over = 0;
  for (int i = 0; i < n; i++) {
    if (items[i].live) continue;
    pod_item item = items[i];
    items[i] = items[over];
    items[over++] = item;
  }
  return over;
}

static mo_status ask(const pod_settings *settings, const pod_item *items, int n, const pod_options *options,
                     bool *yes) {
  *yes = (options->yes || n == 0) && !options->dry_run;
  if (*yes) return MO_OK;
  for (int i = 0; i < n; i++) pod_say_running(settings, items[i].id, items[i].name, items[i].price);
  if (options->dry_run) return MO_OK;
  if (!isatty(STDIN_FILENO))
    return MO_FAIL(MO_INVALID, "nobody to ask whether %d should be ended (moe-pod cleanup): give --yes", n);
  char answer[16] = "";
  fprintf(stderr, "End %s? [y/N] ", n == 1 ? "it" : "all of these");
  if (!fgets(answer, sizeof answer, stdin)) answer[0] = '\0';
  *yes = answer[0] == 'y' || answer[0] == 'Y';
  return MO_OK;
}

static json_t *items_json(const pod_item *items, int n) {
  json_t *list = json_array();
  for (int i = 0; i < n; i++) json_array_append_new(list, pod_item_json(items + i));
  return list;
}

/* over: those that are in no live run, before those that are kept. */
static mo_status print_cleanup(const pod_item *over, int n_over, int n_kept, bool yes, json_t *ended) {
  const pod_item *kept = over + n_over;
  if (ended)
    return pod_print_json(json_pack("{s:O, s:o, s:o}", "ended", ended, "left", items_json(over, yes ? 0 : n_over),
                                    "kept", items_json(kept, n_kept)));
  if (n_over == 0) printf("nothing to end\n");
  if (n_over > 0 && !yes) printf("nothing was ended\n");
  for (int i = 0; i < n_kept; i++)
    printf("kept %s %s (%s), $%.2f per hour: run %s is under way\n", kind_of(kept + i), kept[i].id, kept[i].name,
           kept[i].price, kept[i].run);
  return MO_OK;
}

mo_status pod_command_cleanup(const pod_settings *settings, const pod_options *options) {
  pod_http *http = NULL;
  pod_item *items = NULL;
  int n = 0, over = 0;
  bool yes = false;
  json_t *ended = options->json ? json_array() : NULL;
  mo_status status;
  MO_TRY_TO(done, pod_http_open(&http, settings));
  pod_http_heed(http, &pod_stop);
  MO_TRY_TO(done, pod_inventory(http, &items, &n));
  MO_TRY_TO(done, pod_inventory_runs(settings, items, n));
  pod_http_heed(http, NULL);
  over = part_items(items, n);
  MO_TRY_TO(done, ask(settings, items, over, options, &yes));
  if (yes) status = end_items(settings, http, items, over, ended);
  mo_status printed = print_cleanup(items, over, n - over, yes, ended);
  if (status == MO_OK) status = printed;
done:
  json_decref(ended);
  free(items);
  pod_http_close(http);
  return status;
}
