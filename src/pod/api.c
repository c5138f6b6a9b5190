/* RunPod's REST API v2: one function per thing that is asked. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "moe_outliers/clock.h"
#include "pod/api_json.h"

enum { PATH = 512 };

/* --- lists --- */

/* GET of a list. Nothing but status 200 and an object with the array `wrapper` will do: no other answer says what is
 * there. */
static mo_status get_list(pod_http *http, const char *path, const char *wrapper, pod_answer *answer, json_t **list) {
  char call[PATH], what[64];
  snprintf(call, sizeof call, "GET %s", path);
  MO_TRY(pod_http_call(http, "GET", path, NULL, false, answer));
  if (answer->status != 200) return pod_api_refused(answer, call);
  *list = json_object_get(answer->body, wrapper);
  if (json_is_array(*list)) return MO_OK;
  snprintf(what, sizeof what, "there is no list \"%s\"", wrapper);
  return pod_api_strange(call, what);
}

/* Reads the objects of a list into rows of `size` bytes, which start as zeros; caller frees *rows. keep: which objects count, NULL:
 * all. */
static mo_status read_list(pod_http *http, const char *path, const char *wrapper, size_t size,
                           mo_status (*read)(const json_t *object, void *row), bool (*keep)(const json_t *object),
                           void **rows, int *n) {
  pod_answer answer = {0};
  json_t *list, *object;
  size_t i;
  char *made = NULL;
  *rows = NULL;
  *n = 0;
  mo_status status;
  MO_TRY_TO(done, get_list(http, path, wrapper, &answer, &list));
  made = mo_alloc(json_array_size(list), size);
  MO_TRY_TO(done, made ? MO_OK : MO_FAILED);
  json_array_foreach(list, i, object) {
    MO_TRY_TO(done, read(object, made + (size_t)*n * size));
    *n += !keep || keep(object);
  }
  *rows = made;
  made = NULL;
done:
  free(made);
  if (status != MO_OK) *n = 0;
  pod_answer_free(&answer);
  return status;
}

static mo_status read_pod(const json_t *object, void *row) { return pod_json_pod(object, row, "GET /v2/pods"); }

static mo_status read_cluster(const json_t *object, void *row) {
  return pod_json_cluster(object, row, "GET /v2/clusters");
}

static mo_status read_gpu(const json_t *object, void *row) { return pod_json_gpu(object, row, "GET /v2/catalog/gpus"); }

static mo_status read_pods(pod_http *http, const char *path, pod_pod **pods, int *n) {
  void *rows;
  mo_status status = read_list(http, path, "pods", sizeof **pods, read_pod, NULL, &rows, n);
  *pods = rows;
  return status;
}

mo_status pod_api_pods(pod_http *http, pod_pod **pods, int *n) {
  return read_pods(http, "/v2/pods?includeClusterPods=true", pods, n);
}

mo_status pod_api_clusters(pod_http *http, pod_cluster **clusters, int *n) {
  void *rows;
  mo_status status = read_list(http, "/v2/clusters", "clusters", sizeof **clusters, read_cluster, NULL, &rows, n);
  *clusters = rows;
  return status;
}

mo_status pod_api_gpus(pod_http *http, int count, bool community, bool cluster, pod_gpu_type **types, int *n) {
  char path[PATH] = "/v2/catalog/gpus";
  void *rows;
  if (count > 0)
    snprintf(path, sizeof path,
             "/v2/catalog/gpus?include=AVAILABILITY&product=%s&count=%d&cloud=%s&minCudaVersion=" POD_MIN_CUDA,
             cluster ? "CLUSTER" : "POD", count, community ? "COMMUNITY" : "SECURE");
  mo_status status = read_list(http, path, "gpus", sizeof **types, read_gpu, pod_json_gpu_works, &rows, n);
  *types = rows;
  return status;
}

static void free_texts(char **texts, int n) {
  for (int i = 0; texts && i < n; i++) free(texts[i]);
  free(texts);
}

mo_status pod_api_ssh_keys(pod_http *http, char ***keys, int *n) {
  static const char path[] = "/v2/account/ssh-keys";
  pod_answer answer = {0};
  json_t *list, *key;
  size_t i;
  *keys = NULL;
  *n = 0;
  mo_status status;
  MO_TRY_TO(done, get_list(http, path, "keys", &answer, &list));
  *keys = mo_alloc(json_array_size(list), sizeof **keys);
  MO_TRY_TO(done, *keys ? MO_OK : MO_FAILED);
  json_array_foreach(list, i, key) {
    if (!json_is_string(key)) status = pod_api_strange("GET /v2/account/ssh-keys", "a key is not a string");
    if (status != MO_OK) goto done;
    (*keys)[*n] = mo_strdup(json_string_value(key));
    MO_TRY_TO(done, (*keys)[(*n)++] ? MO_OK : MO_FAILED);
  }
done:
  pod_answer_free(&answer);
  if (status != MO_OK) {
    free_texts(*keys, *n);
    *keys = NULL;
    *n = 0;
  }
  return status;
}

