/* From created to reached: the pod runs, its ssh answers, the watchdog is there. And looking after it from then on. */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe_outliers/clock.h"
#include "pod/remote.h"

/* --- the API's view --- */

static const char *state_text(pod_state state) {
  return state == POD_EXITED  ? "its container has ended (EXITED)"
         : state == POD_ERROR ? "its container cannot be started (ERROR)"
                              : "it was ended (TERMINATED)";
}

/* The pod, or rank 0 of the cluster. */
static mo_status ask(pod_life *life, pod_pod *pod, bool *found) {
  pod_run *run = &life->run;
  memset(pod, 0, sizeof *pod);
  if (!run->cluster) return pod_api_pod(life->http, run->id, pod, found);
  pod_cluster cluster;
  MO_TRY(pod_api_cluster(life->http, run->id, &cluster, found));
  if (!*found) return MO_OK;
  pod_pod *members = NULL;
  int n = 0;
  MO_TRY(pod_api_cluster_pods(life->http, run->id, &members, &n));
  pod->state = POD_PROVISIONING;
  double cost = 0;
  for (int i = 0; i < n; i++) {
    cost += members[i].cost;
    if (members[i].rank == 0) *pod = members[i];
  }
  for (int i = 0; i < n; i++) /* one bad member is the end of all */
    if (members[i].state >= POD_EXITED && members[i].state <= POD_TERMINATED) pod->state = members[i].state;
  pod->cost = n == run->pods ? cost : 0;
  free(members);
  return MO_OK;
}

/* What is charged may be more than the catalog said. */
static mo_status check_price(pod_life *life, double cost) {
  const pod_run *run = &life->run;
  double each = life->options->max_price, all = life->need.config.deployment.max_price;
  double most = each > 0 ? each * run->gpus * run->pods : all;
  if (!life->purse || !(most > 0) || cost <= 1.001 * most) return MO_OK;
  life->spent = true;
  return MO_FAIL(MO_FAILED, "it costs $%.2f per hour, more than the $%.2f that %s allows (%s): allow more", cost, most,
                 each > 0 ? "--max-price" : "deployment.max_price", run->id);
}

mo_status pod_life_look(pod_life *life) {
  pod_run *run = &life->run;
  pod_pod pod;
  bool found = false;
  mo_status status = ask(life, &pod, &found);
  life->offline = status != MO_OK && status != MO_STOPPED;
  MO_TRY(status);
  life->looked = pod_now();
  if (!found)
    return POD_LOST(life, "the %s is gone (%s): RunPod took it away, its own watchdog did, or somebody ended it",
                    run->cluster ? "cluster" : "pod", run->id);
  run->seen = life->looked;
  bool changed = pod.cost > 0 && pod.cost != run->price;
  if (changed) run->price = pod.cost;
  if (pod.state == POD_EXITED || pod.state == POD_ERROR || pod.state == POD_TERMINATED)
    return POD_LOST(life, "%s (%s): see its log in %s", state_text(pod.state), run->id, life->logs);
  if (pod.port > 0 && (pod.port != run->port || strcmp(pod.host, run->host) != 0)) {
    snprintf(run->host, sizeof run->host, "%s", pod.host);
    snprintf(run->user, sizeof run->user, "%s", pod.user[0] ? pod.user : "root");
    run->port = pod.port;
    changed = true;
  }
  if (pod.state != POD_RUNNING) run->port = 0;
  if (changed || life->looked > life->noted + 30) pod_life_note(life);
  return check_price(life, pod.cost);
}

static mo_status check_limits(const pod_life *life, double now) {
  const pod_run *run = &life->run;
  bool saving = run->step < STEP_FINISHED; /* afterwards all time that is left is for the result */
  if (life->purse) MO_TRY(pod_purse_check(life->purse, now, saving)); /* `fetch` has none */
  double own = pod_life_budget(life);
  double kept = pod_seconds_of(POD_MARGIN);
  if (saving && run->price > 0) kept = fmax(kept, pod_saving_seconds(3600 * own / run->price));
  if (own > 0 && pod_run_cost(run, now + kept) > own)
    return MO_FAIL(MO_FAILED,
                   "the budget is spent: $%.2f (%s, deployment.budget): raise it; what is saved is continued", own,
                   run->key);
  double end = run->deadline - (saving ? pod_saving_seconds(run->deadline - run->created) : 0);
  if (run->deadline > 0 && now > end)
    return MO_FAIL(MO_FAILED,
                   "the pod's time is over (%s, --max-hours): give it more; the same command continues what is saved",
                   run->key);
  return MO_OK;
}

mo_status pod_life_check_limits(pod_life *life) {
  mo_status status = check_limits(life, pod_now());
  if (status != MO_OK) life->spent = true;
  return status;
}

