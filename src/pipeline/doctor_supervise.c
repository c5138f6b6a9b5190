/* MPI libraries that srun has not offered a PMI that they speak may end the process when they start, with a page of
 * text: then somebody must be left who says what to do. */
#include <errno.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pipeline/doctor.h"

static int started = -1; /* the child's end of a pipe, into which it says that MPI has started */

static bool is_doubtful(const mo_launch *launch) {
  return launch->tasks > 1 && (launch->kind == MO_LAUNCH_SRUN || launch->kind == MO_LAUNCH_SRUN_PMI2);
}

static void report(const mo_doctor_job *job, FILE *out) {
  mo_doctor_state d = {.job = job, .out = out, .size = 1};
  mo_doctor_look_at_failed_start(&d);
  mo_doctor_conclude(&d);
}

/* The exit status of the child, and of this process. */
static int watch_child(const mo_doctor_job *job, FILE *out, pid_t child, int from_child) {
  char word;
  int status = 0;
  ssize_t n;
  do n = read(from_child, &word, 1);
  while (n < 0 && errno == EINTR);
  close(from_child);
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  if (n == 1) return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
  if (job->launch.rank == 0)
    report(job, out);
  else
    sleep(1); /* srun may end all tasks when the first one ends */
  return 1;
}

int mo_doctor_supervise(const mo_doctor_job *job, FILE *out) {
  int ends[2];
  if (!is_doubtful(&job->launch) || pipe(ends) != 0) return -1;
  fflush(NULL);
  pid_t child = fork();
  if (child > 0) {
    close(ends[1]);
    return watch_child(job, out, child, ends[0]);
  }
  close(ends[0]);
  if (child == 0)
    started = ends[1];
  else
    close(ends[1]);
  return -1;
}

void mo_doctor_started(void) {
  if (started < 0) return;
  (void)!write(started, "", 1);
  close(started);
  started = -1;
}
