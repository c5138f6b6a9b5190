/* What the pod gets: the source as git tracks it, the run's config, and inputs that are files here. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pod/remote.h"

/* --- the source --- */

typedef struct {
  char *text;   /* the names, each ended by 0 */
  char **names; /* sorted */
  int n;
} file_list;

static void free_list(file_list *list) {
  free(list->names);
  free(list->text);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Runs git on the source; its output goes to `file`, what it warns of does not. */
static mo_status git(const pod_life *life, const char *file, const char *const *words, int n) {
  static const char script[] = "file=$1; shift; exec git \"$@\" >\"$file\"";
  char *arguments[20] = {
      "sh", "-c", (char *)script, "sh", (char *)file, "-c", "safe.directory=*", "-C", life->settings->source};
  pod_result result;
  for (int i = 0; i < n; i++) arguments[9 + i] = (char *)words[i];
  MO_TRY(pod_process_run(life->settings, arguments, NULL, NULL, 120, &pod_stop, &result));
  mo_status status = MO_OK;
  if (pod_stop)
    status = MO_FAIL(MO_STOPPED, "stopped (%s)", life->run.key);
  else if (result.status != 0)
    status = MO_FAIL(MO_INVALID, "git cannot list the source (%s): %.200s: start moe-pod in a clone of the repository",
                     life->settings->source, result.output);
  pod_result_free(&result);
  return status;
}

/* The tracked files that are there; of one that was deleted nothing is sent. */
static mo_status list_source(const pod_life *life, file_list *list) {
  static const char *const words[] = {"ls-files", "-z"};
  char path[POD_PATH_BYTES];
  size_t bytes;
  struct stat info;
  *list = (file_list){0};
  MO_TRY(pod_path(path, "%s/files", life->folder));
  MO_TRY(git(life, path, words, 2));
  MO_TRY(pod_read_file(&list->text, &bytes, path, 64 << 20));
  for (size_t i = 0; i < bytes; i++) list->n += !list->text[i];
  list->names = mo_alloc((size_t)list->n + 1, sizeof *list->names);
  if (!list->names) return MO_FAILED;
  list->n = 0;
  for (char *line = list->text; line < list->text + bytes; line += strlen(line) + 1) {
    if (strchr(line, '\n'))
      return MO_FAIL(MO_INVALID, "the name of a file has a line's end (%s, \"%.100s\"): rename it",
                     life->settings->source, line);
    MO_TRY(pod_path(path, "%s/%s", life->settings->source, line));
    if (lstat(path, &info) == 0 && (S_ISREG(info.st_mode) || S_ISLNK(info.st_mode))) list->names[list->n++] = line;
  }
  qsort(list->names, (size_t)list->n, sizeof *list->names, by_name);
  return MO_OK;
}

/* As posix_spawnp finds the program that is the first of these words. */
static mo_status check_program(const char *words, const char *variable) {
  char program[POD_PATH_BYTES], path[POD_PATH_BYTES];
  const char *folders = getenv("PATH");
  MO_TRY(pod_path(program, "%.*s", (int)strcspn(words, " "), words));
  bool found = strchr(program, '/') && access(program, X_OK) == 0;
  while (!found && folders && *folders && !strchr(program, '/')) {
    size_t n = strcspn(folders, ":");
    MO_TRY(pod_path(path, "%.*s/%s", (int)n, folders, program));
    found = access(path, X_OK) == 0;
    folders += n + (folders[n] == ':');
  }
  if (found) return MO_OK;
  return MO_FAIL(MO_INVALID, "%s is not here: install it%s%s", program, *variable ? ", or name another one with " : "",
                 variable);
}

mo_status pod_life_check_source(const pod_life *life) {
  static const char *const needed[] = {"CMakeLists.txt", "scripts/setup"};
  file_list list;
  MO_TRY(check_program("git", ""));
  MO_TRY(check_program(life->settings->ssh, "MOE_POD_SSH"));
  MO_TRY(check_program(life->settings->rsync, "MOE_POD_RSYNC"));
  mo_status status = list_source(life, &list);
  for (int i = 0; i < 2 && status == MO_OK; i++)
    if (!bsearch(&needed[i], list.names, (size_t)list.n, sizeof *list.names, by_name))
      status =
          MO_FAIL(MO_INVALID,
                  "git tracks no %s there, so it could not be built on a pod (%s): start moe-pod in a clone of the "
                  "repository, or name it with MOE_POD_SOURCE",
                  needed[i], life->settings->source);
  free_list(&list);
  return status;
}

static mo_status hash_list(pod_life *life, const file_list *list) {
  char path[POD_PATH_BYTES], hex[POD_SHA256_BYTES];
  pod_sha256 sum;
  struct stat info;
  pod_sha256_begin(&sum);
  for (int i = 0; i < list->n; i++) {
    MO_TRY(pod_path(path, "%s/%s", life->settings->source, list->names[i]));
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode)) continue;
    MO_TRY(pod_sha256_file(hex, path));
    pod_sha256_add(&sum, list->names[i], strlen(list->names[i]) + 1);
    pod_sha256_add(&sum, info.st_mode & S_IXUSR ? "x" : "-", 1);
    pod_sha256_add(&sum, hex, sizeof hex);
  }
  pod_sha256_end(&sum, life->tree);
  return MO_OK;
}