double pod_life_left(const pod_life *life) {
  const pod_run *run = &life->run;
  double now = pod_now(), left = run->deadline > 0 ? run->deadline - now : 1e9;
  double own = pod_life_budget(life);
  if (life->purse) left = fmin(left, pod_purse_left(life->purse, now));
  if (own > 0 && run->price > 0)
    left = fmin(left, 3600 * (own - pod_run_cost(run, now)) / run->price - pod_seconds_of(POD_MARGIN));
  return left;
}

/* A second pod of this name, of an order whose answer was lost, may be listed late. */
static void look_for_strays(pod_life *life, double now) {
  double every = pod_seconds_of(POD_LOOKUP);
  if (!life->run.doubtful || now < fmax(life->run.created, life->strayed) + every) return;
  life->strayed = now;
  if (pod_life_end_strays(life) != MO_OK) mo_error_clear(); /* the next look, or the run's end, finds it */
  life->local = false;
}

mo_status pod_life_watch(pod_life *life) {
  double now = pod_now();
  MO_TRY(pod_life_check_limits(life));
  look_for_strays(life, now);
  if (now < life->looked + pod_life_poll()) return MO_OK;
  mo_status status = pod_life_look(life);
  if (status == MO_OK || !life->offline) return status;
  pod_life_say(life, "RunPod's API does not answer, the pod goes on: %s", mo_error_message());
  mo_error_clear();
  life->looked = pod_now();
  return MO_OK;
}

static mo_status wait_until_running(pod_life *life) {
  double patience = pod_seconds_of(POD_REACH), began = mo_seconds(); /* sleep does not count */
  for (;;) {
    MO_TRY(pod_life_look(life));
    MO_TRY(pod_life_watch(life));
    if (life->run.port > 0) return MO_OK;
    if (mo_seconds() > began + patience)
      return POD_LOST(life, "no address for ssh after %.0f s (%s): the machine is bad, or the image starts no sshd",
                      patience, life->run.id);
    MO_TRY(pod_life_wait(life, pod_life_poll()));
  }
}

/* --- the first script --- */

typedef struct {
  char *text;
  size_t n, room;
  bool failed;
} buffer;

static void append(buffer *b, const char *text) {
  size_t length = strlen(text);
  if (!b->failed && b->n + length + 1 > b->room) {
    size_t room = 2 * (b->n + length + 1);
    char *larger = mo_realloc(b->text, room, 1);
    if (larger) b->text = larger, b->room = room;
    b->failed = !larger;
  }
  if (b->failed) return;
  memcpy(b->text + b->n, text, length + 1);
  b->n += length;
}

static int is_script(const struct dirent *entry) {
  size_t n = strlen(entry->d_name);
  return n > 3 && strcmp(entry->d_name + n - 3, ".sh") == 0;
}

/* The scripts of src/pod/remote as here-documents. */
static mo_status append_scripts(buffer *b, const pod_settings *settings) {
  char folder[POD_PATH_BYTES], path[POD_PATH_BYTES], line[700];
  struct dirent **entries = NULL;
  MO_TRY(pod_path(folder, "%s/src/pod/remote", settings->source));
  int n = scandir(folder, &entries, is_script, alphasort);
  mo_status status =
      n > 0
          ? MO_OK
          : MO_FAIL(MO_INVALID, "the repository is not here (%s): start moe-pod in it, or name it with MOE_POD_SOURCE",
                    settings->source);
  for (int i = 0; i < n; i++) {
    char *text = NULL;
    size_t bytes;
    if (status == MO_OK) status = pod_path(path, "%s/%s", folder, entries[i]->d_name);
    if (status == MO_OK) status = pod_read_file(&text, &bytes, path, 1 << 20);
    if (status == MO_OK) {
      snprintf(line, sizeof line, "cat >\"$dir/remote/.%s\" <<'MOE_POD_END'\n", entries[i]->d_name);
      append(b, line);
      append(b, text);
      append(b, "MOE_POD_END\n");
      snprintf(line, sizeof line, "mv \"$dir/remote/.%s\" \"$dir/remote/%s\"\n", entries[i]->d_name,
               entries[i]->d_name);
      append(b, line);
    }
    free(text);
    free(entries[i]);
  }
  free(entries);
  return status;
}

/* Each run has its own folder, by its unique name: a network volume may be that of several pods at a time. Clocks
 * differ, so the watchdog is told how much time is left, not until when. */
