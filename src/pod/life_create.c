/* The pod of a run: which, and never two. What a create without an answer may have left is looked for by its name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pod/life.h"

/* The key's type and base64 part, without its comment. */
static size_t key_length(const char *key) {
  size_t n = strcspn(key, " \t");
  if (!key[n]) return n;
  n += strspn(key + n, " \t");
  return n + strcspn(key + n, " \t\r\n");
}

/* What a program prints; NULL if it fails or is not there. Caller frees. */
static char *output_of(const pod_settings *settings, char *const *arguments) {
  pod_result result;
  char *output = NULL;
  if (pod_process_run(settings, arguments, NULL, NULL, 20, NULL, &result) != MO_OK) mo_error_clear();
  if (result.status == 0) {
    output = result.output;
    result.output = NULL;
  }
  pod_result_free(&result);
  return output;
}

/* The public part of the identity; NULL: it cannot be told. *locked: it has a passphrase, and the agent does not
 * know it. Caller frees. */
static char *public_key(const pod_settings *settings, bool *locked) {
  char path[POD_PATH_BYTES], *text = NULL;
  size_t bytes;
  char *open = output_of(settings, (char *[]){"ssh-keygen", "-y", "-P", "", "-f", settings->identity, NULL});
  *locked = false;
  if (open) return open;
  if (pod_path(path, "%s.pub", settings->identity) != MO_OK || pod_read_file(&text, &bytes, path, 16384) != MO_OK) {
    mo_error_clear();
    return NULL;
  }
  char *agent = output_of(settings, (char *[]){"ssh-add", "-L", NULL});
  char key[1200];
  snprintf(key, sizeof key, "%.*s", (int)key_length(text), text);
  *locked = !agent || !strstr(agent, key);
  free(agent);
  return text;
}

static mo_status check_ssh_key(const pod_life *life) {
  const pod_settings *settings = life->settings;
  char **keys = NULL;
  int n = 0;
  if (!settings->identity)
    return MO_FAIL(MO_INVALID,
                   "no private key for ssh is here (~/.ssh): make one with ssh-keygen -t ed25519, or name it with "
                   "MOE_POD_IDENTITY, and add its public part at https://console.runpod.io/user/settings");
  MO_TRY(pod_api_ssh_keys(life->http, &keys, &n));
  bool locked;
  char *mine = public_key(settings, &locked);
  bool found = !mine && n > 0; /* without its public part ssh itself will tell */
  size_t length = mine ? key_length(mine) : 0;
  for (int i = 0; i < n; i++) {
    found = found || (mine && key_length(keys[i]) == length && strncmp(keys[i], mine, length) == 0);
    free(keys[i]);
  }
  free(keys);
  mo_status status = MO_OK;
  if (!found)
    status = MO_FAIL(MO_INVALID,
                     "your ssh key is not in the RunPod account, so no pod would let you in (%s.pub): add this line at "
                     "https://console.runpod.io/user/settings, SSH public keys: %.*s",
                     settings->identity, (int)(length < 800 ? length : 0), mine ? mine : "");
  else if (locked)
    status = MO_FAIL(
        MO_INVALID,
        "your ssh key has a passphrase (%s), and nobody could type it: give it to the agent with ssh-add, or name "
        "another one with MOE_POD_IDENTITY",
        settings->identity);
  free(mine);
  return status;
}

/* What a pod makes must have a place here. */
static mo_status check_place(const pod_life *life) {
  char probe[POD_PATH_BYTES];
  struct stat info;
  if (stat(life->run.result, &info) == 0 && S_ISDIR(info.st_mode))
    return MO_FAIL(MO_INVALID, "a folder is where the result is to be (%s, output.path): give another path",
                   life->run.result);
  MO_TRY(pod_make_folder_of(life->run.result));
  MO_TRY(pod_path(probe, "%s.probe", life->run.result));
  MO_TRY(pod_write_durably(probe, "probe\n", 6, 0600));
  unlink(probe);
  return MO_OK;
}

/* --- looking for what may be there --- */

