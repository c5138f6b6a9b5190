/* The end of pods, and what they have cost. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "pod/life.h"

static mo_status mark_path(char path[POD_PATH_BYTES], const pod_settings *settings, const char *id) {
  return pod_path(path, "%s/ended/%s", settings->state, id);
}

mo_status pod_end_by_hand(const pod_settings *settings, pod_http *http, const char *id, bool cluster) {
  char path[POD_PATH_BYTES];
  if (!strchr(id, '/')) {
    mo_status status = mark_path(path, settings, id);
    if (status == MO_OK) status = pod_make_folder_of(path);
    if (status == MO_OK) status = pod_write_durably(path, "", 0, 0600);
    if (status != MO_OK)
      pod_say(settings, "a moe-pod that drives the run of %s will take it for lost: %s", id, mo_error_message());
    mo_error_clear();
  }
  MO_TRY(pod_api_end(http, id, cluster));
  pod_note_ended(id);
  return MO_OK;
}

bool pod_ended_by_hand(const pod_settings *settings, const char *id) {
  char path[POD_PATH_BYTES];
  if (mark_path(path, settings, id) == MO_OK) return access(path, F_OK) == 0;
  mo_error_clear();
  return false;
}

mo_status pod_life_settle(pod_life *life, pod_step step) {
  pod_run *run = &life->run;
  if (run->id[0] && run->created > 0) run->spent += run->price * fmax(0, run->seen - run->created) / 3600;
  run->id[0] = run->host[0] = run->user[0] = run->remote[0] = run->sha256[0] = '\0';
  run->port = 0;
  run->created = run->deadline = run->seen = run->expected = 0;
  run->cluster = run->slurm = false;
  return pod_life_done(life, step);
}

/* The end is verified; nothing but its record can fail. */
static mo_status record_end(pod_life *life, pod_step step, const char *id) {
  mo_status status = pod_life_settle(life, step);
  if (status == MO_OK) return MO_OK;
  char error[1024];
  snprintf(error, sizeof error, "%s", mo_error_message());
  mo_error_clear();
  return MO_FAIL(status, "%s has ended, but that cannot be recorded: %s", id, error);
}

/* Looks for pods of a create whose answer was lost, and forgets it. */
static mo_status end_doubt(pod_life *life) {
  if (!life->run.doubtful) return MO_OK;
  MO_TRY(pod_life_end_strays(life));
  life->run.doubtful = false;
  return MO_OK;
}

mo_status pod_life_end(pod_life *life, pod_step step) {
  pod_run *run = &life->run;
  char id[64];
  snprintf(id, sizeof id, "%s", run->id);
  if (id[0]) {
    bool found = true;
    pod_pod pod;
    pod_cluster cluster;
    mo_status status =
        run->cluster ? pod_api_cluster(life->calm, id, &cluster, &found) : pod_api_pod(life->calm, id, &pod, &found);
    if (status == MO_OK && found) {
      run->seen = run->deadline =
          pod_now(); /* its time is over, should this process be killed before the end is recorded */
      if (pod_life_put(life) != MO_OK) pod_life_say(life, "%s", mo_error_message());
      mo_error_clear(); /* what costs money ends whether or not that can be written */
    }
    if (status == MO_OK) status = pod_api_end(life->calm, id, run->cluster);
    /* One that was gone has cost at most until its watchdog's time. */
    double latest = run->deadline + pod_seconds_of(POD_MARGIN);
    if (status == MO_OK) run->seen = found || pod_now() < latest ? pod_now() : fmax(run->seen, latest);
    if (status != MO_OK) {
      pod_say_running(life->settings, id, run->name, run->price);
      return status;
    }
    pod_note_ended(id);
    status = record_end(life, step, id);
    pod_life_say(life, "%s %s; $%.4f so far", id, found ? "ended" : "was gone", run->spent);
    MO_TRY(status);
  } else if (run->created > 0) { /* a create without an answer: should it show later, the next start finds it */
    MO_TRY(pod_life_end_strays(life));
    if (pod_now() > run->created + pod_seconds_of(POD_LOOKUP)) return pod_life_settle(life, step);
    return pod_life_put(life);
  }
  bool doubt = run->doubtful;
  MO_TRY(end_doubt(life));
  return id[0] && !doubt ? MO_OK : pod_life_done(life, step);
}
