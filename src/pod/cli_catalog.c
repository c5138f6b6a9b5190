/* moe-pod gpus, plan. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pod/commands.h"

static const char *stock_name(int available) {
  static const char *const names[] = {"none", "low", "medium", "high"};
  return available >= 0 && available <= 3 ? names[available] : "unknown";
}

static json_t *places_json(const char (*centers)[32], int n) {
  json_t *list = json_array();
  for (int i = 0; i < n; i++) json_array_append_new(list, json_string(centers[i]));
  return list;
}

/* The first few, and how many more there are. */
static const char *places(const char (*centers)[32], int n, char *text, size_t size) {
  enum { SHOWN = 3 };
  snprintf(text, size, "%s", n ? "" : "-");
  for (int i = 0; i < n && i < SHOWN; i++) {
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s", i ? " " : "", centers[i]);
  }
  if (n > SHOWN) snprintf(text + strlen(text), size - strlen(text), " +%d", n - SHOWN);
  return text;
}

/* --- gpus --- */

static double price_of(const pod_gpu_type *type, bool community) {
  return community ? type->price_community : type->price_secure;
}

static bool is_offered(const pod_gpu_type *type, const pod_options *options) {
  double price = price_of(type, options->community);
  bool there = options->community ? type->community : type->secure;
  return there && price > 0 && (options->max_price <= 0 || price <= options->max_price + 1e-9);
}

static int by_secure_price(const void *a, const void *b) {
  double x = price_of(a, false), y = price_of(b, false);
  return (x > y) - (x < y);
}

static int by_community_price(const void *a, const void *b) {
  double x = price_of(a, true), y = price_of(b, true);
  return (x > y) - (x < y);
}

static void price_cell(pod_table *table, bool there, double price) {
  if (there && price > 0)
    pod_table_cell(table, "%.2f", price);
  else
    pod_table_cell(table, "-");
}

static mo_status print_types(const pod_gpu_type *types, int n, const pod_options *options) {
  static const char *const heads[] = {
      "GPU", "GB", "secure $/h", "community $/h", "most secure", "most community", "in stock", "data centers"};
  pod_table table;
  char text[160];
  pod_table_begin(&table, 8, heads);
  for (int i = 0; i < n; i++) {
    const pod_gpu_type *type = types + i;
    if (!is_offered(type, options)) continue;
    pod_table_cell(&table, "%s", type->id);
    pod_table_cell(&table, "%d", type->memory_gb);
    price_cell(&table, type->secure, type->price_secure);
    price_cell(&table, type->community, type->price_community);
    pod_table_cell(&table, "%d", type->secure ? type->most_secure : 0);
    pod_table_cell(&table, "%d", type->community ? type->most_community : 0);
    pod_table_cell(&table, "%s", stock_name(type->available));
    pod_table_cell(&table, "%s", places(type->data_centers, type->n_data_centers, text, sizeof text));
  }
  return pod_table_print(&table);
}

static mo_status print_types_json(const pod_gpu_type *types, int n, const pod_options *options) {
  json_t *list = json_array();
  for (int i = 0; i < n; i++) {
    const pod_gpu_type *type = types + i;
    if (!is_offered(type, options)) continue;
    json_array_append_new(
        list,
        json_pack("{s:s, s:s, s:i, s:b, s:b, s:f, s:f, s:i, s:i, s:s, s:o}", "id", type->id, "name", type->name,
                  "memory_gb", type->memory_gb, "secure", type->secure, "community", type->community, "price_secure",
                  type->price_secure, "price_community", type->price_community, "most_secure", type->most_secure,
                  "most_community", type->most_community, "in_stock", stock_name(type->available), "data_centers",
                  places_json(type->data_centers, type->n_data_centers)));
  }
  return pod_print_json(json_pack("{s:o}", "gpus", list));
}

mo_status pod_command_gpus(const pod_settings *settings, const pod_options *options) {
  pod_http *http = NULL;
  pod_gpu_type *types = NULL;
  int n = 0;
  mo_status status;
  MO_TRY_TO(done, pod_http_open(&http, settings));
  pod_http_heed(http, &pod_stop);
  MO_TRY_TO(done, pod_api_gpus(http, 1, options->community, false, &types, &n));
  qsort(types, (size_t)n, sizeof *types, options->community ? by_community_price : by_secure_price);
  status = options->json ? print_types_json(types, n, options) : print_types(types, n, options);
done:
  free(types);
  pod_http_close(http);
  return status;
}

/* --- plan --- */

static json_t *choice_json(const pod_choice *c) {
  return json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:o}", "gpu", c->gpu, "name",
                   c->name, "cloud", c->community ? "community" : "secure", "gpus", c->gpus, "pods", c->pods,
                   "memory_gb", c->memory_gb, "price", c->price, "minutes", c->minutes, "dollars", c->dollars,
                   "minutes_setup", c->setup, "minutes_download", c->download, "minutes_run", c->run, "minutes_fetch",
                   c->fetch, "in_stock", stock_name(c->available), "data_centers",
                   places_json(c->data_centers, c->n_data_centers));
}