typedef struct {
  char id[64];
  double created, cost;
} finding;

/* Pods, or clusters, of this run's name; *n of at most `most`. */
static mo_status find_by_name(pod_life *life, pod_http *http, finding *found, int most, int *n) {
  *n = 0;
  int total = 0;
  if (life->run.cluster) {
    pod_cluster *clusters = NULL;
    MO_TRY(pod_api_clusters(http, &clusters, &total));
    for (int i = 0; i < total && *n < most; i++) {
      if (strcmp(clusters[i].name, life->run.name) != 0) continue;
      finding *f = &found[(*n)++];
      snprintf(f->id, sizeof f->id, "%s", clusters[i].id);
      f->created = clusters[i].created;
      f->cost = life->run.price;
    }
    free(clusters);
    return MO_OK;
  }
  pod_pod *pods = NULL;
  MO_TRY(pod_api_pods(http, &pods, &total));
  for (int i = 0; i < total && *n < most; i++) {
    if (strcmp(pods[i].name, life->run.name) != 0 || pods[i].cluster[0] || pods[i].state == POD_TERMINATED) continue;
    finding *f = &found[(*n)++];
    snprintf(f->id, sizeof f->id, "%s", pods[i].id);
    f->created = pods[i].created;
    f->cost = pods[i].cost;
  }
  free(pods);
  return MO_OK;
}

static mo_status created(pod_life *life, const char *id) {
  snprintf(life->run.id, sizeof life->run.id, "%s", id);
  life->run.seen = pod_now();
  return pod_life_done(life, STEP_CREATED);
}

/* A create was sent at run.created and its answer is not known: it is looked for until it must have shown. */
static mo_status adopt(pod_life *life) {
  double patience = pod_seconds_of(POD_LOOKUP);
  bool told = false;
  for (;;) {
    finding found[8];
    int n;
    MO_TRY(find_by_name(life, life->http, found, 8, &n));
    if (n > 0) {
      pod_life_say(life, "found %s, whose creation was not answered", found[0].id);
      return created(life, found[0].id);
    }
    if (pod_now() > life->run.created + patience) return MO_OK;
    if (!told) pod_life_say(life, "no answer to the creation of %s: looking for it by its name", life->run.name);
    told = true;
    MO_TRY(pod_life_wait(life, pod_life_poll() < 2 ? pod_life_poll() : 2));
  }
}

mo_status pod_life_end_strays(pod_life *life) {
  finding found[8];
  int n;
  MO_TRY(find_by_name(life, life->calm, found, 8, &n));
  for (int i = 0; i < n; i++) {
    if (strcmp(found[i].id, life->run.id) == 0) continue;
    pod_life_say(life, "a second one of its name is there (%s): ending it", found[i].id);
    MO_TRY(pod_api_end(life->calm, found[i].id, life->run.cluster));
    double hours = found[i].created > 0 ? (pod_now() - found[i].created) / 3600 : 0;
    life->run.spent += hours > 0 ? hours * found[i].cost : 0;
    MO_TRY(pod_life_put(life));
  }
  return MO_OK;
}

/* --- ordering --- */

/* Ends a pod whose watchdog does not come, or goes: while there is one it touches a file. It never gives up. No signal
 * from inside ends a container's first process, but it ends by itself when its children are gone; all processes are
 * only signalled where the first one's environment says that this is that container. Only RunPod's images are known to
 * start by /start.sh. Not for clusters: their members have no watchdog, nor can they be deleted one by one. */