static mo_status first_script(pod_life *life, char **text) {
  static const char begin[] =
      "set -eu\n"
      "dir=${MOE_POD_REMOTE_DIR:-}\n"
      "if [ -z \"$dir\" ] && [ -w /workspace ]; then dir=/workspace/moe-outliers; fi\n"
      "dir=${dir:-$HOME/moe-outliers}/pods/%s\n"
      "mkdir -p \"$dir/remote\"\n"
      "echo \"deadline=$(($(date +%%s) + %.0f))\" >\"$dir/watchdog.conf.new\"\n"
      "cat >>\"$dir/watchdog.conf.new\" <<'MOE_POD_END'\ngrace=%.0f\nstall=%.0f\napi=%s\ncluster=%s\nMOE_POD_END\n";
  buffer b = {0};
  char settings[1600];
  double left = life->run.deadline + pod_seconds_of(POD_MARGIN) - pod_now();
  snprintf(settings, sizeof settings, begin, life->run.name, left, pod_seconds_of(POD_GRACE), pod_seconds_of(POD_STALL),
           life->settings->api, life->run.cluster ? life->run.id : "");
  append(&b, settings);
  mo_status status = append_scripts(&b, life->settings);
  append(&b, "mv \"$dir/watchdog.conf.new\" \"$dir/watchdog.conf\"\n");
  snprintf(settings, sizeof settings, "exec bash \"$dir/remote/begin.sh\" %s %s </dev/null\n", life->run.key,
           life->run.id);
  append(&b, settings);
  if (status == MO_OK && b.failed) status = MO_FAILED;
  if (status == MO_OK)
    *text = b.text;
  else
    free(b.text);
  return status;
}

/* What begin.sh says: where, and whether this container knows the run. */
static mo_status take_answer(pod_life *life, const char *output) {
  char folder[256], known[16];
  const char *answer = pod_mark(output, "dir");
  if (!answer || sscanf(answer, "%255s %15s", folder, known) != 2 || !pod_is_plain(folder)) {
    const char *error = pod_mark(output, "error");
    return POD_LOST(life, "the pod cannot be used (%s): %.*s", life->run.id, (int)strcspn(error ? error : output, "\n"),
                    error ? error : output);
  }
  bool fresh = strcmp(known, "fresh") == 0;
  if (fresh && life->run.step > STEP_REACHED) {
    pod_life_say(life, "the pod's container was started anew (%s): beginning again there", life->run.id);
    life->run.step = STEP_REACHED;
  }
  snprintf(life->run.remote, sizeof life->run.remote, "%s", folder);
  return pod_life_done(life, life->run.step > STEP_REACHED ? life->run.step : STEP_REACHED);
}

static mo_status begin(pod_life *life) {
  double patience = pod_seconds_of(POD_REACH), began = mo_seconds(); /* sleep does not count */
  for (;;) {
    pod_result result;
    char *script = NULL;
    MO_TRY(first_script(life, &script)); /* each time anew, as it has the time that is left */
    mo_status status = pod_ssh_once(life, NULL, "bash -s", script, 300, &result);
    free(script);
    if (status == MO_OK && result.status == 255 && strstr(result.output, "Permission denied"))
      began -= patience / 4; /* sshd may come up before the keys are in place, but not for long */
    bool answered = status == MO_OK && result.status != 255 && !result.timed_out && !pod_stop;
    if (answered) status = take_answer(life, result.output);
    char line[200];
    snprintf(line, sizeof line, "%.*s", (int)strcspn(result.output ? result.output : "", "\n"),
             result.output ? result.output : "");
    pod_result_free(&result);
    if (status != MO_OK || answered) return status;
    if (mo_seconds() > began + patience && strstr(line, "Permission denied"))
      return MO_FAIL(MO_FAILED, "the pod refuses your ssh key (%s): %s: is %s the key that is in the RunPod account?",
                     life->run.id, line, life->settings->identity);
    if (mo_seconds() > began + patience)
      return POD_LOST(life, "ssh does not answer after %.0f s (%s, %s:%d): %s", patience, life->run.id, life->run.host,
                      life->run.port, line);
    MO_TRY(pod_life_wait(life, pod_life_poll() < 3 ? pod_life_poll() : 3));
    MO_TRY(wait_until_running(life));
  }
}

mo_status pod_life_find_logs(pod_life *life) {
  char last[POD_PATH_BYTES], link[POD_PATH_BYTES];
  MO_TRY(pod_path(life->logs, "%s/%s", life->folder, life->run.id));
  MO_TRY(pod_life_local(life, pod_make_folders(life->logs)));
  MO_TRY(pod_path(last, "%s/last", life->folder));
  MO_TRY(pod_path(link, "%s/last.new", life->folder));
  unlink(link);
  if (symlink(life->run.id, link) == 0 && rename(link, last) == 0) return MO_OK;
  return pod_life_local(
      life, MO_FAIL(MO_FAILED, "cannot make a link (%s): %s: choose another folder with MOE_POD_STATE", last,
                    strerror(errno)));
}

mo_status pod_life_reach(pod_life *life) {
  MO_TRY(pod_life_find_logs(life));
  MO_TRY(wait_until_running(life));
  return begin(life);
}