mo_status pod_life_hash_source(pod_life *life) {
  static const char *const words[] = {"describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"};
  char path[POD_PATH_BYTES], *text = NULL;
  size_t bytes;
  file_list list;
  mo_status status = list_source(life, &list);
  if (status == MO_OK) status = hash_list(life, &list);
  free_list(&list);
  MO_TRY(status);
  MO_TRY(pod_path(path, "%s/commit", life->folder));
  if (git(life, path, words, 5) == MO_OK && pod_read_file(&text, &bytes, path, 64) == MO_OK)
    snprintf(life->commit, sizeof life->commit, "%.*s", (int)strcspn(text, "\n"), text);
  free(text);
  if (pod_stop) return MO_STOPPED;
  mo_error_clear(); /* a repository without a commit has none */
  if (!pod_is_plain(life->commit)) snprintf(life->commit, sizeof life->commit, "unknown");
  return MO_OK;
}

/* Several runs of one process send the same list; each has its own copy. */
static mo_status send_source(pod_life *life) {
  char from[POD_PATH_BYTES], to[POD_PATH_BYTES], names[POD_PATH_BYTES], option[POD_PATH_BYTES + 16];
  file_list list;
  size_t bytes = 1;
  MO_TRY(pod_path(names, "%s/sent", life->folder));
  mo_status status = list_source(life, &list);
  for (int i = 0; status == MO_OK && i < list.n; i++) bytes += strlen(list.names[i]) + 1;
  char *text = status == MO_OK ? mo_alloc(bytes, 1) : NULL, *end = text;
  for (int i = 0; text && i < list.n; i++) end += sprintf(end, "%s\n", list.names[i]);
  if (status == MO_OK) status = text ? pod_write_durably(names, text, strlen(text), 0600) : MO_FAILED;
  free(text);
  free_list(&list);
  MO_TRY(status);
  MO_TRY(pod_path(from, "%s/", life->settings->source));
  MO_TRY(pod_path(to, "POD:%s/source/", life->run.remote));
  snprintf(option, sizeof option, "--files-from=%s", names);
  MO_TRY(pod_rsync(life, (const char *[]){"-lptz", option, from, to}, 4, false));
  MO_TRY(pod_path(to, "POD:%s/sent", life->run.remote));
  return pod_rsync(life, (const char *[]){"-pt", names, to}, 3, false);
}

/* --- where things are on the pod --- */