static const char guard[] =
    "bash -c '"
    "pause=${MOE_POD_TICK:-30}; "
    "delete() { printf \"Authorization: Bearer %s\\n\" \"$RUNPOD_API_KEY\" | "
    "curl -sSf -m 60 -o /dev/null -H @- -X DELETE \"$MOE_POD_API/v2/pods/$RUNPOD_POD_ID\"; }; "
    "stop() { if [ -n \"$MOE_POD_INIT\" ]; then kill \"$MOE_POD_INIT\"; "
    "elif grep -qzx \"RUNPOD_POD_ID=$RUNPOD_POD_ID\" /proc/1/environ; then "
    "kill -TERM -1; sleep 5; kill -KILL -1; fi; }; "
    "end() { while :; do for i in 1 2 3; do delete && break; sleep \"$pause\"; done; "
    "sleep \"$pause\"; stop; for i in 1 2 3 4 5 6 7 8 9 10; do sleep \"$pause\"; done; done; }; "
    "{ sleep \"$MOE_POD_UNWATCHED\"; "
    "while [ \"$(find \"${MOE_POD_WATCHED:-$HOME/.moe-outliers-watched}\" -mmin -15)\" ]; do sleep 60; done; end; } & "
    "exec \"${MOE_POD_START:-/start.sh}\"'";

static json_t *environment(const pod_life *life) {
  char unwatched[32];
  double left = life->run.deadline - pod_now();
  double stall = pod_seconds_of(POD_STALL) + pod_seconds_of(POD_REACH);
  snprintf(unwatched, sizeof unwatched, "%.0f", left < stall ? left : stall);
  return json_pack("{s:s, s:s}", "MOE_POD_API", life->settings->api, "MOE_POD_UNWATCHED", unwatched);
}

static mo_status order(pod_life *life, const pod_choice *choice, bool *none, bool *lost, char detail[512]) {
  const char *image = pod_image(&life->need);
  bool guarded = choice->pods == 1 && strncmp(image, "runpod/", 7) == 0;
  char id[64] = "";
  json_t *env = environment(life);
  if (!env) return MO_FAIL(MO_FAILED, "out of memory (order of a pod): close other programs");
  pod_order order = {.name = life->run.name,
                     .gpu = choice->gpu,
                     .image = image,
                     .data_center = life->run.data_center,
                     .gpus = choice->gpus,
                     .disk_gb = life->need.disk_gb,
                     .pods = choice->pods,
                     .community = choice->community,
                     .slurm = life->run.slurm,
                     .env = env,
                     .args = guarded ? guard : NULL,
                     .volume = getenv("MOE_POD_VOLUME")};
  mo_status status = pod_api_create(life->http, &order, id, none, lost, detail);
  json_decref(env);
  if (status == MO_OK && id[0]) status = created(life, id);
  return status;
}

/* One candidate, until the API has answered or nothing of that name can have come of it. */
static mo_status try_candidate(pod_life *life, const pod_choice *choice, const char *data_center, char detail[512]) {
  enum { MOST_TRIES = 4 };
  pod_run *run = &life->run;
  double hours = life->options->max_hours > 0 ? life->options->max_hours : life->need.config.deployment.max_hours;
  if (!(hours > 0)) hours = 12;
  snprintf(run->gpu, sizeof run->gpu, "%s", choice->gpu);
  snprintf(run->data_center, sizeof run->data_center, "%s", data_center);
  run->gpus = choice->gpus, run->pods = choice->pods, run->cluster = choice->pods > 1;
  run->slurm = run->cluster && life->options->slurm;
  run->price = choice->price, run->expected = choice->dollars;
  run->error[0] = '\0';
  double own = pod_life_budget(life);
  life->dear = own > 0 && run->spent + run->expected > own;
  if (life->dear)
    return MO_FAIL(MO_INVALID,
                   "no pod is created: it would cost about $%.2f, and $%.2f of deployment.budget = %.2f are spent "
                   "(%s): raise it, or "
                   "give --budget",
                   run->expected, run->spent, own, run->key);
  life->dear = false;
  for (int tries = 1;; tries++) {
    bool none = false, lost = false;
    run->created = pod_now();
    run->deadline = run->created + 3600 * hours;
    mo_status status = pod_purse_take(life->purse, run, run->created);
    if (status != MO_OK) run->created = run->deadline = 0; /* nothing was ordered */
    life->dear = status == MO_INVALID;
    MO_TRY(status);
    status = order(life, choice, &none, &lost, detail);
    if (status == MO_STOPPED && lost) return status; /* it may exist: the next start looks for it */
    if (status == MO_OK && lost) {
      run->doubtful = true;
      pod_life_note(life);
      status = adopt(life);
      if (status != MO_OK) return status;
      if (!run->id[0] && tries < MOST_TRIES) continue;
      if (!run->id[0])
        status = MO_FAIL(MO_FAILED, "RunPod does not answer when a pod is created (%s): try again later", detail);
    }
    if (run->id[0]) return status;
    run->created = 0;
    if (status == MO_OK) return pod_life_put(life);
    pod_life_note(life);
    return status;
  }
}

