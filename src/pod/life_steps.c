/* The long steps on the pod: setup, fetch, run. Each outlives this process there; here its log is copied and its
 * end awaited. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "pod/ledger_json.h"
#include "pod/remote.h"

typedef struct {
  char state[16]; /* none, running, ended, gone */
  int exit;
  long long size; /* of its log there */
  bool stuck;     /* what is new of the log cannot be written here */
} step_state;

static long long size_of(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 ? (long long)info.st_size : 0;
}

static mo_status append_log(const char *path, const char *text) {
  FILE *file = fopen(path, "ae");
  bool good = file && fputs(text, file) >= 0;
  if (file && fclose(file) != 0) good = false;
  return good ? MO_OK : MO_FAIL(MO_FAILED, "cannot write the log (%s): make room there", path);
}

/* Where the step stands; what is new of its log is put behind what is here. `line`: the last whole one of it, "" if
 * there is none. */
static mo_status ask_state(pod_life *life, const char *step, step_state *state, char *line, size_t size) {
  char path[POD_PATH_BYTES], offset[32], *output = NULL;
  MO_TRY(pod_path(path, "%s/%s.log", life->logs, step));
  snprintf(offset, sizeof offset, "%lld", size_of(path));
  MO_TRY(pod_script(life, NULL, &output, (const char *[]){"state.sh", life->run.key, step, offset}, 4));
  const char *mark = pod_mark(output, ""), *text = mark ? strchr(mark, '\n') : NULL;
  mo_status status = MO_OK;
  if (!mark || sscanf(mark, "%15s %d %lld", state->state, &state->exit, &state->size) != 3)
    status = POD_LOST(life, "the pod's answer makes no sense (%s): %.100s", life->run.id, output);
  else if (text && text[1] && append_log(path, text + 1) != MO_OK) {
    state->stuck = true;
    pod_life_warn(life);
  }
  if (status == MO_OK && text) {
    const char *end = strrchr(text, '\n');
    while (end > text && end[-1] == '\n') end--;
    const char *begin = end;
    while (begin > text && begin[-1] != '\n') begin--;
    if (end > begin) snprintf(line, size, "%.*s", (int)(end - begin), begin);
  }
  free(output);
  return status;
}

mo_status pod_life_bring_logs(pod_life *life) {
  static const char *const steps[] = {"setup", "fetch", "run"};
  char line[400], path[POD_PATH_BYTES];
  for (int i = 0; i < 3; i++) {
    step_state state = {.size = 0};
    MO_TRY(pod_path(path, "%s/%s.log", life->logs, steps[i]));
    for (int n = 0; n < 1000; n++) {
      MO_TRY(ask_state(life, steps[i], &state, line, sizeof line));
      if (state.stuck || size_of(path) >= state.size) break;
    }
  }
  return MO_OK;
}

mo_status pod_life_print_log(pod_life *life, const char *step, long *offset, bool *running) {
  for (;;) {
    char from[32], name[16], *output = NULL;
    long long size = 0;
    snprintf(from, sizeof from, "%ld", *offset);
    MO_TRY(pod_script(life, NULL, &output, (const char *[]){"state.sh", life->run.key, step, from, "look"}, 5));
    const char *mark = pod_mark(output, ""), *text = mark ? strchr(mark, '\n') : NULL;
    bool good = mark && sscanf(mark, "%15s %*d %lld", name, &size) == 2;
    size_t n = good && text ? strlen(text + 1) : 0;
    if (n > 0) {
      if (*offset == 0) printf("== %s\n", step);
      fwrite(text + 1, 1, n, stdout);
      *offset += (long)n;
    }
    if (good) *running = strcmp(name, "running") == 0;
    mo_status status =
        good ? MO_OK
             : MO_FAIL(MO_FAILED, "the pod's answer makes no sense (%s): %.100s: try again", life->run.id, output);
    free(output);
    if (status != MO_OK || n == 0 || *offset >= size || pod_stop) return status;
  }
}