static bool starts_with(const char *text, const char *start) { return strncmp(text, start, strlen(start)) == 0; }

static bool needs_no_file(const char *path) {
  return starts_with(path, "synthetic:") || starts_with(path, "hf://") || starts_with(path, "http://") ||
         starts_with(path, "https://");
}

/* Relative to the working directory, there as here. */
static bool stays(const char *path) {
  return path[0] != '/' && pod_is_plain(path) && !strstr(path, "..") && !starts_with(path, "./");
}

static bool is_here(const char *path) {
  char config[POD_PATH_BYTES];
  struct stat info;
  if (stat(path, &info) != 0) return false;
  if (!S_ISDIR(info.st_mode)) return true;
  int length = snprintf(config, sizeof config, "%s/config.json", path);
  return length < (int)sizeof config && access(config, R_OK) == 0;
}

/* A checkpoint that is here is sent if it is small, or cannot come from the Hub. */
static bool to_be_sent(const pod_life *life, const char *path) {
  static const int64_t small = 2000000000;
  if (needs_no_file(path) || !path[0] || !is_here(path)) return false;
  bool model = path == life->need.config.model.path;
  return !model || life->need.weight_bytes <= small || !strchr(life->need.config.model.name, '/');
}

/* The place on the pod of a path that is to be sent but cannot stay: DIR/inputs/HASH-NAME. */
static mo_status moved(const pod_life *life, const char *path, char place[POD_PATH_BYTES]) {
  char hex[POD_SHA256_BYTES], name[64];
  pod_sha256 sum;
  pod_sha256_begin(&sum);
  pod_sha256_add(&sum, path, strlen(path));
  pod_sha256_end(&sum, hex);
  const char *slash = strrchr(path, '/');
  snprintf(name, sizeof name, "%s", slash && slash[1] ? slash + 1 : "input");
  return pod_path(place, "%s/inputs/%.8s-%s", life->run.remote, hex, pod_is_plain(name) ? name : "input");
}

typedef struct {
  const char *key, *path;
} input;

/* The paths of the config that may have to be sent. */
static int list_inputs(const pod_life *life, input inputs[3]) {
  const mo_config *config = &life->need.config;
  inputs[0] = (input){"model.path", config->model.path};
  inputs[1] = (input){"data.tokens", config->data.tokens};
  inputs[2] = (input){"model.config", config->model.config};
  return 3;
}

/* The overrides as given, and behind them those that move paths; texts of the latter are in `room`. */
static mo_status override_paths(pod_life *life, const char **list, int *n, char room[4][POD_PATH_BYTES + 32]) {
  input inputs[3];
  char place[POD_PATH_BYTES];
  int rooms = 0;
  for (int i = 0, count = list_inputs(life, inputs); i < count; i++) {
    if (!to_be_sent(life, inputs[i].path) || stays(inputs[i].path)) continue;
    MO_TRY(moved(life, inputs[i].path, place));
    snprintf(room[rooms], sizeof room[rooms], "%s=%s", inputs[i].key, place);
    list[(*n)++] = room[rooms++];
  }
  if (strcmp(life->output, life->need.config.output.path) != 0) {
    snprintf(room[rooms], sizeof room[rooms], "output.path=%s", life->output);
    list[(*n)++] = room[rooms++];
  }
  return MO_OK;
}

