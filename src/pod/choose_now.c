/* Choices with the catalog's present stock, which it tells for one number of GPUs, one cloud and one product at a
 * time. */
#include <stdlib.h>

#include "pod/choose.h"

static mo_status ask(pod_http *http, pod_choices *list, pod_question *q, int count) {
  pod_gpu_type *types;
  int n;
  MO_TRY(pod_api_gpus(http, count, q->community, q->cluster, &types, &n));
  mo_status status = pod_choose_add(list, q, types, n);
  free(types);
  return status;
}

/* Clusters of `count` GPUs: of each number per pod that some type would need. */
static mo_status ask_for_clusters(pod_http *http, pod_choices *list, pod_question *q) {
  pod_gpu_type *types;
  int n;
  bool *asked = mo_alloc((size_t)q->count + 1, sizeof *asked);
  if (!asked) return MO_FAILED;
  mo_status status;
  MO_TRY_TO(done, pod_api_gpus(http, 0, false, false, &types, &n));
  for (int i = 0; i < n; i++) {
    int most = types[i].secure && types[i].most_secure < q->count ? types[i].most_secure : 0;
    while (most > 0 && q->count % most) most--;
    asked[most] = true;
  }
  free(types);
  for (q->per_pod = 1; q->per_pod < q->count; q->per_pod++)
    if (asked[q->per_pod]) MO_TRY_TO(done, ask(http, list, q, q->per_pod));
done:
  free(asked);
  return status;
}

static mo_status ask_all(pod_http *http, pod_choices *list, const pod_need *need, const pod_limits *limits) {
  int counts[POD_MOST_COUNTS], n = pod_choose_counts(need, counts);
  for (int i = 0; i < n; i++) {
    for (int community = 0; community < 2; community++) {
      pod_question q = {.need = need, .limits = limits, .count = counts[i], .community = community};
      if (pod_choose_cloud(need, limits, community)) MO_TRY(ask(http, list, &q, counts[i]));
    }
    pod_question cluster = {.need = need, .limits = limits, .count = counts[i], .cluster = true};
    bool secure = pod_choose_cloud(need, limits, false);
    if (i == 0 && need->config.deployment.gpus > 1 && secure) MO_TRY(ask_for_clusters(http, list, &cluster));
  }
  return MO_OK;
}

mo_status pod_choose_now(pod_http *http, const pod_need *need, const pod_limits *limits, pod_choice **choices, int *n) {
  pod_choices list = {0};
  mo_status status = ask_all(http, &list, need, limits);
  if (status == MO_OK) status = pod_choose_finish(&list, need, choices, n);
  pod_choose_drop(&list);
  return status;
}
