#include "pod/api_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- errors --- */

mo_status pod_api_refused(const pod_answer *answer, const char *call) {
  const char *remedy = "see https://docs.runpod.io, or try again later";
  mo_status status = MO_FAILED;
  switch (answer->status) {
    case 401:
      status = MO_INVALID;
      remedy = "check RUNPOD_API_KEY; a new key is made in RunPod's console under settings";
      break;
    case 402:
      remedy = "add credit to the RunPod account";
      break;
    case 403:
      remedy = "give the key of RUNPOD_API_KEY the permission, in RunPod's console under settings";
      break;
    case 404:
      remedy = "check the id with moe-pod list";
      break;
    case 410:
      remedy = "this interface has ended: get a newer version of moe-pod; what is running is shown by RunPod's console";
      break;
    case 422:
      remedy = "report this as a bug";
      break;
    case 429:
      remedy = "wait, then try again with fewer runs at a time";
      break;
  }
  return MO_FAIL(status, "RunPod answers %ld: %s (%s): %s", answer->status, answer->detail, call, remedy);
}

mo_status pod_api_strange(const char *call, const char *what) {
  return MO_FAIL(MO_FAILED, "RunPod's answer is not understood: %s (%s): check MOE_POD_API, or get a newer moe-pod",
                 what, call);
}

static mo_status wrong_member(const char *key, const char *call) {
  char what[128];
  snprintf(what, sizeof what, "\"%s\" is missing or of another type", key);
  return pod_api_strange(call, what);
}

/* --- members --- */

mo_status pod_json_text(const json_t *object, const char *key, char *text, size_t size, bool whole, const char *call) {
  const char *value = json_string_value(json_object_get(object, key));
  if (!value || (whole && (!*value || strlen(value) >= size))) return wrong_member(key, call);
  size_t n = strnlen(value, size);
  if (n == size)
    for (n--; n > 0 && ((unsigned char)value[n] & 0xc0) == 0x80; n--) continue; /* no half of a character */
  memcpy(text, value, n);
  text[n] = '\0';
  return MO_OK;
}

/* As above where null, or nothing, may stand too. */
static mo_status text_or_null(const json_t *object, const char *key, char *text, size_t size, const char *call) {
  const json_t *value = json_object_get(object, key);
  text[0] = '\0';
  if (!value || json_is_null(value)) return MO_OK;
  return pod_json_text(object, key, text, size, true, call);
}

mo_status pod_json_number(const json_t *object, const char *key, double *number, const char *call) {
  const json_t *value = json_object_get(object, key);
  if (!json_is_number(value) || !(json_number_value(value) >= 0)) return wrong_member(key, call);
  *number = json_number_value(value);
  return MO_OK;
}

static mo_status whole_number(const json_t *object, const char *key, int most, int *number, const char *call) {
  const json_t *value = json_object_get(object, key);
  if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > most)
    return wrong_member(key, call);
  *number = (int)json_integer_value(value);
  return MO_OK;
}

static mo_status truth(const json_t *object, const char *key, bool *value, const char *call) {
  const json_t *member = json_object_get(object, key);
  if (!json_is_boolean(member)) return wrong_member(key, call);
  *value = json_is_true(member);
  return MO_OK;
}

/* The offset behind a time of day, in seconds. */
static bool parse_zone(const char *text, int *offset) {
  int hours, minutes, used = 0;
  *offset = 0;
  if (strcmp(text, "Z") == 0 || strcmp(text, "z") == 0) return true;
  if (*text != '+' && *text != '-') return false;
  if (sscanf(text + 1, "%2d:%2d%n", &hours, &minutes, &used) != 2 || text[1 + used]) return false;
  *offset = (*text == '-' ? -1 : 1) * (3600 * hours + 60 * minutes);
  return true;
}

bool pod_parse_time(const char *text, double *seconds) {
  struct tm time = {0};
  int used = 0, offset;
  if (sscanf(text, "%4d-%2d-%2d%*1[Tt ]%2d:%2d:%2d%n", &time.tm_year, &time.tm_mon, &time.tm_mday, &time.tm_hour,
             &time.tm_min, &time.tm_sec, &used) != 6 ||
      !used)
    return false;
  const char *rest = text + used;
  double fraction = 0;
  if (*rest == '.') {
    size_t digits = strspn(rest + 1, "0123456789");
    char *end;
    fraction = digits ? strtod(rest, &end) : 0;
    rest += 1 + digits;
  }
  if (!parse_zone(rest, &offset)) return false;
  time.tm_year -= 1900;
  time.tm_mon -= 1;
  *seconds = (double)timegm(&time) - offset + fraction;
  return true;
}