mo_status pod_life_settle_paths(pod_life *life) {
  const mo_config *config = &life->need.config;
  bool same = stays(config->output.path) && strlen(config->output.path) < sizeof life->output;
  snprintf(life->output, sizeof life->output, "%.*s%.*s%.*s%s", same ? 500 : 0, config->output.path, same ? 0 : 256,
           life->run.remote, same ? 0 : 5, "/out/", same ? "" : life->run.key);
  if (!same) {
    size_t n = strlen(life->output);
    snprintf(life->output + n, sizeof life->output - n, ".h5");
  }
  snprintf(life->config_on_pod, sizeof life->config_on_pod, "%s/runs/%s/%s.cfg", life->run.remote, life->run.key,
           life->run.key);
  free(life->config_text);
  life->config_text = NULL;
  int n = (int)json_array_size(life->run.overrides);
  const char **list = mo_alloc((size_t)n + 4, sizeof *list);
  char(*room)[POD_PATH_BYTES + 32] = mo_alloc(4, sizeof *room);
  mo_status status = list && room ? MO_OK : MO_FAILED;
  for (int i = 0; status == MO_OK && i < n; i++)
    list[i] = json_string_value(json_array_get(life->run.overrides, (size_t)i));
  if (status == MO_OK) status = override_paths(life, list, &n, room);
  mo_config there;
  if (status == MO_OK) status = mo_config_read(&there, life->need.path, list, n, true);
  if (status == MO_OK) {
    life->config_text = mo_strdup(there.text);
    mo_config_free(&there);
    if (!life->config_text) status = MO_FAILED;
  }
  free(room);
  free(list);
  return status;
}

/* --- inputs --- */

/* A path that stays goes with its folders; links, as in a snapshot folder of the hub, become what they point to. */
static mo_status send_input(pod_life *life, const char *path) {
  char from[POD_PATH_BYTES], to[POD_PATH_BYTES], place[POD_PATH_BYTES];
  struct stat info;
  if (stat(path, &info) != 0) return MO_FAIL(MO_INVALID, "cannot read (%s): %s: check the path", path, strerror(errno));
  if (stays(path)) {
    MO_TRY(pod_path(from, "./%s", path));
    MO_TRY(pod_path(to, "POD:%s/source/", life->run.remote));
    return pod_rsync(life, (const char *[]){"-rLptR", "--partial", from, to}, 4, false);
  }
  MO_TRY(moved(life, path, place));
  bool folder = S_ISDIR(info.st_mode);
  MO_TRY(pod_path(from, "%s%s", path, folder ? "/" : ""));
  MO_TRY(pod_path(to, "POD:%s%s", place, folder ? "/" : ""));
  return pod_rsync(life, (const char *[]){"-rLpt", "--partial", from, to}, 4, false);
}

/* The run's own folder: its config, and what Slurm's script needs. */
static mo_status send_config(pod_life *life) {
  char folder[POD_PATH_BYTES], path[POD_PATH_BYTES], to[POD_PATH_BYTES], site[POD_PATH_BYTES];
  MO_TRY(pod_path(folder, "%s/send", life->folder));
  MO_TRY(pod_make_folders(folder));
  MO_TRY(pod_path(path, "%s/%s.cfg", folder, life->run.key));
  MO_TRY(pod_write_durably(path, life->config_text, strlen(life->config_text), 0644));
  MO_TRY(pod_path(path, "%s/site.conf", folder));
  MO_TRY(pod_path(site, "PROGRAM=(%s/program)\nWORKDIR=%s/source\nRANKS=%d\n", life->run.remote, life->run.remote,
                  life->run.gpus * life->run.pods));
  MO_TRY(pod_write_durably(path, site, strlen(site), 0644));
  MO_TRY(pod_path(path, "%s/", folder));
  MO_TRY(pod_path(to, "POD:%s/runs/%s/", life->run.remote, life->run.key));
  return pod_rsync(life, (const char *[]){"-rpt", path, to}, 3, false);
}

mo_status pod_life_send(pod_life *life) {
  input inputs[3];
  pod_life_say(life, "sending the source to %s (%s:%d)", life->run.id, life->run.host, life->run.port);
  MO_TRY(send_source(life));
  MO_TRY(send_config(life));
  for (int i = 0, n = list_inputs(life, inputs); i < n; i++)
    if (to_be_sent(life, inputs[i].path)) MO_TRY(send_input(life, inputs[i].path));
  return MO_OK;
}
