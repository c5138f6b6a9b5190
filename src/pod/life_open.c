#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pod/remote.h"

static mo_status random_name(const char *key, char name[128]) {
  unsigned char bytes[5] = {0};
  int descriptor = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  ssize_t n = descriptor < 0 ? -1 : read(descriptor, bytes, sizeof bytes);
  if (descriptor >= 0) close(descriptor);
  if (n != sizeof bytes)
    return MO_FAIL(MO_FAILED, "no random numbers (/dev/urandom): %s: mend the system", strerror(errno));
  snprintf(name, 128, POD_PREFIX "%s-%02x%02x%02x%02x%02x", key, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]);
  return MO_OK;
}

static mo_status copy_overrides(pod_life *life, const char *const *overrides, int n) {
  life->overrides = json_array();
  bool good = life->overrides != NULL;
  for (int i = 0; good && i < n; i++) good = json_array_append_new(life->overrides, json_string(overrides[i])) == 0;
  return good ? MO_OK
              : MO_FAIL(MO_INVALID, "an override is no UTF-8 (%s), or memory is short: write it anew", life->need.key);
}

static void copy_text(char *to, size_t size, const char *from) { snprintf(to, size, "%.*s", (int)size - 1, from); }

/* What determines the run; where it runs and what that may cost does not. */
static void hash_settings(const pod_life *life, char hex[72]) {
  const char *text = life->need.config.text, *rest = strstr(text, "\ndeployment");
  pod_sha256 sum;
  pod_sha256_begin(&sum);
  pod_sha256_add(&sum, text, rest ? (size_t)(rest - text) : strlen(text));
  pod_sha256_end(&sum, hex);
}

/* The run of the ledger, or a new one. */
static mo_status take_run(pod_life *life, const char *config) {
  char settings[72];
  hash_settings(life, settings);
  pod_run *run = &life->run;
  bool known = pod_ledger_get(life->ledger, life->need.key, run);
  bool live = known && (run->id[0] || run->created > 0);
  bool over = known && !live && run->step >= STEP_BROUGHT && !run->error[0];
  life->other = over && run->settings[0] && strcmp(run->settings, settings) != 0 &&
                strcmp(run->result, life->need.config.output.path) == 0;
  if (live && (strcmp(run->config, config) != 0 || strcmp(run->settings, settings) != 0))
    return MO_FAIL(
        MO_INVALID,
        "a pod of this run is there, made for another config or other -s (%s, %s): give the same, or end it: "
        "moe-pod terminate %s",
        life->need.key, run->config, run->id[0] ? run->id : run->name);
  if (!known) {
    memset(run, 0, sizeof *run);
    copy_text(run->key, sizeof run->key, life->need.key);
    MO_TRY(random_name(run->key, run->name));
  }
  run->overrides = life->overrides;
  if (live) return MO_OK;
  if (strlen(config) >= sizeof run->config || strlen(life->need.config.output.path) >= sizeof run->result)
    return MO_FAIL(MO_INVALID, "a path is too long (%s): use shorter ones", config);
  copy_text(run->config, sizeof run->config, config);
  copy_text(run->settings, sizeof run->settings, settings);
  copy_text(run->result, sizeof run->result, life->need.config.output.path);
  /* A finished run that is wanted again costs anew. */
  if (over && (life->need.config.output.overwrite || access(run->result, F_OK) != 0)) run->spent = 0;
  run->step = STEP_NAMED;
  run->attempts = 0;
  return MO_OK;
}

mo_status pod_life_open(pod_life *life, const pod_settings *settings, const pod_options *options, pod_ledger *ledger,
                        const char *config, const char *const *overrides, int n_overrides) {
  memset(life, 0, sizeof *life);
  mo_status status = pod_need_read(&life->need, config, overrides, n_overrides);
  if (status != MO_OK) {
    memset(&life->need, 0, sizeof life->need);
    return status;
  }
  life->settings = settings;
  life->options = options;
  life->ledger = ledger;
  if (!pod_is_plain(life->need.key))
    status = MO_FAIL(
        MO_INVALID,
        "a config's name is the name of its run and may have letters, digits and . _ - only (%s): rename it", config);
  if (status == MO_OK) status = copy_overrides(life, overrides, n_overrides);
  if (status == MO_OK) status = take_run(life, config);
  if (status == MO_OK) status = pod_path(life->folder, "%s/runs/%s", settings->state, life->need.key);
  if (status == MO_OK) status = pod_http_open(&life->http, settings);
  if (status == MO_OK) status = pod_http_open(&life->calm, settings);
  if (status == MO_OK)
    pod_http_heed(life->http, &pod_stop);
  else
    pod_life_close(life);
  return status;
}

mo_status pod_life_open_key(pod_life *life, const pod_settings *settings, const pod_options *options,
                            pod_ledger *ledger, const char *key) {
  pod_run run;
  memset(life, 0, sizeof *life);
  if (!pod_ledger_get(ledger, key, &run))
    return MO_FAIL(MO_INVALID, "no run is known by that name (%s): `moe-pod status` shows those that are", key);
  int n = (int)json_array_size(run.overrides);
  const char **overrides = mo_alloc((size_t)n + 1, sizeof *overrides);
  if (!overrides) return MO_FAILED;
  for (int i = 0; i < n; i++) overrides[i] = json_string_value(json_array_get(run.overrides, (size_t)i));
  mo_status status = pod_life_open(life, settings, options, ledger, run.config, overrides, n);
  free(overrides);
  return status;
}

bool pod_is_meant(const char *name, const char *key) {
  const char *slash = strrchr(name, '/');
  size_t n = strlen(key);
  if (slash) name = slash + 1;
  if (strncmp(name, key, n) == 0 && (!name[n] || strcmp(name + n, ".cfg") == 0)) return true;
  n = strlen(name);
  return n > 0 && strspn(name, "0123456789") == n && strncmp(name, key, n) == 0 && key[n] == '_';
}

mo_status pod_find_key(pod_ledger *ledger, const char *name, char key[64]) {
  pod_run *runs = NULL;
  int n = 0, found = 0;
  MO_TRY(pod_ledger_all(ledger, &runs, &n));
  for (int i = 0; i < n; i++) {
    if (!pod_is_meant(name, runs[i].key)) continue;
    found++;
    copy_text(key, 64, runs[i].key);
  }
  free(runs);
  if (found == 1) return MO_OK;
  return MO_FAIL(MO_INVALID, "%s run is known by that name (%s): `moe-pod status` shows those that are",
                 found ? "more than one" : "no", name);
}

void pod_life_close(pod_life *life) {
  pod_http_close(life->http);
  pod_http_close(life->calm);
  free(life->config_text);
  json_decref(life->overrides);
  pod_need_free(&life->need);
  memset(life, 0, sizeof *life);
}