mo_status pod_json_time(const json_t *object, const char *key, double *seconds, const char *call) {
  const char *text = json_string_value(json_object_get(object, key));
  if (!text || !pod_parse_time(text, seconds)) return wrong_member(key, call);
  return MO_OK;
}

/* --- pods and clusters --- */

static pod_state state_of(const char *text) {
  static const char *const names[] = {"PROVISIONING", "STARTING", "RUNNING", "EXITED", "ERROR", "TERMINATED"};
  for (int i = 0; i < POD_UNKNOWN; i++)
    if (strcmp(names[i], text) == 0) return (pod_state)i;
  return POD_UNKNOWN;
}

static mo_status read_ssh(const json_t *object, pod_pod *pod, const char *call) {
  const json_t *ssh = json_object_get(object, "ssh"), *direct = json_object_get(ssh, "direct");
  if (!json_is_object(ssh) || !direct) return wrong_member("ssh", call);
  if (json_is_null(direct)) return MO_OK;
  MO_TRY(pod_json_text(direct, "host", pod->host, sizeof pod->host, true, call));
  MO_TRY(pod_json_text(direct, "username", pod->user, sizeof pod->user, true, call));
  return whole_number(direct, "port", 65535, &pod->port, call);
}

static mo_status read_membership(const json_t *object, pod_pod *pod, const char *call) {
  const json_t *cluster = json_object_get(object, "cluster");
  pod->rank = -1;
  if (!cluster || json_is_null(cluster)) return MO_OK;
  MO_TRY(pod_json_text(cluster, "id", pod->cluster, sizeof pod->cluster, true, call));
  MO_TRY(text_or_null(cluster, "ip", pod->cluster_ip, sizeof pod->cluster_ip, call));
  if (json_is_null(json_object_get(cluster, "rank"))) return MO_OK;
  return whole_number(cluster, "rank", 1 << 20, &pod->rank, call);
}

mo_status pod_json_pod(const json_t *object, pod_pod *pod, const char *call) {
  const json_t *gpu = json_object_get(object, "gpu");
  char status[32];
  *pod = (pod_pod){0};
  if (!json_is_object(object)) return pod_api_strange(call, "a pod is not an object");
  MO_TRY(pod_json_text(object, "id", pod->id, sizeof pod->id, true, call));
  MO_TRY(pod_json_text(object, "name", pod->name, sizeof pod->name, false, call));
  MO_TRY(pod_json_text(object, "status", status, sizeof status, true, call));
  MO_TRY(pod_json_number(object, "cost", &pod->cost, call));
  MO_TRY(pod_json_time(object, "createdAt", &pod->created, call));
  MO_TRY(text_or_null(object, "dataCenterId", pod->data_center, sizeof pod->data_center, call));
  MO_TRY(read_ssh(object, pod, call));
  MO_TRY(read_membership(object, pod, call));
  pod->state = state_of(status);
  if (!gpu || json_is_null(gpu)) return MO_OK; /* a pod without GPUs */
  pod->gpus = 1;
  MO_TRY(pod_json_text(gpu, "id", pod->gpu, sizeof pod->gpu, false, call));
  return json_object_get(gpu, "count") ? whole_number(gpu, "count", 1 << 20, &pod->gpus, call) : MO_OK;
}

/* "1.2.3.4:22001" */
static mo_status read_endpoint(const json_t *primary, pod_cluster *cluster, const char *call) {
  char text[sizeof cluster->host + 8], *end;
  if (!json_object_get(primary, "sshEndpoint")) return MO_OK;
  MO_TRY(pod_json_text(primary, "sshEndpoint", text, sizeof text, true, call));
  char *colon = strrchr(text, ':');
  long port = colon ? strtol(colon + 1, &end, 10) : 0;
  if (!colon || *end || port < 1 || port > 65535 || colon == text || (size_t)(colon - text) >= sizeof cluster->host)
    return wrong_member("sshEndpoint", call);
  *colon = '\0';
  memcpy(cluster->host, text, (size_t)(colon - text) + 1);
  cluster->port = (int)port;
  return MO_OK;
}

