/* Several machines: a cluster's members share a folder on a network volume, and rank 0 starts programs on the
 * others. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/clock.h"
#include "pod/remote.h"

static int by_rank(const void *a, const void *b) { return ((const pod_pod *)a)->rank - ((const pod_pod *)b)->rank; }

static bool all_ready(const pod_run *run, const pod_pod *members, int n) {
  for (int i = 0; i < n; i++)
    if (members[i].state != POD_RUNNING || members[i].port <= 0 || members[i].rank != i || !members[i].cluster_ip[0])
      return false;
  return n == run->pods;
}

static mo_status wait_for_members(pod_life *life, pod_pod **members) {
  double patience = pod_seconds_of(POD_REACH), began = mo_seconds();
  for (;;) {
    int n = 0;
    MO_TRY(pod_api_cluster_pods(life->http, life->run.id, members, &n));
    qsort(*members, (size_t)n, sizeof **members, by_rank);
    if (all_ready(&life->run, *members, n)) return MO_OK;
    free(*members);
    *members = NULL;
    MO_TRY(pod_life_watch(life));
    if (mo_seconds() > began + patience)
      return POD_LOST(life, "not all of the cluster's %d pods are running after %.0f s (%s)", life->run.pods, patience,
                      life->run.id);
    MO_TRY(pod_life_wait(life, pod_life_poll()));
  }
}

/* On rank 0: the hostfile and the key. */
static mo_status make_hosts(pod_life *life, const pod_pod *members, const char *nonce, char key[256]) {
  size_t room = (size_t)life->run.pods * 100 + 1, n = 0;
  char *hosts = mo_alloc(room, 1), *output = NULL;
  if (!hosts) return MO_FAILED;
  for (int i = 0; i < life->run.pods; i++)
    n += (size_t)snprintf(hosts + n, room - n, "%s slots=%d\n", members[i].cluster_ip, life->run.gpus);
  mo_status status = pod_script(life, hosts, &output, (const char *[]){"members.sh", nonce}, 2);
  free(hosts);
  const char *mark = status == MO_OK ? pod_mark(output, "key") : NULL;
  if (mark) snprintf(key, 256, "%.*s", (int)strcspn(mark, "\n"), mark);
  free(output);
  if (status == MO_OK && !mark) status = POD_LOST(life, "rank 0 of the cluster makes no key (%s)", life->run.id);
  return status;
}

static mo_status join(pod_life *life, const pod_pod *member, const char *nonce, const char *key) {
  enum { MOST_TRIES = 5 };
  char script[POD_PATH_BYTES];
  MO_TRY(pod_path(script, "%s/remote/member.sh", life->run.remote));
  const char *words[] = {"bash", script, nonce, key};
  char *command = pod_quote(words, 4);
  if (!command) return MO_FAILED;
  pod_place place = {.host = member->host, .user = member->user[0] ? member->user : "root", .port = member->port};
  mo_status status = MO_OK;
  bool joined = false, apart = false;
  for (int tries = 0; status == MO_OK && !joined && !apart && tries < MOST_TRIES; tries++) {
    pod_result result;
    if (tries > 0) status = pod_life_wait(life, pod_life_poll());
    if (status != MO_OK) break;
    status = pod_ssh_once(life, &place, command, NULL, 60, &result);
    joined = status == MO_OK && pod_mark(result.output, "member");
    apart = status == MO_OK && !joined && result.status != 255 && !result.timed_out && !pod_stop;
    pod_result_free(&result);
  }
  free(command);
  if (apart)
    return MO_FAIL(MO_INVALID,
                   "the cluster's pods share no folder (%s is not seen by rank %d): give them a network volume with "
                   "MOE_POD_VOLUME=ID; docs/runpod.md",
                   life->run.remote, member->rank);
  if (status == MO_OK && !joined)
    return POD_LOST(life, "rank %d of the cluster does not answer (%s)", member->rank, life->run.id);
  return status;
}

mo_status pod_life_gather_members(pod_life *life) {
  pod_pod *members = NULL;
  char nonce[64], key[256] = "";
  MO_TRY(wait_for_members(life, &members));
  snprintf(nonce, sizeof nonce, "%.6f", pod_now());
  mo_status status = make_hosts(life, members, nonce, key);
  for (int i = 0; status == MO_OK && i < life->run.pods; i++) status = join(life, &members[i], nonce, key);
  free(members);
  return status;
}
