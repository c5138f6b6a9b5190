/* moe-pod logs KEY [-f]: what the run's pod has written. Copied from the pod by the process that drives the run,
 * else asked of the pod. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pod/life.h"

enum { N_STEPS = 3, N_LOGS = 4 }; /* of the latter the last is no step's */
static const char *const names[N_LOGS] = {"setup", "fetch", "run", "container"};

typedef struct {
  char folder[POD_PATH_BYTES]; /* STATE/runs/KEY/last */
  char pod[256];               /* what it points to */
  long offset[N_LOGS];
} reader;

/* What has come since; another pod's logs begin anew. */
static mo_status print_news(reader *r) {
  char path[POD_PATH_BYTES], pod[sizeof r->pod] = "";
  ssize_t n = readlink(r->folder, pod, sizeof pod - 1);
  if (n > 0 && strcmp(pod, r->pod) != 0) {
    if (r->pod[0]) printf("== another pod: %s\n", pod);
    memcpy(r->pod, pod, sizeof pod);
    memset(r->offset, 0, sizeof r->offset);
  }
  for (int i = 0; i < N_LOGS; i++) {
    char text[8192];
    MO_TRY(pod_path(path, "%s/%s.log", r->folder, names[i]));
    FILE *file = fopen(path, "re");
    if (!file) continue;
    if (fseek(file, r->offset[i], SEEK_SET) == 0) {
      size_t got;
      bool first = r->offset[i] == 0;
      while ((got = fread(text, 1, sizeof text, file)) > 0) {
        if (first) printf("== %s\n", names[i]);
        first = false;
        fwrite(text, 1, got, stdout);
        r->offset[i] += (long)got;
      }
    }
    fclose(file);
  }
  return fflush(stdout) == 0 ? MO_OK : MO_FAIL(MO_FAILED, "cannot print the log (stdout): make room there");
}

/* Whether the run's pod is there. */
static mo_status look(const pod_settings *settings, const char *key, bool *live) {
  pod_ledger *ledger = NULL;
  pod_run run;
  MO_TRY(pod_ledger_open(&ledger, settings, false));
  *live = pod_ledger_get(ledger, key, &run) && run.id[0] && run.port > 0 && run.remote[0] && run.step < STEP_BROUGHT;
  pod_ledger_close(ledger);
  return MO_OK;
}

/* Somebody drives the run: the logs grow by themselves. */
static mo_status follow_driver(const pod_settings *settings, reader *r, bool *driven) {
  *driven = true;
  while (*driven && !pod_stop) {
    MO_TRY(print_news(r));
    pod_nap(1);
    MO_TRY(pod_ledger_busy(settings, driven));
  }
  return print_news(r);
}

/* Nobody does: this process asks the pod, until no step runs there, or somebody comes. It changes nothing. */
static mo_status ask_pod(const pod_settings *settings, const pod_options *options, reader *r, const char *key,
                         bool *driven) {
  pod_ledger *ledger = NULL;
  pod_life *life = mo_alloc(1, sizeof *life);
  if (!life) return MO_FAILED;
  mo_status status = pod_ledger_open(&ledger, settings, false);
  if (status == MO_OK) status = pod_life_open_key(life, settings, options, ledger, key);
  bool running = status == MO_OK;
  if (running) status = pod_path(life->logs, "%s/%s", life->folder, life->run.id);
  if (strcmp(life->run.id, r->pod) != 0) memset(r->offset, 0, sizeof r->offset);
  life->hurried = true;
  while (status == MO_OK && running && !*driven) {
    running = false;
    for (int i = 0; status == MO_OK && i < N_STEPS; i++) {
      bool runs = false;
      status = pod_life_print_log(life, names[i], &r->offset[i], &runs);
      running = running || runs;
    }
    if (fflush(stdout) != 0) status = MO_FAIL(MO_FAILED, "cannot print the log (stdout): make room there");
    if (!options->follow || pod_stop) break;
    if (status == MO_OK && running) pod_nap(pod_life_poll());
    if (status == MO_OK && running) status = pod_ledger_busy(settings, driven);
  }
  if (life->ledger) pod_life_close(life);
  free(life);
  pod_ledger_close(ledger);
  return status;
}

mo_status pod_command_logs(const pod_settings *settings, const pod_options *options) {
  char key[64];
  reader r = {.pod = ""};
  pod_ledger *ledger = NULL;
  bool busy = false, live = false;
  MO_TRY(pod_ledger_open(&ledger, settings, false));
  mo_status status = pod_find_key(ledger, options->names[0], key);
  pod_ledger_close(ledger);
  MO_TRY(status);
  MO_TRY(pod_path(r.folder, "%s/runs/%s/last", settings->state, key));
  MO_TRY(pod_ledger_busy(settings, &busy));
  MO_TRY(print_news(&r));
  if (busy && options->follow) MO_TRY(follow_driver(settings, &r, &busy));
  MO_TRY(look(settings, key, &live));
  while (!busy && live && !pod_stop) {
    MO_TRY(ask_pod(settings, options, &r, key, &busy));
    if (!busy) break;
    MO_TRY(follow_driver(settings, &r, &busy));
    MO_TRY(look(settings, key, &live));
  }
  if (!r.pod[0] && !live) pod_say(settings, "%s: no pod has written anything yet", key);
  return MO_OK;
}