mo_status pod_json_cluster(const json_t *object, pod_cluster *cluster, const char *call) {
  const json_t *compute = json_object_get(object, "compute"), *primary = json_object_get(object, "primary");
  *cluster = (pod_cluster){0};
  if (!json_is_object(object)) return pod_api_strange(call, "a cluster is not an object");
  MO_TRY(pod_json_text(object, "id", cluster->id, sizeof cluster->id, true, call));
  MO_TRY(pod_json_text(object, "name", cluster->name, sizeof cluster->name, false, call));
  MO_TRY(pod_json_time(object, "createdAt", &cluster->created, call));
  MO_TRY(pod_json_text(compute, "gpuTypeId", cluster->gpu, sizeof cluster->gpu, false, call));
  MO_TRY(whole_number(compute, "gpuCountPerPod", 1 << 20, &cluster->gpus_per_pod, call));
  MO_TRY(whole_number(compute, "podCount", 1 << 20, &cluster->pods, call));
  return primary && !json_is_null(primary) ? read_endpoint(primary, cluster, call) : MO_OK;
}

/* --- GPU types --- */

bool pod_json_gpu_works(const json_t *object) {
  static const char *const older[] = {"V100",   "P100",  "P40",      "T4",       "GTX",
                                      "Quadro", "TITAN", "RTX 2060", "RTX 2070", "RTX 2080"};
  const char *maker = json_string_value(json_object_get(object, "manufacturer"));
  const char *id = json_string_value(json_object_get(object, "id"));
  if (!maker || !id) return true; /* found to be wrong where it is read */
  for (size_t i = 0; i < sizeof older / sizeof older[0]; i++)
    if (strstr(id, older[i])) return false;
  return strcmp(maker, "NVIDIA") == 0;
}

static int level_of(const json_t *object) {
  static const char *const names[] = {"NONE", "LOW", "MEDIUM", "HIGH"};
  const char *text = json_string_value(json_object_get(object, "availability"));
  for (int i = 0; text && i < 4; i++)
    if (strcmp(names[i], text) == 0) return i;
  return -1;
}

/* The best stocked first; those without stock are left out. */
static mo_status read_data_centers(const json_t *object, pod_gpu_type *type, const char *call) {
  const json_t *list = json_object_get(object, "dataCenters"), *center;
  const int most = (int)(sizeof type->data_centers / sizeof type->data_centers[0]);
  size_t i;
  if (!list || json_is_null(list)) return MO_OK;
  if (!json_is_array(list)) return wrong_member("dataCenters", call);
  for (int level = 3; level > 0; level--) json_array_foreach(list, i, center) {
      if (level_of(center) != level || type->n_data_centers == most) continue;
      MO_TRY(pod_json_text(center, "id", type->data_centers[type->n_data_centers], sizeof type->data_centers[0], true,
                           call));
      type->n_data_centers++;
    }
  return MO_OK;
}

mo_status pod_json_gpu(const json_t *object, pod_gpu_type *type, const char *call) {
  const json_t *price = json_object_get(object, "price"), *most = json_object_get(object, "maxCount");
  *type = (pod_gpu_type){0};
  if (!json_is_object(object)) return pod_api_strange(call, "a GPU type is not an object");
  MO_TRY(pod_json_text(object, "id", type->id, sizeof type->id, true, call));
  MO_TRY(pod_json_text(object, "name", type->name, sizeof type->name, false, call));
  MO_TRY(whole_number(object, "memory", 1 << 20, &type->memory_gb, call));
  MO_TRY(truth(object, "secure", &type->secure, call));
  MO_TRY(truth(object, "community", &type->community, call));
  MO_TRY(pod_json_number(price, "secure", &type->price_secure, call));
  MO_TRY(pod_json_number(price, "community", &type->price_community, call));
  MO_TRY(whole_number(most, "secure", 1 << 20, &type->most_secure, call));
  MO_TRY(whole_number(most, "community", 1 << 20, &type->most_community, call));
  type->available = level_of(object);
  return read_data_centers(object, type, call);
}