static bool refused(const pod_life *life, const pod_choice *choice, const char *data_center) {
  char name[160];
  snprintf(name, sizeof name, "%s|%s", choice->gpu, data_center);
  for (int i = 0; i < life->n_refused; i++)
    if (strcmp(life->refused[i], name) == 0) return true;
  return false;
}

/* A choice in each of its data centres and, if none is demanded, anywhere. `second`: those that have failed before. */
static mo_status try_choice(pod_life *life, const pod_choice *choice, bool second, char detail[512]) {
  const char *wanted = life->need.config.deployment.data_center;
  int n = choice->n_data_centers + !(wanted && *wanted);
  for (int i = 0; i < n && !life->run.id[0]; i++) {
    const char *place = i < choice->n_data_centers ? choice->data_centers[i] : "";
    if (refused(life, choice, place) != second) continue;
    MO_TRY(try_candidate(life, choice, place, detail));
    if (!life->run.id[0])
      pod_life_say(life, "no room for %d x %s%s%s", choice->gpus * choice->pods, choice->name, *place ? " in " : "",
                   place);
  }
  return MO_OK;
}

static mo_status no_room(const pod_life *life, const pod_choice *choices, int n, const char *detail) {
  char names[300] = "";
  for (int i = 0; i < n; i++) {
    size_t length = strlen(names);
    if (strstr(names, choices[i].name)) continue;
    snprintf(names + length, sizeof names - length, "%s%d x %s", length ? ", " : "", choices[i].gpus * choices[i].pods,
             choices[i].name);
  }
  return MO_FAIL(
      MO_FAILED,
      "nothing of what would do is to be had now: %s (%s): %s: try again later, or allow more with --max-price, "
      "--community, deployment.gpu_filter or data_center; `moe-pod gpus` shows what is there",
      names, life->run.key, detail);
}

mo_status pod_life_create(pod_life *life) {
  pod_run *run = &life->run;
  if (run->created > 0) {
    run->doubtful = true;
    MO_TRY(pod_life_put(life));
    MO_TRY(adopt(life));
  }
  if (run->id[0]) return MO_OK;
  run->created = 0;
  MO_TRY(check_place(life));
  MO_TRY(pod_life_check_source(life));
  MO_TRY(check_ssh_key(life));
  pod_choice *choices = NULL;
  int n = 0;
  char detail[512] = "";
  pod_limits limits = {.max_price = life->options->max_price, .community = life->options->community};
  MO_TRY(pod_choose_now(life->http, &life->need, &limits, &choices, &n));
  char dear[1024] = ""; /* why the cheapest of those that exceed the budget does */
  mo_status status = MO_OK;
  run->attempts++;
  for (int i = 0; i < 2 * n && status == MO_OK && !run->id[0]; i++) {
    status = try_choice(life, &choices[i % n], i >= n, detail);
    if (status != MO_INVALID || !life->dear) continue;
    if (!dear[0]) snprintf(dear, sizeof dear, "%s", mo_error_message());
    mo_error_clear();
    status = MO_OK;
  }
  if (status == MO_OK && !run->id[0])
    status = dear[0] ? MO_FAIL(MO_INVALID, "%s", dear) : no_room(life, choices, n, detail);
  free(choices);
  if (status == MO_OK)
    pod_life_say(life, "created %s %s: %d x %s%s%s, $%.2f per hour, about $%.2f in all",
                 run->cluster ? "cluster" : "pod", run->id, run->gpus * run->pods, run->gpu,
                 run->data_center[0] ? " in " : "", run->data_center, run->price, run->expected);
  return status;
}
