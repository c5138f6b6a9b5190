/* Other programs: started without a shell, in a process group of their own, so that Ctrl-C reaches this program
 * alone. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "moe_outliers/clock.h"
#include "pod/pod.h"

extern char **environ;

enum { KEPT = 64 << 10, CHUNK = 16 << 10, TICK_MS = 50 };

static const double patience = 3; /* seconds from SIGTERM to SIGKILL */

typedef struct {
  const pod_settings *settings;
  pid_t pid;
  int in, out; /* our ends; -1: closed */
  const char *input;
  int log;    /* -1: none */
  char *text; /* [2 KEPT + 1] what has come last */
  size_t n;
  bool cut;                               /* something came before it */
  char line[CHUNK + POD_MOST_SECRET + 1]; /* on its way to the log */
  size_t n_line;
  bool log_lost;
} process;

static void close_end(int *end) {
  if (*end >= 0) close(*end);
  *end = -1;
}

/* --- output --- */

/* Of the line so far all but the last `held` characters. */
static void write_log(process *p, size_t held) {
  p->line[p->n_line] = '\0';
  pod_redact(p->settings, p->line);
  size_t n = strlen(p->line), end = n > held ? n - held : 0;
  for (size_t done = 0; done < end && !p->log_lost;) {
    ssize_t wrote = write(p->log, p->line + done, end - done);
    if (wrote > 0) done += (size_t)wrote;
    if (wrote <= 0 && errno != EINTR) p->log_lost = true;
  }
  memmove(p->line, p->line + end, n - end);
  p->n_line = n - end;
}

/* To the log goes what ends with a line's end; of a line without one all but what may be the beginning of a secret. */
static void log_output(process *p, const char *text, size_t n) {
  for (size_t i = 0; i < n && p->log >= 0; i++) {
    p->line[p->n_line++] = text[i];
    if (text[i] == '\n' || text[i] == '\r') write_log(p, 0);
    if (p->n_line == sizeof p->line - 1) write_log(p, POD_MOST_SECRET);
  }
}

static void keep_output(process *p, const char *text, size_t n) {
  if (p->n + n > 2 * KEPT) {
    memmove(p->text, p->text + p->n - KEPT, KEPT);
    p->n = KEPT;
    p->cut = true;
  }
  memcpy(p->text + p->n, text, n);
  p->n += n;
}

/* Reads what is there; false at the end. */
static bool read_output(process *p) {
  char text[CHUNK];
  for (;;) {
    ssize_t n = read(p->out, text, sizeof text);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) return false;
    for (ssize_t i = 0; i < n; i++)
      if (!text[i]) text[i] = '?';
    log_output(p, text, (size_t)n);
    keep_output(p, text, (size_t)n);
  }
}

static void write_input(process *p) {
  size_t left = strlen(p->input);
  ssize_t n = left ? write(p->in, p->input, left) : 0;
  if (n > 0) p->input += n;
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n < 0 || !*p->input) close_end(&p->in); /* the program may not want it all */
}

/* --- start --- */

static mo_status no_start(const char *program, int error) {
  return MO_FAIL(MO_FAILED, "cannot be started: %s (%s): install it, or name another one (MOE_POD_SSH, MOE_POD_RSYNC)",
                 strerror(error), program);
}

static int spawn(process *p, char *const *arguments, int in, int out) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  int error = posix_spawn_file_actions_init(&actions);
  if (error) return error;
  error = posix_spawnattr_init(&attributes);
  if (error) {
    posix_spawn_file_actions_destroy(&actions);
    return error;
  }
  if (in < 0) error = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  if (!error && in >= 0) error = posix_spawn_file_actions_adddup2(&actions, in, 0);
  if (!error) error = posix_spawn_file_actions_adddup2(&actions, out, 1);
  if (!error) error = posix_spawn_file_actions_adddup2(&actions, out, 2);
  if (!error) error = posix_spawnattr_setpgroup(&attributes, 0);
  if (!error) error = posix_spawnattr_setsigmask(&attributes, &none);
  if (!error) error = posix_spawnattr_setsigdefault(&attributes, &all);
  if (!error)
    error =
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  if (!error) error = posix_spawnp(&p->pid, arguments[0], &actions, &attributes, arguments, environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  return error;
}

