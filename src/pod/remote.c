#include "pod/remote.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/clock.h"

enum { MOST_ARGUMENTS = 96, PORT_BYTES = 16 };

static const double answer_seconds = 180; /* of a short script */

bool pod_is_plain(const char *path) {
  for (const char *c = path; *c; c++)
    if (!isalnum((unsigned char)*c) && !strchr("._/+=@-", *c)) return false;
  return path[0] && path[0] != '-';
}

char *pod_quote(const char *const *arguments, int n) {
  size_t bytes = 1;
  for (int i = 0; i < n; i++)
    for (const char *c = arguments[i]; bytes += 4, *c; c++) continue;
  char *text = mo_alloc(bytes, 1), *to = text;
  if (!text) return NULL;
  for (int i = 0; i < n; i++) {
    bool plain = pod_is_plain(arguments[i]);
    if (i > 0) *to++ = ' ';
    if (!plain) *to++ = '\'';
    for (const char *c = arguments[i]; *c; c++) {
      if (*c == '\'') {
        memcpy(to, "'\\''", 4);
        to += 4;
      } else {
        *to++ = *c;
      }
    }
    if (!plain) *to++ = '\'';
  }
  *to = '\0';
  return text;
}

/* --- argv --- */

typedef struct {
  char *list[MOST_ARGUMENTS]; /* owned */
  int n;
  bool failed;
} arguments;

__attribute__((format(printf, 2, 3))) static void add(arguments *a, const char *format, ...) {
  char text[2 * POD_PATH_BYTES];
  va_list args;
  va_start(args, format);
  int length = vsnprintf(text, sizeof text, format, args);
  va_end(args);
  a->failed = a->failed || length >= (int)sizeof text || a->n + 1 >= MOST_ARGUMENTS;
  if (a->failed) return;
  a->list[a->n] = mo_strdup(text);
  if (a->list[a->n])
    a->n++;
  else
    a->failed = true;
}

static void add_words(arguments *a, const char *words) {
  while (*words) {
    size_t n = strcspn(words, " ");
    if (n > 0) add(a, "%.*s", (int)n, words);
    words += n + strspn(words + n, " ");
  }
}

static void free_arguments(arguments *a) {
  for (int i = 0; i < a->n; i++) free(a->list[i]);
}

/* ssh with all options but the port. Blanks in the path of known_hosts are ssh's to unquote. */
static void add_ssh(arguments *a, const pod_life *life) {
  static const char *const options[] = {"BatchMode=yes",
                                        "ConnectTimeout=10",
                                        "ConnectionAttempts=1",
                                        "ServerAliveInterval=15",
                                        "ServerAliveCountMax=4",
                                        "StrictHostKeyChecking=accept-new",
                                        "GlobalKnownHostsFile=/dev/null",
                                        "PasswordAuthentication=no",
                                        "ControlMaster=no",
                                        "ControlPath=none",
                                        "ForwardAgent=no",
                                        "ForwardX11=no",
                                        "LogLevel=ERROR"};
  add_words(a, life->settings->ssh);
  add(a, "-T");
  for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
    add(a, "-o");
    add(a, "%s", options[i]);
  }
  add(a, "-o");
  add(a, "UserKnownHostsFile=\"%s/known_hosts\"", life->logs);
  if (life->settings->identity) {
    add(a, "-o");
    add(a, "IdentitiesOnly=yes");
    add(a, "-i");
    add(a, "%s", life->settings->identity);
  }
}

mo_status pod_ssh_once(pod_life *life, const pod_place *place, const char *command, const char *input, double seconds,
                       pod_result *result) {
  arguments a = {.n = 0};
  char log[POD_PATH_BYTES];
  *result = (pod_result){.status = -1};
  MO_TRY(pod_path(log, "%s/client.log", life->logs));
  add_ssh(&a, life);
  add(&a, "-p");
  add(&a, "%d", place ? place->port : life->run.port);
  add(&a, "%s@%s", place ? place->user : life->run.user, place ? place->host : life->run.host);
  add(&a, "%s", command);
  mo_status status =
      a.failed ? MO_FAIL(MO_FAILED, "a command line is too long (%.60s...): use shorter paths", command) : MO_OK;
  if (status == MO_OK)
    status = pod_life_local(
        life, pod_process_run(life->settings, a.list, input, NULL, seconds, life->heedless ? NULL : &pod_stop, result));
  free_arguments(&a);
  if (status == MO_OK && result->status == 255 && result->output && *result->output) {
    FILE *file = fopen(log, "ae");
    if (file) fprintf(file, "ssh: %s", result->output);
    if (file) fclose(file);
  }
  return status;
}