/* --- one of them --- */

/* What the user gives as an id goes into a path. */
static mo_status check_id(const char *id) {
  size_t n = 0;
  while (isalnum((unsigned char)id[n]) || id[n] == '-' || id[n] == '_') n++;
  if (n > 0 && n < 64 && !id[n]) return MO_OK;
  return MO_FAIL(MO_INVALID, "\"%.70s\" is no id (of a pod or cluster): moe-pod list shows them", id);
}

/* GET of one; *found is false at 404. */
static mo_status get_one(pod_http *http, const char *kind, const char *id, pod_answer *answer, bool *found) {
  char call[PATH];
  *found = false;
  MO_TRY(check_id(id));
  snprintf(call, sizeof call, "GET /v2/%s/%s", kind, id);
  MO_TRY(pod_http_call(http, "GET", call + 4, NULL, false, answer));
  if (answer->status == 404) return MO_OK;
  if (answer->status != 200) return pod_api_refused(answer, call);
  *found = true;
  return MO_OK;
}

mo_status pod_api_pod(pod_http *http, const char *id, pod_pod *pod, bool *found) {
  pod_answer answer = {0};
  mo_status status = get_one(http, "pods", id, &answer, found);
  if (status == MO_OK && *found) status = pod_json_pod(answer.body, pod, "GET /v2/pods/ID");
  if (status == MO_OK && *found && strcmp(pod->id, id) != 0)
    status = pod_api_strange("GET /v2/pods/ID", "it is another pod");
  pod_answer_free(&answer);
  return status;
}

mo_status pod_api_cluster(pod_http *http, const char *id, pod_cluster *cluster, bool *found) {
  pod_answer answer = {0};
  mo_status status = get_one(http, "clusters", id, &answer, found);
  if (status == MO_OK && *found) status = pod_json_cluster(answer.body, cluster, "GET /v2/clusters/ID");
  if (status == MO_OK && *found && strcmp(cluster->id, id) != 0)
    status = pod_api_strange("GET /v2/clusters/ID", "it is another cluster");
  pod_answer_free(&answer);
  return status;
}

mo_status pod_api_cluster_pods(pod_http *http, const char *id, pod_pod **pods, int *n) {
  char path[PATH];
  MO_TRY(check_id(id));
  snprintf(path, sizeof path, "/v2/clusters/%s/pods", id);
  return read_pods(http, path, pods, n);
}

/* --- the log --- */

/* The member `line` of each event's data. */
static void print_events(const char *events, FILE *out) {
  static const char data[] = "data:";
  for (const char *line = events; *line;) {
    const char *end = line + strcspn(line, "\n");
    if (strncmp(line, data, sizeof data - 1) == 0) {
      json_t *event = json_loadb(line + sizeof data - 1, (size_t)(end - line) - (sizeof data - 1), 0, NULL);
      const char *text = json_string_value(json_object_get(event, "line"));
      if (text) fprintf(out, "%s\n", text);
      json_decref(event);
    }
    line = *end ? end + 1 : end;
  }
}

mo_status pod_api_log(pod_http *http, const char *id, char **text) {
  const double enough = 5; /* the stream of a log does not end by itself */
  pod_answer answer = {0};
  char call[PATH], *events = NULL;
  size_t size = 0;
  *text = NULL;
  MO_TRY(check_id(id));
  snprintf(call, sizeof call, "GET /v2/pods/%s/logs?tail=200", id);
  MO_TRY(pod_http_listen(http, call + 4, enough, &answer.status, &events));
  if (answer.status != 200) {
    snprintf(answer.detail, sizeof answer.detail, answer.status ? "no log" : "no answer");
    free(events);
    return pod_api_refused(&answer, call);
  }
  FILE *out = open_memstream(text, &size);
  if (out) print_events(events, out);
  free(events);
  if (out && fclose(out) == 0) return MO_OK;
  free(*text);
  *text = NULL;
  return MO_FAIL(MO_FAILED, "out of memory (log of a pod): free some memory");
}

/* --- create --- */

/* What pods and clusters have in common. */
static json_t *common_order(const pod_order *order) {
  json_t *body = json_pack("{s:s, s:s, s:i, s:[s], s:b}", "name", order->name, "image", order->image, "disk",
                           order->disk_gb, "ports", "22/tcp", "startSsh", 1);
  if (order->env) json_object_set(body, "env", order->env);
  if (order->args) json_object_set_new(body, "args", json_string(order->args));
  if (order->data_center && order->data_center[0])
    json_object_set_new(body, "dataCenterIds", json_pack("[s]", order->data_center));
  if (order->volume)
    json_object_set_new(body, "mounts",
                        json_pack("{s:[{s:s, s:s}]}", "network", "volumeId", order->volume, "path", "/workspace"));
  return body;
}