/* The last line that the program's or a script's error has, for the message. */
static void find_error(const pod_life *life, const char *step, char *error, size_t size) {
  char path[POD_PATH_BYTES], *text = NULL;
  size_t bytes;
  error[0] = '\0';
  if (pod_path(path, "%s/%s.log", life->logs, step) != MO_OK || pod_read_file(&text, &bytes, path, 16384) != MO_OK) {
    mo_error_clear();
    return;
  }
  const char *found = NULL, *last = NULL, *full = strstr(text, "No space left on device");
  char *rest;
  for (char *line = strtok_r(text, "\r\n", &rest); line; line = strtok_r(NULL, "\r\n", &rest)) {
    if (strstr(line, "error: ") || strstr(line, "Error: ") || strstr(line, "rror:")) found = line;
    if (line[strspn(line, " \t-")]) last = line;
  }
  snprintf(error, size, "%s%s", full ? "the pod's disk is full, raise deployment.container_disk_gb: " : "",
           found  ? found
           : last ? last
                  : "its log is empty");
  pod_clean(error);
  free(text);
}

/* Lines of progress, not more often than every few seconds. */
static void tell(pod_life *life, const char *step, const char *line) {
  double now = pod_now();
  if (!line[0] || now < life->told + 5) return;
  life->told = now;
  pod_life_say(life, "%s: %s", step, line);
}

/* Follows a step to its end. *exit: its status; -1: it was killed, or the container started anew. */
static mo_status follow(pod_life *life, const char *step, bool journal, int *exit) {
  char path[POD_PATH_BYTES];
  MO_TRY(pod_path(path, "%s/%s.log", life->logs, step));
  for (;;) {
    step_state state = {.exit = -1};
    char line[400] = "";
    MO_TRY(ask_state(life, step, &state, line, sizeof line));
    tell(life, step, line);
    bool more = !state.stuck && size_of(path) < state.size;
    *exit = state.exit;
    if (strcmp(state.state, "running") != 0 && !more) return MO_OK;
    MO_TRY(pod_life_watch(life));
    if (more) continue;
    if (journal) {
      mo_status status = pod_life_bring_journal(life);
      if (status != MO_OK && status != MO_STOPPED && life->local)
        pod_life_warn(life);
      else if (status != MO_OK)
        return status;
    }
    MO_TRY(pod_life_wait(life, pod_life_poll()));
  }
}

static mo_status start(pod_life *life, const char *step, const char *const *arguments, int n) {
  const char *list[8] = {"start.sh", life->run.key, step};
  char *output = NULL;
  for (int i = 0; i < n && i < 5; i++) list[3 + i] = arguments[i];
  mo_status status = pod_script(life, NULL, &output, list, 3 + n);
  free(output);
  return status;
}

/* A step whose failure no other pod would mend. One that was killed is begun again, twice. */
static mo_status do_step(pod_life *life, const char *step, const char *what, const char *const *arguments, int n) {
  enum { MOST_STARTS = 3 };
  char error[400];
  int exit = -1;
  for (int starts = 0; exit < 0 && starts < MOST_STARTS; starts++) {
    MO_TRY(start(life, step, arguments, n));
    MO_TRY(follow(life, step, false, &exit));
  }
  if (exit == 0) return MO_OK;
  if (exit < 0)
    return POD_LOST(life, "%s was killed %d times on the pod (%s): see %s/%s.log", what, MOST_STARTS, life->run.id,
                    life->logs, step);
  find_error(life, step, error, sizeof error);
  return MO_FAIL(MO_FAILED, "%s failed on the pod with status %d (%s): %s; its log is %s/%s.log", what, exit,
                 life->run.key, error, life->logs, step);
}