const char *pod_mark(const char *output, const char *word) {
  static const char mark[] = "@moe-pod ";
  size_t n = strlen(word);
  for (const char *line = output; line; line = strchr(line, '\n')) {
    if (*line == '\n') line++;
    if (strncmp(line, mark, sizeof mark - 1) != 0) continue;
    const char *rest = line + sizeof mark - 1;
    if (n == 0) return rest;
    if (strncmp(rest, word, n) == 0 && (rest[n] == ' ' || rest[n] == '\n' || !rest[n]))
      return rest + n + (rest[n] == ' ');
  }
  return NULL;
}

/* The last line of a text that says anything. */
static void last_line(const char *text, char *line, size_t size) {
  size_t end = strlen(text);
  while (end > 0 && isspace((unsigned char)text[end - 1])) end--;
  size_t begin = end;
  while (begin > 0 && text[begin - 1] != '\n') begin--;
  snprintf(line, size, "%.*s", (int)(end - begin), text + begin);
}

/* Before a call is tried again: the pod must live, and time be left. */
static mo_status pause_before_retry(pod_life *life, double began, const char *what, const pod_result *result) {
  char line[300];
  double patience = pod_seconds_of(POD_REACH);
  last_line(result->output ? result->output : "", line, sizeof line);
  if (pod_life_stopped(life)) return MO_FAIL(MO_STOPPED, "stopped (%s)", life->run.key);
  if (life->hurried) return MO_FAIL(MO_FAILED, "%s gets no connection to the pod (%s): %s", what, life->run.id, line);
  MO_TRY(pod_life_check_limits(life));
  MO_TRY(pod_life_look(life));
  if (mo_seconds() - began > patience)
    return POD_LOST(life, "%s gets no connection to the pod for %.0f s (%s, %s:%d): %s", what, patience, life->run.id,
                    life->run.host, life->run.port, line[0] ? line : "see client.log");
  return pod_life_wait(life, pod_life_poll());
}

mo_status pod_script(pod_life *life, const char *input, char **output, const char *const *given, int n) {
  const char *list[MOST_ARGUMENTS] = {"bash"};
  char script[POD_PATH_BYTES], line[300];
  MO_TRY(pod_path(script, "%s/remote/%s", life->run.remote, given[0]));
  list[1] = script;
  for (int i = 1; i < n && i + 1 < MOST_ARGUMENTS; i++) list[i + 1] = given[i];
  char *command = pod_quote(list, n + 1);
  if (!command) return MO_FAILED;
  double began = mo_seconds();
  mo_status status;
  pod_result result;
  for (;;) {
    status = pod_ssh_once(life, NULL, command, input, answer_seconds, &result);
    bool answered = status == MO_OK && result.status != 255 && !result.timed_out && !pod_life_stopped(life);
    if (status != MO_OK || answered) break;
    status = pause_before_retry(life, began, "ssh", &result);
    pod_result_free(&result);
    if (status != MO_OK) break;
  }
  free(command);
  if (status == MO_OK && result.status != 0) {
    last_line(result.output, line, sizeof line);
    status =
        MO_FAIL(MO_FAILED, "%s failed on the pod with status %d (%s): %s", given[0], result.status, life->run.id, line);
    if (result.status == 127 || result.status == 126)
      life->again = true; /* the container was started anew: nothing is there */
  }
  if (status == MO_OK) {
    *output = result.output;
    result.output = NULL;
  }
  pod_result_free(&result);
  return status;
}

/* --- rsync --- */

/* The words of ssh as rsync splits them: at blanks, with double or single quotes. */
static bool remote_shell(const pod_life *life, char *text, size_t size) {
  arguments a = {.n = 0};
  size_t length = 0;
  add_ssh(&a, life);
  add(&a, "-p");
  add(&a, "%d", life->run.port);
  bool good = !a.failed;
  for (int i = 0; good && i < a.n; i++) {
    const char *quote = strpbrk(a.list[i], " \"") ? "'" : "";
    good = !(*quote && strchr(a.list[i], '\''));
    int wrote = snprintf(text + length, size - length, "%s%s%s%s", i ? " " : "", quote, a.list[i], quote);
    good = good && wrote >= 0 && (size_t)wrote < size - length;
    length += (size_t)(wrote > 0 ? wrote : 0);
  }
  free_arguments(&a);
  return good;
}

