/* Private to list, terminate and cleanup: what of this project is on the account. */
#ifndef MO_POD_INVENTORY_H
#define MO_POD_INVENTORY_H

#include "pod/pod.h"

/* A pod by itself, or a cluster with its pods. */
typedef struct {
  char id[64], name[128], gpu[96], state[48], data_center[32];
  bool cluster;
  int gpus, pods;        /* gpus: in all */
  double price, created; /* dollars per hour of all; seconds since 1970 */
  char run[64];          /* the run of the ledger that it belongs to, "" */
  bool live;             /* that run is under way */
} pod_item;

/* Pods and clusters whose name begins with POD_PREFIX, in order of their names. Caller frees *items. */
MO_CHECKED mo_status pod_inventory(pod_http *http, pod_item **items, int *n);
/* Which runs of the ledger they belong to. */
MO_CHECKED mo_status pod_inventory_runs(const pod_settings *settings, pod_item *items, int n);
/* One by its id. *found is false if there is none, or it is a pod within a cluster (then its id is in cluster, else
 * ""). */
MO_CHECKED mo_status pod_inventory_find(pod_http *http, const char *id, pod_item *item, bool *found, char cluster[64]);
/* Hours that it has been there. */
double pod_item_hours(const pod_item *item);
/* As an object for --json; NULL: out of memory. */
json_t *pod_item_json(const pod_item *item);

#endif