static mo_status start(process *p, char *const *arguments) {
  int in[2] = {-1, -1}, out[2] = {-1, -1};
  bool piped = pipe2(out, O_CLOEXEC) == 0 && (!p->input || pipe2(in, O_CLOEXEC) == 0);
  p->out = out[0];
  p->in = in[1];
  mo_status status = MO_OK;
  if (!piped || fcntl(p->out, F_SETFL, O_NONBLOCK) != 0 || (p->input && fcntl(p->in, F_SETFL, O_NONBLOCK) != 0))
    status = MO_FAIL(MO_FAILED, "no pipe: %s (%s): raise the limit of open files (ulimit -n)", strerror(errno),
                     arguments[0]);
  int error = status == MO_OK ? spawn(p, arguments, in[0], out[1]) : 0;
  if (error) status = no_start(arguments[0], error);
  close_end(&in[0]);
  close_end(&out[1]);
  return status;
}

/* --- wait --- */

/* One step of waiting: output, input, and whether the program has ended. */
static bool step(process *p, int *wait_status) {
  struct pollfd ends[] = {{.fd = p->out, .events = POLLIN}, {.fd = p->in, .events = POLLOUT}};
  (void)poll(ends, 2, TICK_MS); /* a negative one is passed over */
  if (p->out >= 0 && ends[0].revents && !read_output(p)) close_end(&p->out);
  if (p->in >= 0 && ends[1].revents) write_input(p);
  pid_t ended = waitpid(p->pid, wait_status, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return false;
  /* Others that it has left behind may hold the pipe open: what is there is taken, no more is waited for. */
  if (p->out >= 0) (void)read_output(p);
  return true;
}

static int exit_status(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

static void wait_for(process *p, double seconds, const volatile bool *stop, pod_result *result) {
  double deadline = mo_seconds() + seconds, killing = 0;
  int wait_status = 0;
  while (!step(p, &wait_status)) {
    double now = mo_seconds();
    bool late = seconds > 0 && now >= deadline;
    if (killing > 0 && now >= killing) {
      kill(-p->pid, SIGKILL);
    } else if (killing == 0 && (late || (stop && *stop))) {
      result->timed_out = late;
      killing = now + patience;
      kill(-p->pid, SIGTERM);
    }
  }
  result->status = exit_status(wait_status);
}

/* What is cut may begin with half of a secret. */
static mo_status take_output(process *p, const char *log, pod_result *result) {
  if (p->log >= 0) write_log(p, 0);
  p->text[p->n] = '\0';
  pod_redact(p->settings, p->text);
  size_t n = strlen(p->text), from = n > KEPT ? n - KEPT : 0, least = p->cut ? POD_MOST_SECRET : 0;
  if (from < least) from = least < n ? least : n;
  result->output = mo_strdup(p->text + from);
  if (!result->output) return MO_FAILED;
  return p->log_lost ? MO_FAIL(MO_FAILED, "log cannot be written (%s): give its folder room", log) : MO_OK;
}

mo_status pod_process_run(const pod_settings *settings, char *const *arguments, const char *input, const char *log,
                          double seconds, const volatile bool *stop, pod_result *result) {
  *result = (pod_result){.status = -1};
  process *p = mo_alloc(1, sizeof *p);
  if (!p) return MO_FAILED;
  *p = (process){.settings = settings, .in = -1, .out = -1, .log = -1, .input = input};
  mo_status status;
  p->text = mo_alloc(2 * KEPT + CHUNK + 1, 1);
  MO_TRY_TO(done, p->text ? MO_OK : MO_FAILED);
  if (log && (p->log = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600)) < 0) {
    status = MO_FAIL(MO_FAILED, "log cannot be opened: %s (%s): check the folder", strerror(errno), log);
    goto done;
  }
  MO_TRY_TO(done, start(p, arguments));
  wait_for(p, seconds, stop, result);
  status = take_output(p, log, result);
done:
  close_end(&p->in);
  close_end(&p->out);
  close_end(&p->log);
  if (p->text) explicit_bzero(p->text, 2 * KEPT);
  free(p->text);
  free(p);
  return status;
}

void pod_result_free(pod_result *result) {
  free(result->output);
  *result = (pod_result){0};
}