static mo_status build_rsync(const pod_life *life, const char *const *given, int n, arguments *a) {
  char shell[2 * POD_PATH_BYTES];
  if (!remote_shell(life, shell, sizeof shell))
    return MO_FAIL(MO_INVALID,
                   "a path is too long or has quotes (%s): use a plain one for MOE_POD_STATE and MOE_POD_IDENTITY",
                   life->logs);
  add_words(a, life->settings->rsync);
  add(a, "--timeout=60");
  add(a, "-e");
  add(a, "%s", shell);
  for (int i = 0; i < n; i++) {
    if (strncmp(given[i], "POD:", 4) == 0)
      add(a, "%s@%s:%s", life->run.user, life->run.host, given[i] + 4);
    else
      add(a, "%s", given[i]);
  }
  return a->failed ? MO_FAIL(MO_FAILED, "a command line is too long (rsync of %s): use shorter paths", life->run.key)
                   : MO_OK;
}

/* The line of a text that has the word in it. */
static bool line_with(const char *text, const char *word, char *line, size_t size) {
  const char *found = strstr(text, word), *begin = found;
  while (found && begin > text && begin[-1] != '\n') begin--;
  if (found) snprintf(line, size, "%.*s", (int)strcspn(begin, "\r\n"), begin);
  return found != NULL;
}

/* What went wrong, if it was no cut connection. here: what is copied is stored here. */
static mo_status refuse_rsync(pod_life *life, const pod_result *result, bool here) {
  static const char no_space[] = "No space left on device";
  enum { FILE_ERROR = 11 };
  char line[300];
  bool full = line_with(result->output, no_space, line, sizeof line);
  if (!full) last_line(result->output, line, sizeof line);
  if (!full && !line[0] && result->status == FILE_ERROR) {
    full = true;
    snprintf(line, sizeof line, "input/output error, probably a full disk");
  }
  /* The side that reads may fail as well. */
  bool reading = strstr(result->output, "[sender]") && !strstr(result->output, "[receiver]");
  if (here && !reading) life->local = true;
  if (full && here)
    return MO_FAIL(MO_FAILED, "this machine's disk is full (%s): %s: make room here", life->run.key, line);
  if (full)
    return MO_FAIL(MO_FAILED, "the pod's disk is full (%s): %s: raise deployment.container_disk_gb", life->run.key,
                   line);
  return MO_FAIL(MO_FAILED, "rsync failed with status %d %s (%s): %s", result->status,
                 here ? "fetching from the pod" : "sending to the pod", life->run.key,
                 line[0] ? line : "it gives no reason");
}

mo_status pod_rsync(pod_life *life, const char *const *given, int n, bool vanished) {
  enum { MOST_TRIES = 20 };
  char log[POD_PATH_BYTES];
  double began = mo_seconds();
  MO_TRY(pod_path(log, "%s/client.log", life->logs));
  for (int tries = 1;; tries++) {
    arguments a = {.n = 0};
    pod_result result = {.status = -1};
    mo_status status = build_rsync(life, given, n, &a);
    double left = pod_life_left(life);
    bool here = n > 0 && strncmp(given[n - 1], "POD:", 4) != 0;
    if (status == MO_OK)
      status = pod_life_local(life, pod_process_run(life->settings, a.list, NULL, log, left > 1 ? left : 60,
                                                    life->heedless ? NULL : &pod_stop, &result));
    free_arguments(&a);
    int ended = result.status;
    /* 10, 12, 30, 35 and 255 are connections; signals are an rsync that was ended from outside */
    bool cut = ended == 10 || ended == 12 || ended == 30 || ended == 35 || ended >= 128 || result.timed_out;
    bool stopped = pod_life_stopped(life);
    bool done = status == MO_OK && !stopped && (ended == 0 || (vanished && (ended == 24 || ended == 23)));
    if (status == MO_OK && !done) {
      if (strstr(result.output, "No space left on device")) cut = false;
      if (cut || stopped)
        status = pause_before_retry(life, tries < MOST_TRIES ? began : -1e9, "rsync", &result);
      else
        status = refuse_rsync(life, &result, here);
    }
    pod_result_free(&result);
    if (status != MO_OK || done) return status;
  }
}
