#include "moe_outliers/phases.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "moe_outliers/clock.h"

static struct {
  double started, last; /* mo_seconds() */
  int64_t microseconds[MO_PHASE_COUNT];
} account;

static const char *const names[MO_PHASE_COUNT] = {
    [MO_PHASE_LAUNCH] = "before main",
    [MO_PHASE_MPI] = "MPI",
    [MO_PHASE_DEVICE] = "device",
    [MO_PHASE_INPUT] = "input",
    [MO_PHASE_PLAN] = "plan",
    [MO_PHASE_RESUME] = "resume",
    [MO_PHASE_ANALYSIS] = "analysis",
    [MO_PHASE_RESULT] = "result",
    [MO_PHASE_CLOSE] = "closing",
    [MO_PHASE_PARTING] = "leaving MPI",
    [MO_PHASE_OPEN] = "before the first task",
    [MO_PHASE_STREAM] = "rest",
    [MO_PHASE_HEADERS] = "headers",
    [MO_PHASE_LIBRARIES] = "libraries",
    [MO_PHASE_FREEING] = "freeing",
};

/* Since the kernel started the process, to a hundredth of a second; 0 if it does not say. */
static double age(void) {
  char text[1024];
  unsigned long long ticks = 0;
  FILE *file = fopen("/proc/self/stat", "r");
  size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
  if (file) fclose(file);
  text[n] = '\0';
  const char *fields = strrchr(text, ')'); /* behind the program's name, which may hold anything */
  if (!fields ||
      sscanf(fields, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &ticks) != 1)
    return 0;
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  double seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec - (double)ticks / (double)sysconf(_SC_CLK_TCK);
  return seconds > 0 && seconds < 600 ? seconds : 0; /* in some containers the two clocks differ */
}

void mo_phases_begin(void) {
  double before = age();
  account.last = mo_seconds();
  account.started = account.last - before;
  mo_phase_took(MO_PHASE_LAUNCH, before);
}

void mo_phase_took(mo_phase phase, double seconds) { account.microseconds[phase] += (int64_t)(1e6 * seconds); }

void mo_phase_ends(mo_phase phase) {
  double now = mo_seconds();
  mo_phase_took(phase, now - account.last);
  account.last = now;
}

int64_t *mo_phases(void) { return account.microseconds; }

typedef struct {
  char *text;
  size_t bytes, length;
} line;

static void add(line *to, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int n = vsnprintf(to->text + to->length, to->bytes - to->length, format, arguments);
  va_end(arguments);
  if (n > 0) to->length += (size_t)n < to->bytes - to->length ? (size_t)n : to->bytes - to->length - 1;
}

static double sum(int first, int last) {
  double microseconds = 0;
  for (int i = first; i <= last; i++) microseconds += (double)account.microseconds[i];
  return 1e-6 * microseconds;
}

/* "NAME 0.12 s: part 0.10, part 0.02" */
static void add_group(line *to, const char *name, int first, int last) {
  const char *gap = ": ";
  add(to, "%s %.2f s", name, sum(first, last));
  for (int i = first; i <= last; i++) {
    if (account.microseconds[i] < 1000) continue;
    add(to, "%s%s %.3f", gap, names[i], 1e-6 * (double)account.microseconds[i]);
    gap = ", ";
  }
}

void mo_phases_describe(char *text, size_t bytes) {
  line to = {text, bytes, 0};
  text[0] = '\0';
  add_group(&to, "outside the stream", MO_PHASE_LAUNCH, MO_PHASE_PARTING);
  add_group(&to, "; the stream", MO_PHASE_OPEN, MO_PHASE_STREAM);
  if (sum(MO_PHASE_HEADERS, MO_PHASE_FREEING) > 1e-3)
    add_group(&to, "; beside both", MO_PHASE_HEADERS, MO_PHASE_FREEING);
  add(&to, "; since the start of the process %.2f s", mo_seconds() - account.started);
}