static json_t *make_order(const pod_order *order) {
  json_t *body = common_order(order);
  if (order->pods > 1) {
    json_object_set_new(body, "type", json_string(order->slurm ? "SLURM" : "TRAINING"));
    json_object_set_new(
        body, "compute",
        json_pack("{s:s, s:i, s:i}", "gpuTypeId", order->gpu, "gpuCountPerPod", order->gpus, "podCount", order->pods));
    return body;
  }
  json_object_set_new(body, "cloud", json_string(order->community ? "COMMUNITY" : "SECURE"));
  json_object_set_new(
      body, "gpu",
      json_pack("{s:s, s:i, s:s}", "id", order->gpu, "count", order->gpus, "minCudaVersion", POD_MIN_CUDA));
  return body;
}

mo_status pod_api_create(pod_http *http, const pod_order *order, char id[64], bool *none, bool *lost,
                         char detail[512]) {
  const char *call = order->pods > 1 ? "POST /v2/clusters" : "POST /v2/pods";
  pod_answer answer = {0};
  json_t *body = make_order(order);
  id[0] = '\0';
  *none = *lost = false;
  mo_status status = body ? MO_OK : MO_FAIL(MO_FAILED, "out of memory (order of a pod): free some memory");
  if (status == MO_OK) status = pod_http_call(http, "POST", call + 5, body, true, &answer);
  json_decref(body);
  *lost = answer.lost; /* also where Ctrl-C came before the answer */
  if (status != MO_OK) return status;
  if (detail) snprintf(detail, 512, "%s", answer.detail);
  const char *made = json_string_value(json_object_get(answer.body, "id"));
  if (answer.status == 200 || answer.status == 201) {
    *lost = !made || !*made || strlen(made) >= 64; /* it is there, but which one it is was not said */
    if (!*lost) snprintf(id, 64, "%s", made);
  } else if (!answer.lost && (answer.status == 400 || answer.status == 403)) {
    *none = true;
  } else if (!answer.lost) {
    status = pod_api_refused(&answer, call);
  }
  pod_answer_free(&answer);
  return status;
}

/* --- end --- */

static void pause_for(double seconds) {
  struct timespec pause = {.tv_sec = (time_t)seconds, .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
  (void)nanosleep(&pause, NULL);
}

/* Whether it, or a pod of the cluster, is still there. */
static mo_status is_there(pod_http *http, const char *id, bool cluster, bool *there) {
  pod_answer answer = {0};
  mo_status status = get_one(http, cluster ? "clusters" : "pods", id, &answer, there);
  pod_answer_free(&answer);
  if (status != MO_OK || *there || !cluster) return status;
  pod_pod *pods;
  int n;
  MO_TRY(pod_api_pods(http, &pods, &n));
  for (int i = 0; i < n; i++) *there = *there || (strcmp(pods[i].cluster, id) == 0 && pods[i].state != POD_TERMINATED);
  free(pods);
  return MO_OK;
}

/* One that stays to be told of as TERMINATED is gone if the list has it no more. */
static bool is_terminated(pod_http *http, const char *id) {
  pod_pod pod, *pods = NULL;
  int n = 0;
  bool found = false, listed = false;
  bool known = pod_api_pod(http, id, &pod, &found) == MO_OK && pod_api_pods(http, &pods, &n) == MO_OK;
  mo_error_clear();
  for (int i = 0; i < n; i++) listed = listed || (strcmp(pods[i].id, id) == 0 && pods[i].state != POD_TERMINATED);
  free(pods);
  return known && (!found || pod.state == POD_TERMINATED) && !listed;
}

mo_status pod_api_end(pod_http *http, const char *id, bool cluster) {
  const double patience = pod_seconds_of(POD_PATIENCE);
  double deadline = mo_seconds() + patience;
  pod_answer answer = {0};
  char call[PATH];
  bool there = true;
  MO_TRY(check_id(id));
  snprintf(call, sizeof call, "DELETE /v2/%s/%s", cluster ? "clusters" : "pods", id);
  MO_TRY(pod_http_call(http, "DELETE", call + 7, NULL, false, &answer));
  bool done = (answer.status >= 200 && answer.status < 300) || answer.status == 404;
  mo_status status = done ? MO_OK : pod_api_refused(&answer, call);
  pod_answer_free(&answer);
  MO_TRY(status);
  for (double wait = 0.2; there; wait = wait < 4 ? 2 * wait : wait) {
    MO_TRY(is_there(http, id, cluster, &there));
    if (there && mo_seconds() + wait > deadline && !cluster && is_terminated(http, id)) return MO_OK;
    if (there && mo_seconds() + wait > deadline)
      return MO_FAIL(MO_FAILED,
                     "still there %.3g s after it was deleted (%s %s): give moe-pod terminate %s again, and look at "
                     "RunPod's console",
                     patience, cluster ? "cluster" : "pod", id, id);
    if (there) pause_for(wait);
  }
  return MO_OK;
}
