#include "results/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* A loop without end takes processor time, slow storage does not. */
#define CPU_SECONDS 5
#define MOST_CPU_SECONDS 60
#define BYTES_PER_CPU_SECOND (16 << 20)

static void limit(__rlimit_resource_t resource, rlim_t most) {
  struct rlimit now;
  if (getrlimit(resource, &now) != 0 || now.rlim_cur <= most) return;
  now.rlim_cur = most;
  (void)setrlimit(resource, &now);
}

static rlim_t cpu_seconds(const char *path) {
  struct stat information;
  rlim_t more = stat(path, &information) == 0 ? (rlim_t)(information.st_size / BYTES_PER_CPU_SECOND) : 0;
  return CPU_SECONDS + more < MOST_CPU_SECONDS ? CPU_SECONDS + more : MOST_CPU_SECONDS;
}

/* Silent, as it may end in many ways: no message, no core file. */
static _Noreturn void try_it(void (*attempt)(const char *path, void *context), void *context, const char *path) {
  int nowhere = open("/dev/null", O_WRONLY);
  if (nowhere >= 0) (void)dup2(nowhere, STDERR_FILENO);
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_CPU, cpu_seconds(path));
  attempt(path, context);
  _exit(0);
}

mo_status mo_probe(void (*attempt)(const char *path, void *context), void *context, const char *path,
                   const char *remedy) {
  int status = 0;
  pid_t child = fork(), ended;
  if (child < 0)
    return MO_FAIL(MO_FAILED, "cannot start a process (to probe %s: %s): free some memory", path, strerror(errno));
  if (child == 0) try_it(attempt, context, path);
  do ended = waitpid(child, &status, 0);
  while (ended < 0 && errno == EINTR);
  /* ECHILD: who started this program ignores SIGCHLD, and the status is lost. */
  if ((ended == child && status == 0) || (ended < 0 && errno == ECHILD)) return MO_OK;
  return MO_FAIL(MO_INVALID, "damaged file, at which HDF5 breaks down (%s): %s", path, remedy);
}