static json_t *need_json(const pod_need *need, const pod_choice *choices, int n) {
  json_t *list = json_array();
  for (int i = 0; i < n; i++) json_array_append_new(list, choice_json(choices + i));
  return json_pack("{s:s, s:s, s:I, s:f, s:i, s:b, s:s, s:o}", "config", need->path, "key", need->key, "weight_bytes",
                   (json_int_t)need->weight_bytes, "flops", need->flops, "disk_gb", need->disk_gb, "synthetic",
                   need->synthetic, "image", pod_image(need), "choices", list);
}

static mo_status print_choices(const pod_choice *choices, int n) {
  enum { SHOWN = 8 };
  static const char *const heads[] = {"GPU",     "cloud",   "GPUs",    "GB each",  "$/h",
                                      "minutes", "run min", "total $", "in stock", "data centers"};
  pod_table table;
  char text[160];
  pod_table_begin(&table, 10, heads);
  for (int i = 0; i < n && i < SHOWN; i++) {
    const pod_choice *c = choices + i;
    pod_table_cell(&table, "%s", c->gpu);
    pod_table_cell(&table, "%s", c->community ? "community" : "secure");
    if (c->pods > 1)
      pod_table_cell(&table, "%d x %d", c->pods, c->gpus);
    else
      pod_table_cell(&table, "%d", c->gpus);
    pod_table_cell(&table, "%d", c->memory_gb);
    pod_table_cell(&table, "%.2f", c->price);
    pod_table_cell(&table, "%.1f", c->minutes);
    pod_table_cell(&table, "%.1f", c->run);
    pod_table_cell(&table, "%.2f", c->dollars);
    pod_table_cell(&table, "%s", stock_name(c->available));
    pod_table_cell(&table, "%s", places(c->data_centers, c->n_data_centers, text, sizeof text));
  }
  MO_TRY(pod_table_print(&table));
  if (n > SHOWN) printf("and %d more (--json lists them)\n", n - SHOWN);
  return MO_OK;
}

static mo_status print_need(const pod_need *need, const pod_choice *choices, int n) {
  const pod_choice *c = choices;
  printf("%s: %s%.1f GB of weights, %.3g FLOP, disk %d GB, image %s\n", need->key,
         need->synthetic  ? "random, "
         : need->streamed ? "streamed, "
                          : "",
         1e-9 * (double)need->weight_bytes, need->flops, need->disk_gb, pod_image(need));
  MO_TRY(print_choices(choices, n));
  printf(
      "first choice: %.1f min to start, set up and build, %.1f to download, %.1f to run, %.1f to fetch results: "
      "$%.2f\n",
      c->setup, c->download, c->run, c->fetch, c->dollars);
  if (c->available == 0) printf("note: nothing of it is in stock now\n");
  return MO_OK;
}

/* Prints one config's plan, or adds it to the list; *dollars: of the first choice. */
static mo_status plan_one(pod_http *http, const char *path, const pod_options *options, json_t *list, double *dollars) {
  const pod_limits limits = {.max_price = options->max_price, .community = options->community};
  pod_need need;
  pod_choice *choices = NULL;
  int n = 0;
  MO_TRY(pod_need_read(&need, path, options->overrides, options->n_overrides));
  mo_status status = pod_choose_now(http, &need, &limits, &choices, &n);
  if (status == MO_OK && list)
    json_array_append_new(list, need_json(&need, choices, n));
  else if (status == MO_OK)
    status = print_need(&need, choices, n);
  if (status == MO_OK) *dollars = choices[0].dollars;
  free(choices);
  pod_need_free(&need);
  return status;
}

/* One that cannot be planned does not keep the others from being. */
static mo_status plan_all(const pod_settings *settings, pod_http *http, const pod_options *options, json_t *list) {
  double total = 0;
  int failed = 0;
  for (int i = 0; i < options->n_names; i++) {
    double dollars = 0;
    if (i && !list) putchar('\n');
    mo_status status = plan_one(http, options->names[i], options, list, &dollars);
    total += dollars;
    if (status == MO_OK) continue;
    failed++;
    if (status != MO_INVALID || options->n_names == 1) return status;
    pod_say(settings, "%s", mo_error_message());
    if (list)
      json_array_append_new(list, json_pack("{s:s, s:s}", "config", options->names[i], "error", mo_error_message()));
    mo_error_clear();
  }
  if (list)
    MO_TRY(pod_print_json(json_pack("{s:O, s:f}", "plans", list, "dollars", total)));
  else if (options->n_names > 1)
    printf("\nexpected together: $%.2f\n", total);
  if (!failed) return MO_OK;
  return MO_FAIL(MO_INVALID, "%d of %d configs cannot be planned (command line): see above", failed, options->n_names);
}

mo_status pod_command_plan(const pod_settings *settings, const pod_options *options) {
  pod_http *http = NULL;
  json_t *list = options->json ? json_array() : NULL;
  mo_status status = pod_http_open(&http, settings);
  if (status == MO_OK) {
    pod_http_heed(http, &pod_stop);
    status = plan_all(settings, http, options, list);
  }
  json_decref(list);
  pod_http_close(http);
  return status;
}
