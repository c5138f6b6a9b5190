#include "pod/inventory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const STATES[] = {"PROVISIONING", "STARTING", "RUNNING", "EXITED", "ERROR", "TERMINATED", "UNKNOWN"};

static bool is_ours(const char *name) { return strncmp(name, POD_PREFIX, sizeof POD_PREFIX - 1) == 0; }

/* --- items --- */

static void from_pod(pod_item *item, const pod_pod *pod) {
  *item = (pod_item){.gpus = pod->gpus, .pods = 1, .price = pod->cost, .created = pod->created};
  snprintf(item->id, sizeof item->id, "%s", pod->id);
  snprintf(item->name, sizeof item->name, "%s", pod->name);
  snprintf(item->gpu, sizeof item->gpu, "%s", pod->gpu);
  snprintf(item->state, sizeof item->state, "%s", STATES[pod->state]);
  snprintf(item->data_center, sizeof item->data_center, "%s", pod->data_center);
}

static void from_cluster(pod_item *item, const pod_cluster *cluster) {
  *item = (pod_item){.cluster = true,
                     .gpus = cluster->pods * cluster->gpus_per_pod,
                     .pods = cluster->pods,
                     .created = cluster->created};
  snprintf(item->id, sizeof item->id, "%s", cluster->id);
  snprintf(item->name, sizeof item->name, "%s", cluster->name);
  snprintf(item->gpu, sizeof item->gpu, "%s", cluster->gpu);
}

/* Price, place and state of a cluster are those of its pods. */
static void add_members(pod_item *item, const pod_pod *pods, int n) {
  int counts[POD_UNKNOWN + 1] = {0}, all = 0, kinds = 0, state = POD_UNKNOWN;
  for (int i = 0; i < n; i++) {
    if (strcmp(pods[i].cluster, item->id) != 0) continue;
    item->price += pods[i].cost;
    counts[pods[i].state]++;
    all++;
    if (pods[i].data_center[0]) snprintf(item->data_center, sizeof item->data_center, "%s", pods[i].data_center);
  }
  for (int i = 0; i <= POD_UNKNOWN; i++) {
    kinds += counts[i] > 0;
    if (counts[i] > 0 && (state == POD_UNKNOWN || i != POD_RUNNING)) state = i;
  }
  if (kinds > 1)
    snprintf(item->state, sizeof item->state, "%s %d of %d", STATES[state], counts[state], all);
  else
    snprintf(item->state, sizeof item->state, "%s", all ? STATES[state] : "PROVISIONING");
}

static bool has_item(const pod_item *items, int n, const char *id) {
  for (int i = 0; i < n; i++)
    if (strcmp(items[i].id, id) == 0) return true;
  return false;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const pod_item *)a)->name, ((const pod_item *)b)->name);
}

/* A cluster that was made between the two listings shows by its pods alone. */
static int collect(pod_item *items, const pod_pod *pods, int n_pods, const pod_cluster *clusters, int n_clusters) {
  int n = 0;
  for (int i = 0; i < n_clusters; i++)
    if (is_ours(clusters[i].name)) from_cluster(items + n++, clusters + i);
  for (int i = 0; i < n_pods; i++) {
    if (!is_ours(pods[i].name) || pods[i].state == POD_TERMINATED) continue;
    if (pods[i].cluster[0] && has_item(items, n, pods[i].cluster)) continue;
    from_pod(items + n, pods + i);
    if (pods[i].cluster[0]) {
      items[n].cluster = true;
      items[n].price = 0; /* added up from its pods */
      snprintf(items[n].id, sizeof items[n].id, "%s", pods[i].cluster);
    }
    n++;
  }
  for (int i = 0; i < n; i++)
    if (items[i].cluster) add_members(items + i, pods, n_pods);
  qsort(items, (size_t)n, sizeof *items, by_name);
  return n;
}

mo_status pod_inventory_runs(const pod_settings *settings, pod_item *items, int n) {
  pod_ledger *ledger;
  pod_run *runs = NULL;
  int n_runs = 0;
  bool busy;
  MO_TRY(pod_ledger_busy(settings, &busy));
  MO_TRY(pod_ledger_open(&ledger, settings, false));
  mo_status status = pod_ledger_all(ledger, &runs, &n_runs);
  for (int i = 0; status == MO_OK && i < n_runs * n; i++) {
    const pod_run *run = runs + i / n;
    pod_item *item = items + i % n;
    if (strcmp(run->name, item->name) != 0 && strcmp(run->id, item->id) != 0) continue;
    snprintf(item->run, sizeof item->run, "%s", run->key);
    bool its_own = !run->id[0] || strcmp(run->id, item->id) == 0; /* else a second one, which nobody uses */
    item->live = its_own && run->step < STEP_ENDED && (busy || (double)time(NULL) < run->deadline);
  }
  free(runs);
  pod_ledger_close(ledger);
  return status;
}

mo_status pod_inventory(pod_http *http, pod_item **items, int *n) {
  pod_cluster *clusters = NULL;
  pod_pod *pods = NULL;
  int n_clusters = 0, n_pods = 0;
  *items = NULL;
  *n = 0;
  mo_status status;
  MO_TRY_TO(done, pod_api_clusters(http, &clusters, &n_clusters));
  MO_TRY_TO(done, pod_api_pods(http, &pods, &n_pods));
  *items = mo_alloc((size_t)(n_clusters + n_pods), sizeof **items);
  MO_TRY_TO(done, *items ? MO_OK : MO_FAILED);
  *n = collect(*items, pods, n_pods, clusters, n_clusters);
done:
  free(clusters);
  free(pods);
  return status;
}

mo_status pod_inventory_find(pod_http *http, const char *id, pod_item *item, bool *found, char cluster[64]) {
  pod_pod pod;
  pod_cluster whole;
  cluster[0] = '\0';
  MO_TRY(pod_api_pod(http, id, &pod, found));
  if (*found) {
    from_pod(item, &pod);
    snprintf(cluster, 64, "%s", pod.cluster);
    *found = !pod.cluster[0];
    return MO_OK;
  }
  MO_TRY(pod_api_cluster(http, id, &whole, found));
  if (!*found) return MO_OK;
  pod_pod *pods = NULL;
  int n = 0;
  from_cluster(item, &whole);
  if (pod_api_cluster_pods(http, id, &pods, &n) == MO_OK) add_members(item, pods, n);
  mo_error_clear(); /* only the price is not known */
  free(pods);
  return MO_OK;
}

double pod_item_hours(const pod_item *item) {
  double seconds = (double)time(NULL) - item->created;
  return seconds > 0 ? seconds / 3600 : 0;
}

json_t *pod_item_json(const pod_item *item) {
  return json_pack("{s:s, s:s, s:b, s:s, s:s, s:i, s:i, s:s, s:f, s:f, s:f, s:s, s:b}", "id", item->id, "name",
                   item->name, "cluster", item->cluster, "status", item->state, "gpu", item->gpu, "gpus", item->gpus,
                   "pods", item->pods, "data_center", item->data_center, "price", item->price, "hours",
                   pod_item_hours(item), "dollars", item->price * pod_item_hours(item), "run", item->run, "live",
                   item->live);
}