mo_status pod_life_setup(pod_life *life) {
  MO_TRY(pod_life_hash_source(life));
  pod_life_say(life, "setting up on %s", life->run.id);
  return do_step(life, "setup", "the build", (const char *[]){life->tree, life->commit}, 2);
}

/* The Hub's token, only over ssh's stdin. */
static mo_status send_token(pod_life *life) {
  char *output = NULL;
  if (!life->settings->hf_token) return MO_OK;
  mo_status status =
      pod_script(life, life->settings->hf_token, &output, (const char *[]){"token.sh", life->run.key}, 2);
  free(output);
  return status;
}

static bool starts_with(const char *text, const char *start) { return strncmp(text, start, strlen(start)) == 0; }

static bool from_network(const char *path) {
  return starts_with(path, "hf://") || starts_with(path, "http://") || starts_with(path, "https://");
}

/* Whether model and tokens of the run's config are on the pod or need not be; path: the model's there. */
static mo_status look_for(pod_life *life, bool *model, bool *tokens, char path[POD_PATH_BYTES]) {
  mo_config there;
  char *output = NULL;
  MO_TRY(mo_config_parse(&there, life->config_text, life->need.path, NULL, NULL, 0, true));
  mo_status status =
      pod_script(life, NULL, &output, (const char *[]){"find.sh", there.model.path, there.data.tokens}, 3);
  if (status == MO_OK) status = pod_path(path, "%s", there.model.path);
  if (status == MO_OK) {
    *model = strstr(output, "@moe-pod found 0") || starts_with(there.model.path, "synthetic:") ||
             from_network(there.model.path);
    *tokens = strstr(output, "@moe-pod found 1") || starts_with(there.data.tokens, "synthetic:");
  }
  free(output);
  mo_config_free(&there);
  return status;
}

mo_status pod_life_fetch(pod_life *life) {
  bool model = false, tokens = false;
  char path[POD_PATH_BYTES];
  MO_TRY(look_for(life, &model, &tokens, path));
  if (model && tokens) return MO_OK;
  MO_TRY(send_token(life));
  pod_life_say(life, "fetching %s%s%s there", model ? "" : "the model", model || tokens ? "" : " and ",
               tokens ? "" : "the tokens");
  return do_step(life, "fetch", "fetching the model and tokens",
                 (const char *[]){model ? "no" : "yes", tokens ? "no" : "yes", path}, 3);
}

/* Exit status 75 is a run that was told to stop and saved: it is continued, here. So is one that was killed. */
mo_status pod_life_compute(pod_life *life) {
  enum { MOST_STARTS = 8 };
  const char *how = life->run.pods == 1 ? "alone" : life->run.slurm ? "slurm" : "hosts";
  char ranks[16], each[16], error[400];
  snprintf(ranks, sizeof ranks, "%d", life->run.gpus * life->run.pods);
  snprintf(each, sizeof each, "%d", life->run.gpus);
  int exit = -1;
  for (int starts = 0; starts < MOST_STARTS; starts++) {
    if (from_network(life->need.config.model.path)) MO_TRY(send_token(life));
    MO_TRY(start(life, "run", (const char *[]){ranks, life->output, how, each}, 4));
    pod_life_say(life, "%s on %s", starts ? "continued" : "running", life->run.id);
    MO_TRY(follow(life, "run", true, &exit));
    if (exit == 0) return MO_OK;
    if (exit != 75 && exit != -1) break;
    pod_life_say(life, exit == 75 ? "the run was told to stop, and has saved" : "the run was killed");
  }
  if (exit == 75 || exit == -1)
    return POD_LOST(life, "the run was stopped %d times on the pod (%s): see %s/run.log", MOST_STARTS, life->run.id,
                    life->logs);
  find_error(life, "run", error, sizeof error);
  return MO_FAIL(MO_FAILED, "the run failed on the pod with status %d%s (%s): %s; its log is %s/run.log", exit,
                 exit == 137 ? ", killed, maybe for memory" : "", life->run.key, error, life->logs);
}
